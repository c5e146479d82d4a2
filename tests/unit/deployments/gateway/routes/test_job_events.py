"""Checks the format of server-sent events."""

from __future__ import annotations

import json

from deployments.gateway.routes.job_events import _format_event
from moyin.domain.job import EventType, JobEvent


def test_line_separators_in_data_are_escaped() -> None:
    """Clients such as httpx split at every line boundary that Python knows."""
    message = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029é"
    event = JobEvent(id="1-0", type=EventType.FAILED, data={"message": message})
    head, kind, data = _format_event(event).removesuffix("\n").splitlines()
    assert (head, kind) == ("id: 1-0", "event: failed")
    assert json.loads(data.removeprefix("data: ")) == event.data
