"""How events look on the wire."""

from __future__ import annotations

import json

from deployments.gateway.routes.events import _frame
from moyin.domain.job import EventType, JobEvent


def test_what_a_message_says_never_ends_a_line() -> None:
    """Clients that split at whatever Python takes for a line's end, such as httpx, get it whole."""
    message = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029é"
    event = JobEvent(id="1-0", type=EventType.FAILED, data={"message": message})
    head, kind, data = _frame(event).removesuffix("\n").splitlines()
    assert (head, kind) == ("id: 1-0", "event: failed")
    assert json.loads(data.removeprefix("data: ")) == event.data
