"""Follows the events of a job, and continues after broken connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from moyin_client import calls
from moyin_client.errors import CONNECTION_FAILED, MoyinError, build_event_error
from moyin_client.models import FINAL_STATUSES, Event, FinishedStep, Job, Preview, Progress
from moyin_client.parsing import parse
from moyin_client.retry import RetryPolicy
from moyin_client.sse import ServerSentEvent, SseParser

_STATUS_EVENTS = FINAL_STATUSES | {"queued", "running"}
OnProgress = Callable[[Progress], object]


class Following:
    """Holds the state of following one job's events over several connections.

    Each attempt of a job ends with a final event. So the job has ended only if the gateway closes
    the stream after a final event.

    Attributes:
        has_ended: True if the job has no more events.
    """

    def __init__(
        self, job: Job | str, last_event_id: str | None, previews: bool, policy: RetryPolicy
    ) -> None:
        self.has_ended = False
        self._job = job
        self._last_event_id = last_event_id
        self._previews = previews
        self._policy = policy
        self._failures = 0
        self._parser = SseParser()
        self._is_last_final = False
        self._retry = 0.0

    def connect(self) -> calls.Call[None]:
        """Return the call that opens the stream of events after the last one that was received."""
        self._parser = SseParser()
        return calls.follow(self._job, self._last_event_id, self._previews)

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Parse a piece of the stream, and yield the events that are complete now.

        Raises:
            MoyinError: the stream reports an error.
        """
        for message in self._parser.feed(piece):
            data = _parse_data(message)
            if message.type == "error":
                raise build_event_error(data)
            event = _build_event(message, data)
            self._failures = 0
            self._last_event_id = event.id or self._last_event_id
            # A preview may come after the last event.
            if event.type != "preview":
                self._is_last_final = event.type in FINAL_STATUSES
            yield event

    def close(self, status: int) -> None:
        """Record that the gateway closed the stream; raise MoyinError if the job has not ended."""
        # 204 says that there is nothing after the last event.
        self.has_ended = self._is_last_final or status == 204
        if not self.has_ended:
            raise MoyinError("the stream ended before the job", code=CONNECTION_FAILED)

    def pause_after(self, error: MoyinError) -> float:
        """Return the seconds to wait before the next connection, or raise a final error."""
        self._failures += 1
        pause = self._policy.pause_after(error, self._failures)
        self._retry = self._parser.retry or self._retry
        return max(pause, min(self._retry, self._policy.longest_pause))


def report_progress(event: Event, on_progress: OnProgress | None) -> None:
    """Call ``on_progress`` with the job's new progress if the event contains it."""
    if on_progress is None:
        return
    data = event.data
    if isinstance(data, Progress):
        on_progress(data)
    elif isinstance(data, FinishedStep) and data.value is not None and data.max is not None:
        on_progress(Progress(value=data.value, max=data.max, step=data.step))


def _parse_data(message: ServerSentEvent) -> dict[str, Any]:
    try:
        data = json.loads(message.data)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise MoyinError("an event is not a JSON object", code="malformed_response")
    return data


def _build_event(message: ServerSentEvent, raw: dict[str, Any]) -> Event:
    data: Job | Progress | Preview | FinishedStep | None = None
    if message.type in _STATUS_EVENTS:
        data = parse(Job, raw)
    elif message.type == "progress":
        data = parse(Progress, raw)
    elif message.type == "preview":
        data = parse(Preview, raw)
    elif message.type == "step":
        data = parse(FinishedStep, raw)
    return Event(type=message.type, data=data, raw=raw, id=message.id or None)
