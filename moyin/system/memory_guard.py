"""Ends an expendable process of Moyin before the memory of its node is used up.

The kernel ends a process only when nothing else helps, after the whole machine has been slow for a
while, and Ray's memory monitor ends any worker, Serve's controller included, whoever uses the memory.
Each actor that owns an expendable process therefore has a guard of its own, a thread that needs no
memory. The guards of a node agree without messages: each compares the ranks and sizes of all groups of
expendable processes, and a lock file lets only one process end at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from moyin.domain.cluster import MemoryKill
from moyin.system.memory import MemoryReader, MemoryReading, count_kernel_kills
from moyin.system.memory_kills import MemoryKillLog
from moyin.system.ranks import Rank, list_expendable_groups, read_resident_bytes, take_rank

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.5
# After a kill, the kernel needs a moment to free the memory.
_SETTLE_SECONDS = 1.0
# For how long a guard leaves it to the guard of a larger group to end that one.
_PATIENCE_SECONDS = 3.0
_WAIT_SECONDS = 0.5
# A process that used more than this is started again although as much may not be available: it may
# have been the one that used up the memory.
_MAX_NEEDED_BYTES = 2 * 1024**3


class MemoryGuard:
    """Watches the available memory for one expendable process.

    Args:
        rank: the rank that the process gets.
        subject: the name under which a kill is recorded, such as that of the actor.
        find_victim: returns the id of the process, or None while there is none; called by a thread.
        end_victim: ends the process with this id at once.
        reserve_bytes: the process ends when less than this is available; 0 switches the guard off.
        needed_bytes: how much memory, besides the reserve, must be available before the process is
            started; later, what it was last seen to use, if that is more.
        kill_log: where kills are recorded.
        list_groups: see `list_expendable_groups`.
        count_kernel_kills: returns how many processes the node's kernel has ended for lack of memory.
    """

    def __init__(
        self,
        subject: str,
        *,
        rank: Rank,
        find_victim: Callable[[], int | None],
        end_victim: Callable[[int], None],
        reserve_bytes: int,
        needed_bytes: int,
        kill_log: MemoryKillLog,
        read_memory: Callable[[], MemoryReading] | None = None,
        list_groups: Callable[[], list[tuple[Rank, int, int]]] = list_expendable_groups,
        count_kernel_kills: Callable[[], int] = count_kernel_kills,
        lock_path: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subject = subject
        self._rank = rank
        self._find_victim = find_victim
        self._end_victim = end_victim
        self._reserve_bytes = reserve_bytes
        self._needed_bytes = needed_bytes
        self._kill_log = kill_log
        self._read_memory = read_memory or MemoryReader().read
        self._list_groups = list_groups
        self._count_kernel_kills = count_kernel_kills
        self._lock_path = lock_path or _get_lock_path()
        self._clock = clock
        self._short_since: float | None = None
        # The process that was seen last, its size, and how many the kernel had ended by then.
        self._seen: int | None = None
        self._seen_bytes = 0
        self._seen_kernel_kills = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"memory guard of {subject}", daemon=True
        )

    def start(self) -> None:
        """Start the thread, unless the guard is switched off."""
        if self._reserve_bytes:
            self._thread.start()

    def stop(self) -> None:
        """Make the thread end; returns at once."""
        self._stopped.set()

    def find_shortage(self) -> str | None:
        """Return why the process should not be started now, or None if there is enough memory."""
        if not self._reserve_bytes:
            return None
        available = self._read_memory().available
        needed = self._reserve_bytes + min(self._needed_bytes, _MAX_NEEDED_BYTES)
        if available >= needed:
            return None
        return (
            f"waiting for memory: {available >> 20} MiB of the node are available, "
            f"{needed >> 20} MiB are needed"
        )

    async def wait_for_memory(self, on_shortage: Callable[[str], None]) -> None:
        """Wait until there is enough memory for the process.

        Args:
            on_shortage: called with a description of the shortage about twice a second.
        """
        while (shortage := self.find_shortage()) is not None:
            on_shortage(shortage)
            await asyncio.sleep(_WAIT_SECONDS)

    def check(self) -> bool:
        """End the process if the memory is short and it is the first to go; return True if so."""
        victim = self._find_victim()
        reading = self._read_memory()
        self._note_kernel_kill(reading)
        if victim is None:
            self._short_since = None
            return False
        if victim != self._seen:
            take_rank(self._rank, Path(f"/proc/{victim}"))
        self._see(victim)
        if reading.available >= self._reserve_bytes:
            self._short_since = None
            return False
        now = self._clock()
        if self._short_since is None:
            self._short_since = now
        with _hold_lock(self._lock_path) as is_held:
            is_late = now - self._short_since > _PATIENCE_SECONDS
            # Without the lock, another guard has just ended a process.
            if not is_held or not (is_late or self._is_first()):
                return False
            self._end(victim, reading)
            # The lock is held meanwhile, so that no other process ends for memory that is free soon.
            self._stopped.wait(_SETTLE_SECONDS)
        self._short_since = None
        return True

    def _see(self, victim: int) -> None:
        self._seen = victim
        self._seen_bytes = read_resident_bytes(victim)
        self._seen_kernel_kills = self._count_kernel_kills()

    def _note_kernel_kill(self, reading: MemoryReading) -> None:
        """Record that the kernel has ended the process that was seen last, if it probably has.

        The kernel shows only how many processes it has ended on the whole machine.
        """
        if self._seen is None or read_resident_bytes(self._seen):
            return
        if self._count_kernel_kills() != self._seen_kernel_kills:
            self._record("kernel", self._seen_bytes, reading)
            _log.warning("the kernel ended %s for lack of memory", self._subject)
        self._seen = None

    def _is_first(self) -> bool:
        groups = self._list_groups()
        return not groups or max(groups)[2] == os.getpid()

    def _end(self, victim: int, reading: MemoryReading) -> None:
        size = read_resident_bytes(victim)
        self._seen = None
        # Ended before it is recorded, since a full disk or a slow one must not delay it; an actor that
        # ends itself records first.
        if victim != os.getpid():
            self._end_victim(victim)
        self._record("moyin", size, reading)
        _log.warning(
            "ended %s (process %d, %d MiB): only %d MiB of memory were available",
            self._subject,
            victim,
            size >> 20,
            reading.available >> 20,
        )
        if victim == os.getpid():
            self._end_victim(victim)

    def _record(self, by: Literal["moyin", "kernel"], size: int, reading: MemoryReading) -> None:
        self._needed_bytes = max(self._needed_bytes, size)
        kill = MemoryKill(
            subject=self._subject,
            by=by,
            at=time.time(),
            process_bytes=size,
            available_bytes=reading.available,
            total_bytes=reading.total,
        )
        self._kill_log.record(kill)

    def _run(self) -> None:
        while not self._stopped.wait(_CHECK_SECONDS):
            # An error such as ENOMEM must not end the guard.
            try:
                self.check()
            except Exception:
                _log.exception("the memory guard of %s could not check the memory", self._subject)


@contextmanager
def _hold_lock(path: Path) -> Iterator[bool]:
    """Hold a lock file during the block; yield False if another guard holds it.

    The folder is open to all users. If another one has taken the name, the guards of this user do
    without a lock, because a process that ends too many is better than none.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _get_lock_path() -> Path:
    return Path(tempfile.gettempdir()) / f"moyin-memory-{os.getuid()}.lock"
