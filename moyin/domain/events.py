"""What a job says while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EventType(StrEnum):
    """``QUEUED`` … ``CANCELLED`` repeat the job's statuses; the last three end a stream."""

    QUEUED = "queued"
    RUNNING = "running"
    PROGRESS = "progress"
    STEP = "step"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """One entry of a job's event stream.

    Attributes:
        id: position in the stream (a Valkey stream id); a client resumes after it.
        data: JSON members; ``progress`` carries ``{"value", "max", "step", "node"?}``.
    """

    id: str
    type: EventType
    data: Mapping[str, Any]
