"""Starts a service, waits until it is ready, and restarts it when it ends or has a fault."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from moyin.errors import StackError
from moyin.stack.patience import wait_patiently
from moyin.stack.service import Service
from moyin.stack.state import PartState, PartStatus
from moyin.system.logfile import LogFile
from moyin.system.processes import (
    SERVICE_VARIABLE,
    STACK_VARIABLE,
    Backoff,
    ChildProcess,
    end_processes,
)

_log = logging.getLogger(__name__)
# The number of starts after which a service that has never been ready is not started again.
_FIRST_START_ATTEMPTS = 3


class ServiceSupervisor:
    """Runs one service until `run` is cancelled.

    Args:
        stack_id: id in the environment of the service's processes (see `processes.find_processes`).
        log: log of the service's output, which `run` closes.
        part: published state of the service.
        on_change: called after each change of ``part``.
        after_ready: called after each start and restart, for example to deploy the apps.
        check_seconds: pause between two calls of the service's ``find_fault``.

    Attributes:
        ready: set while the service is ready.
    """

    def __init__(
        self,
        service: Service,
        *,
        stack_id: str,
        log: LogFile,
        part: PartState,
        on_change: Callable[[], None],
        after_ready: Callable[[], Awaitable[None]] | None = None,
        backoff: Backoff | None = None,
        check_seconds: float = 2.0,
    ) -> None:
        self.part = part
        self.ready = asyncio.Event()
        self._service = service
        self._stack_id = stack_id
        self._log = log
        self._on_change = on_change
        self._after_ready = after_ready
        self._backoff = backoff or Backoff()
        self._check_seconds = check_seconds
        self._was_ready = False
        self._is_permanent_failure = False

    async def run(self) -> None:
        """Keep the service running; raise `StackError` if it fails several times at the start."""
        try:
            await self._run_forever()
        finally:
            self._log.close()

    async def _run_forever(self) -> None:
        attempt = 0
        while True:
            start_time = time.monotonic()
            reason = await self._run_once()
            attempt += 1
            _log.warning("service %s must be restarted: %s", self._service.name, reason)
            if not self._was_ready and (
                self._is_permanent_failure or attempt >= _FIRST_START_ATTEMPTS
            ):
                self._set_status(PartStatus.FAILED, reason)
                message = (
                    reason
                    if self._is_permanent_failure
                    else f"service {self._service.name} does not start: {reason} "
                    f"(see `moyin logs {self._service.name}`)"
                )
                raise StackError(message)
            # Remaining processes would occupy the ports, files or GPU of the restarted service.
            await asyncio.to_thread(end_processes, self._stack_id, self._service.name)
            delay = self._backoff.compute_delay(time.monotonic() - start_time)
            self.part.restarts += 1
            self._set_status(PartStatus.BACKING_OFF, f"{reason}; restarts in {delay:.1f} s")
            await asyncio.sleep(delay)

    async def _run_once(self) -> str:
        """Run the service's process until it ends or must be restarted, and return the reason."""
        self._set_status(PartStatus.STARTING, "")
        environ = {
            **self._service.environ,
            STACK_VARIABLE: self._stack_id,
            SERVICE_VARIABLE: self._service.name,
        }
        try:
            child = await ChildProcess.start(
                self._service.command,
                environ,
                self._log,
                timer_slack_ns=self._service.timer_slack_ns,
            )
        except OSError as error:
            return f"{self._service.command[0]} cannot be run: {error.strerror}"
        self.part.pid = child.pid
        exit_task = asyncio.create_task(child.wait())
        ready_task = asyncio.create_task(self._wait_until_ready())
        fault_task = asyncio.create_task(self._wait_for_fault(child.pid))
        try:
            await asyncio.wait(
                {exit_task, ready_task, fault_task}, return_when=asyncio.FIRST_COMPLETED
            )
            if ready_task.done() and not exit_task.done():
                failure = ready_task.exception()
                if isinstance(failure, StackError | TimeoutError):
                    return str(failure)
                ready_task.result()
            await asyncio.wait({exit_task, fault_task}, return_when=asyncio.FIRST_COMPLETED)
            if not exit_task.done():
                return fault_task.result()
            status = exit_task.result()
            if status >= 0:
                return f"its process exited with status {status}"
            return f"its process was killed by signal {-status}"
        finally:
            self.ready.clear()
            fault_task.cancel()
            ready_task.cancel()
            with suppress(asyncio.CancelledError, StackError, TimeoutError):
                await ready_task
            await asyncio.gather(fault_task, return_exceptions=True)
            await child.stop(self._service.stop_seconds)
            exit_task.cancel()
            self.part.pid = None
            self._set_status(PartStatus.STOPPED, self.part.detail)

    async def _wait_for_fault(self, pid: int) -> str:
        """Wait until the service's process has a fault, and return the reason."""
        await self.ready.wait()
        while True:
            await asyncio.sleep(self._check_seconds)
            if self._service.find_fault is not None:
                reason = await asyncio.to_thread(self._service.find_fault, pid)
                if reason is not None:
                    return reason

    async def _wait_until_ready(self) -> None:
        limit_seconds = self._service.ready_seconds
        try:
            await wait_patiently(self._service.wait_ready(), limit_seconds)
        except TimeoutError:
            raise StackError(f"the service was not ready within {limit_seconds:.0f} s") from None
        self._set_status(PartStatus.UP, "")
        self.ready.set()
        if self._after_ready is not None:
            try:
                await self._after_ready()
            except StackError:
                # A retry would fail as well, because the configuration is rejected or an app fails.
                self._is_permanent_failure = True
                raise
        self._was_ready = True

    def _set_status(self, status: PartStatus, detail: str) -> None:
        self.part.status = status
        self.part.detail = detail
        self.part.since = time.time()
        self._on_change()
