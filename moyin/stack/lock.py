"""Ensures one supervisor per data folder with a file lock, which ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from moyin.errors import StackError

__all__ = ["SupervisorLock", "lock_holder"]


class SupervisorLock:
    """A file lock that ensures one supervisor per data folder; the file has its process id."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            StackError: Another supervisor holds the lock.
        """
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


def lock_holder(path: Path) -> int | None:
    """Return the pid of the supervisor that holds the lock, or None if the lock is free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0)
        return int(text) if text else None
    finally:
        os.close(descriptor)
    return None
