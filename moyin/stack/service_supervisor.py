"""Keeps one service alive: starts it, waits until it serves, starts it again when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from moyin.errors import StackError
from moyin.stack.service import Service
from moyin.stack.state import Part, PartStatus
from moyin.system.backoff import Backoff
from moyin.system.logfile import LogFile
from moyin.system.processes import SERVICE_VARIABLE, STACK_VARIABLE, Child, end_all

__all__ = ["ServiceSupervisor"]

_log = logging.getLogger(__name__)
# Failures of a first start that are likely to repeat: tell the person instead of trying for ever.
_FIRST_ATTEMPTS = 3


class ServiceSupervisor:
    """Runs one service for as long as `run` is not cancelled.

    Args:
        stack_id: marks the service's processes (see `processes.find`).
        log: closed when `run` ends.
        changed: called after every change of ``part``.
        after_ready: what has to follow every (re)start, such as deploying the apps.
        check_seconds: pause between two looks at whether the service is broken.
    """

    def __init__(
        self,
        service: Service,
        *,
        stack_id: str,
        log: LogFile,
        part: Part,
        changed: Callable[[], None],
        after_ready: Callable[[], Awaitable[None]] | None = None,
        backoff: Backoff | None = None,
        check_seconds: float = 2.0,
    ) -> None:
        self.part = part
        self.ready = asyncio.Event()
        self._service = service
        self._stack_id = stack_id
        self._log = log
        self._changed = changed
        self._after_ready = after_ready
        self._backoff = backoff or Backoff()
        self._check_seconds = check_seconds
        self._was_ready = False
        self._hopeless = False

    async def run(self) -> None:
        """
        Raises:
            StackError: the service did not come up although it was tried several times.
        """
        try:
            await self._keep()
        finally:
            self._log.close()

    async def _keep(self) -> None:
        attempt = 0
        while True:
            started = time.monotonic()
            reason = await self._once()
            attempt += 1
            _log.warning("%s: %s", self._service.name, reason)
            if not self._was_ready and (self._hopeless or attempt >= _FIRST_ATTEMPTS):
                self._become(PartStatus.FAILED, reason)
                told = (
                    reason
                    if self._hopeless
                    else f"{self._service.name} does not start: {reason} "
                    f"(see `moyin logs {self._service.name}`)"
                )
                raise StackError(told)
            # Whatever it left would hold its ports, its files or the graphics card.
            await asyncio.to_thread(end_all, self._stack_id, self._service.name)
            delay = self._backoff.after(time.monotonic() - started)
            self.part.restarts += 1
            self._become(PartStatus.BACKING_OFF, f"{reason}; again in {delay:.1f} s")
            await asyncio.sleep(delay)

    async def _once(self) -> str:
        """One life of the process; returns why it ended."""
        self._become(PartStatus.STARTING, "")
        environ = {
            **self._service.environ,
            STACK_VARIABLE: self._stack_id,
            SERVICE_VARIABLE: self._service.name,
        }
        try:
            child = await Child.start(
                self._service.command,
                environ,
                self._log,
                timer_slack_ns=self._service.timer_slack_ns,
            )
        except OSError as error:
            return f"cannot be run: {error.strerror}"
        self.part.pid = child.pid
        ended = asyncio.create_task(child.wait())
        settled = asyncio.create_task(self._settle())
        broken = asyncio.create_task(self._broken(child.pid))
        try:
            await asyncio.wait({ended, settled, broken}, return_when=asyncio.FIRST_COMPLETED)
            if settled.done() and not ended.done():
                failure = settled.exception()
                if isinstance(failure, StackError | TimeoutError):
                    return str(failure)
                settled.result()
            await asyncio.wait({ended, broken}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                return broken.result()
            status = ended.result()
            return (
                f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
            )
        finally:
            self.ready.clear()
            broken.cancel()
            settled.cancel()
            with suppress(asyncio.CancelledError, StackError, TimeoutError):
                await settled
            await asyncio.gather(broken, return_exceptions=True)
            await child.stop(self._service.stop_seconds)
            ended.cancel()
            self.part.pid = None
            self._become(PartStatus.STOPPED, self.part.detail)

    async def _broken(self, pid: int) -> str:
        """Return why the process has to be started again although it runs; wait until then."""
        await self.ready.wait()
        while True:
            await asyncio.sleep(self._check_seconds)
            if self._service.broken is not None:
                reason = await asyncio.to_thread(self._service.broken, pid)
                if reason is not None:
                    return reason

    async def _settle(self) -> None:
        limit = self._service.ready_seconds
        try:
            async with asyncio.timeout(limit):
                await self._service.ready()
        except TimeoutError:
            raise StackError(f"was not ready within {limit:.0f} s") from None
        self._become(PartStatus.UP, "")
        self.ready.set()
        if self._after_ready is not None:
            try:
                await self._after_ready()
            except StackError:
                # What was refused once (an app that does not start) is refused again.
                self._hopeless = True
                raise
        self._was_ready = True

    def _become(self, status: PartStatus, detail: str) -> None:
        self.part.status = status
        self.part.detail = detail
        self.part.since = time.time()
        self._changed()
