"""`DispatchBuffer`: which jobs the sweeper need not look for any more."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from moyin.store.jobs import JobStore

__all__ = ["DispatchBuffer"]

_log = logging.getLogger(__name__)
_SECONDS = 1.0
# As many as go into one statement; the next second takes the next ones.
_AT_ONCE = 500


class DispatchBuffer:
    """Of first attempts. Written down together, a moment later.

    Most jobs run by then, and their rows say so: for them nothing is left to write. Nothing hangs
    on a mark that is lost with its process: starting a job twice is harmless.
    """

    def __init__(self, jobs: JobStore, *, seconds: float = _SECONDS) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._waiting: dict[str, None] = {}
        self._writing: asyncio.Task[None] | None = None

    def add(self, job_id: str) -> None:
        self._waiting[job_id] = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_later())

    async def close(self) -> None:
        """Write what waits."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        while self._waiting:
            await self._write()

    async def _write_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._seconds)
            await self._write()

    async def _write(self) -> None:
        ids = list(self._waiting)[:_AT_ONCE]
        for job_id in ids:
            del self._waiting[job_id]
        try:
            await self._jobs.mark_dispatched(*ids)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("%d jobs will be started once more: %s", len(ids), error)
