"""Publishes the state of the stack in a JSON file, and locks the data folder for one supervisor."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from moyin.domain.serialization import encode, from_plain
from moyin.errors import StackError
from moyin.stack.layout import replace_file


class Phase(StrEnum):
    """The possible phases of the stack as a whole."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class PartStatus(StrEnum):
    """The possible statuses of a part of the stack."""

    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    BACKING_OFF = "backing off"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(kw_only=True, slots=True)
class PartState:
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
    parts: dict[str, PartState] = field(default_factory=dict)
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
    """Replace the state file ``path`` atomically, or raise `OSError` and leave it unchanged."""
    replace_file(path, encode(state))


class SupervisorLock:
    """A file lock that permits one supervisor per data folder; the file contains its process id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock, or raise `StackError` if another supervisor holds it."""
        # With O_CLOEXEC, children do not inherit the lock, which they would hold until they end.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StackError(
                f"another supervisor, whose pid is in {self._path}, already runs in this data "
                "folder: run `moyin down` or set MOYIN_DATA to another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def find_lock_holder(path: Path) -> int | None:
    """Return the pid of the supervisor that holds the lock, or None if the lock is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid_bytes = os.pread(descriptor, 32, 0)
        return int(pid_bytes) if pid_bytes else None
    finally:
        os.close(descriptor)
    return None
