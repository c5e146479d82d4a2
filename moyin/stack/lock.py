"""One supervisor per data folder, by a file lock that ends with the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from moyin.errors import StackError

__all__ = ["SupervisorLock", "holder"]


class SupervisorLock:
    """Held for as long as the supervisor lives. The file holds its pid."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """
        Raises:
            StackError: another supervisor has it.
        """
        # O_CLOEXEC: a child that inherited the lock would keep it after our death.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StackError(f"a supervisor is running already (see {self._path})") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder(path: Path) -> int | None:
    """The pid of the supervisor that lives; None when there is none."""
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
