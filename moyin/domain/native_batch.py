"""Defines native batches: parts of a batch that a back end runs through its own batch API."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

# The ``model`` of a batch's planning entry (`NativeBatch.is_plan`).
PLAN = ""


class NativeStatus(StrEnum):
    """The last known status of a native batch.

    Attributes:
        ASSIGNED: its lines are chosen; nothing was sent to the back end.
        SENDING: it is being sent, or was sent but the response with its id was lost.
        RUNNING: the back end has accepted it.
        DONE: its results are written, and lines without a result were released.
    """

    ASSIGNED = "assigned"
    SENDING = "sending"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeBatch:
    """A part of a batch that a back end runs through its own batch API.

    The planning entry of a batch has this type, too (`is_plan`).

    Attributes:
        id: ``nb_`` and 32 hexadecimal digits, which the back end returns with each result.
        backend: the configured name of the back end.
        model: the configured name of the model.
        remote_id: the back end's id of the batch; None until it is known.
        due_at: the time from which a replica may begin the next step. A replica that begins the step
            sets a later time, so that no other replica begins it, too.
        state: values that only some statuses have: ``since``, the time at which sending began;
            ``count``, the number of lines that were sent; ``lost_at``, the time of the first search
            for a lost id at the back end; and ``is_cancelled``, true once the back end was
            asked to cancel it.
    """

    id: str
    batch_id: str
    backend: str
    model: str
    status: NativeStatus
    created_at: datetime
    due_at: datetime
    remote_id: str | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_plan(self) -> bool:
        """True for a planning entry, whose only step divides the batch into native batches."""
        return self.model == PLAN

    def get_custom_id(self, number: int) -> str:
        """Return the id under which the back end knows a line; at most 64 characters."""
        return f"{self.id}-{number}"

    def parse_line_number(self, custom_id: str) -> int | None:
        """Return the number of the line with this id at the back end, or None if there is none."""
        prefix, _, number = custom_id.rpartition("-")
        return int(number) if prefix == self.id and number.isdecimal() else None


def new_native_id() -> str:
    """Return the id of a new native batch."""
    return f"nb_{secrets.token_hex(16)}"


def get_plan_id(batch_id: str) -> str:
    """Return the id of a batch's planning entry (`NativeBatch.is_plan`)."""
    return f"plan-{batch_id}"[:64]
