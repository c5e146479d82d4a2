"""`WorkerRunner`: Temporal workers of one process, kept running for as long as asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from temporalio.client import Client
from temporalio.worker import Worker

from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.client import Temporal

__all__ = ["WorkerRunner"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 10.0


class WorkerRunner:
    """Runs workers side by side; when one ends by an error, all are made anew.

    Args:
        make: the workers of a connection; called once for each.

    Attributes:
        error: why the last ones ended; None: they run, or wait for Temporal.
    """

    def __init__(self, temporal: Temporal, make: Callable[[Client], Sequence[Worker]]) -> None:
        self._temporal = temporal
        self._make = make
        self._workers: Sequence[Worker] = ()
        self._stopping = asyncio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        """Work until `stop`; outages of Temporal only delay it."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                self._workers = self._make(await self._temporal.client())
                self.error = None
                await self._run_all()
                pause = _FIRST_PAUSE_SECONDS
            except ServiceUnavailable as error:
                _log.info("workers wait for Temporal: %s", error)
            except Exception as error:
                self.error = error
                _log.exception("a worker has ended; starting others")
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    async def stop(self) -> None:
        """Take no more tasks, give running ones a moment, and let `run` return."""
        self._stopping.set()
        await self._shut_down()

    async def _run_all(self) -> None:
        """Return, or raise, when one of them has ended or is to end, and then all have."""
        running = [asyncio.create_task(worker.run()) for worker in self._workers]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((*running, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await self._shut_down()
            ends = await asyncio.gather(*running, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _shut_down(self) -> None:
        await asyncio.gather(*(worker.shutdown() for worker in self._workers))
