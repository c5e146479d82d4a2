"""Tests the error events that end streams of the models app when the caller's key expires."""

from __future__ import annotations

import json

import pytest

from deployments.models.app import render_stream_error
from moyin.errors import InvalidKey

ENDED = InvalidKey("the key or the session has ended")


@pytest.mark.parametrize(
    ("path", "media_type", "expected_start"),
    [
        ("/v1/chat/completions", "text/event-stream", b'data: {"error":'),
        ("/v1/messages", "text/event-stream", b"event: error\ndata: "),
        ("/v1/ollama/api/chat", "application/x-ndjson", b'{"error":'),
        ("/v1/ollama/api/generate", "application/x-ndjson", b'{"error":'),
    ],
)
def test_stream_ends_with_an_error_of_its_protocol(
    path: str, media_type: str, expected_start: bytes
) -> None:
    event = render_stream_error(ENDED, "r", path, media_type)
    assert event is not None and event.startswith(expected_start) and event.endswith(b"\n")
    assert "invalid_api_key" in json.dumps(event.decode())


def test_other_media_type_gets_no_error_event() -> None:
    assert render_stream_error(ENDED, "r", "/v1/messages", "application/json") is None
