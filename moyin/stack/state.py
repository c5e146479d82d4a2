"""Publishes the state of the stack in a JSON file, and locks the data folder for one supervisor."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from moyin.domain.serialization import encode, from_plain
from moyin.stack.layout import replace_file

__all__ = ["Part", "PartStatus", "Phase", "StackState", "read_state", "write_state"]


class Phase(StrEnum):
    """The phases of the whole stack."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class PartStatus(StrEnum):
    """The statuses of a part of the stack."""

    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    BACKING_OFF = "backing off"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(kw_only=True, slots=True)
class Part:
    """The state of a part of the stack, which is a supervised process or all apps together.

    Attributes:
        since: Unix time of the last change of ``status``.
        detail: explanation of the status, such as why the process ended.
    """

    status: PartStatus = PartStatus.WAITING
    pid: int | None = None
    restarts: int = 0
    since: float = field(default_factory=time.time)
    detail: str = ""


@dataclass(kw_only=True, slots=True)
class StackState:
    """The state of the whole stack.

    Attributes:
        pid: process id of the supervisor.
        ready_after: seconds from the start until the stack was first ready, or None before.
        addresses: URLs to show to the user, by name.
        notes: remarks to show to the user, such as that no GPU was found.
        error: reason for the phase ``failed``, or "".
    """

    pid: int
    phase: Phase = Phase.STARTING
    started_at: float = field(default_factory=time.time)
    ready_after: float | None = None
    parts: dict[str, Part] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""


def read_state(path: Path) -> StackState | None:
    """Read the state file ``path``, or return None if the file does not exist."""
    try:
        return from_plain(StackState, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


def write_state(path: Path, state: StackState) -> None:
    """Replace the state file ``path`` atomically.

    Raises:
        OSError: The file cannot be written. The previous file still exists.
    """
    replace_file(path, encode(state))
