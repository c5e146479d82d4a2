from __future__ import annotations

import json

import pytest

from deployments.models.errors import render_error
from moyin.errors import UnsupportedFeature
from moyin.http.sse import FrameSplitter, parse_event
from moyin.text.protocol.responses.codec import ResponsesCodec

# The names of chat completions, which the domain's errors have, and those of this API.
FIELDS = [
    ("max_tokens", "max_output_tokens"),
    ("messages", "input"),
    ("reasoning_effort", "reasoning.effort"),
    ("response_format", "text.format"),
    ("tools", "tools"),
    (None, None),
]


@pytest.mark.parametrize(("field", "param"), FIELDS)
def test_errors_have_the_field_names_of_the_api(field: str | None, param: str | None) -> None:
    error = UnsupportedFeature("no", field=field)
    body = json.loads(render_error(error, "r", "/v1/responses").body)
    assert body["error"]["param"] == param
    assert body == json.loads(ResponsesCodec().render_error(error, "r", "/").body)
    [frame] = FrameSplitter().feed(ResponsesCodec().render_error_event(error, "r"))
    assert parse_event(frame)["param"] == param


def test_chat_completions_keep_their_field_names() -> None:
    error = UnsupportedFeature("no", field="response_format")
    body = json.loads(render_error(error, "r", "/v1/chat/completions").body)
    assert body["error"]["param"] == "response_format"
