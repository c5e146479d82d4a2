"""What the supervisor tells the command line: a small JSON file, replaced at every change."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from moyin.domain.serialization import encode, from_plain
from moyin.stack.layout import replace_file

__all__ = ["Part", "PartStatus", "Phase", "StackState", "read", "write"]


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class PartStatus(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    BACKING_OFF = "backing off"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(kw_only=True, slots=True)
class Part:
    """One supervised process, or the apps as a whole.

    Attributes:
        since: Unix time of the last change of ``status``.
        detail: what a person should know, such as why it stopped.
    """

    status: PartStatus = PartStatus.WAITING
    pid: int | None = None
    restarts: int = 0
    since: float = field(default_factory=time.time)
    detail: str = ""


@dataclass(kw_only=True, slots=True)
class StackState:
    """The whole stack.

    Attributes:
        addresses: what to show a person, by name.
        notes: remarks for a person, such as that there is no GPU.
        error: why the phase is ``failed``.
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


def read(path: Path) -> StackState | None:
    """The state in ``path``; None when there is none."""
    try:
        return from_plain(StackState, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


def write(path: Path, state: StackState) -> None:
    """
    Raises:
        OSError: it can't be written; the state of before stays.
    """
    replace_file(path, encode(state))
