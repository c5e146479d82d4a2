"""Tests the format of server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator

from deployments.gateway.routes.job_events import _format_event, _format_events
from moyin.domain.job import EventType, JobEvent
from moyin.errors import ServiceUnavailable
from moyin.http.problems import render_error_event
from moyin.jobs.protocol.event_bodies import StreamError


def test_line_separators_in_data_are_escaped() -> None:
    """Unicode's line separators are escaped, because clients such as httpx split lines there."""
    message = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029é"
    event = JobEvent(id="1-0", type=EventType.FAILED, data={"message": message})
    id_line, event_line, data_line = _format_event(event).removesuffix("\n").splitlines()
    assert (id_line, event_line) == ("id: 1-0", "event: failed")
    assert json.loads(data_line.removeprefix("data: ")) == event.data


async def test_an_error_ends_the_stream_as_the_gatekeepers_errors_do() -> None:
    error = ServiceUnavailable("the events are away")

    async def fail() -> AsyncGenerator[list[JobEvent], None]:
        raise error
        yield

    [text] = [text async for text in _format_events(fail(), "r1")]
    expected_event = render_error_event(error, "r1", "/jobs/j/events", "text/event-stream")
    assert expected_event is not None
    sent_data, gatekeeper_data = (
        event_text.rpartition("data: ")[2] for event_text in (text, expected_event.decode())
    )
    assert json.loads(sent_data) == json.loads(gatekeeper_data)
    StreamError.model_validate_json(sent_data)
    assert "event: error\n" in text
