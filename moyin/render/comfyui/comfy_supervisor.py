"""Keeps a ComfyUI process running, and replaces it when it ends or hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from moyin.errors import MoyinError, ServiceUnavailable
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.session import Session
from moyin.system.processes import Backoff

_log = logging.getLogger(__name__)
# See `moyin.system.memory_guard.MemoryGuard.wait_for_memory`.
WaitForMemory: TypeAlias = "Callable[[Callable[[str], None]], Awaitable[None]]"


class ComfySupervisor:
    """Supervises one ComfyUI process at a time, from `start` to `close`.

    Args:
        open_session: returns a context manager that starts a process and stops it at the end.
        on_loss: called when a process is lost. The arguments are the reason, and True if one of the
            process's prompts may be the cause.
        wait_for_memory: returns when the node has enough memory for a process; called before each
            start with a function that takes the reason of the wait.

    Attributes:
        session: the session of the running process, or None while no process is ready.
        error: why the latest process was lost or failed to start, or None.
        is_changing: whether the process is being replaced for another tenant.
        change_count: how often that has been done.
        start_seconds: how long the latest start took, with the stop of a replaced process.
    """

    def __init__(
        self,
        options: ComfyOptions,
        open_session: Callable[[], AbstractAsyncContextManager[Session]],
        on_loss: Callable[[str, bool], None],
        wait_for_memory: WaitForMemory | None = None,
    ) -> None:
        self._options = options
        self._run_session = open_session
        self._on_loss = on_loss
        self._wait_for_memory = wait_for_memory
        self.session: Session | None = None
        self.error: str | None = None
        self.is_changing = False
        self.change_count = 0
        self.start_seconds: float | None = None
        self._start_begun_at = time.monotonic()
        self._latest: Session | None = None
        self._is_up = asyncio.Event()
        self._supervising: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._supervising = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)

    def check_supervision(self) -> None:
        """Raise `RuntimeError` if the supervising task has ended, which would be a bug."""
        if self._supervising is not None and self._supervising.done():
            raise RuntimeError(
                "the task that supervises ComfyUI has ended before ComfySupervisor.close, so Ray "
                "restarts the actor"
            )

    async def wait_for_session(self) -> Session:
        """Return the session when ComfyUI is ready.

        Raises `ServiceUnavailable` after the ``start_timeout`` of the process's options.
        """
        try:
            async with asyncio.timeout(self._options.start_timeout):
                # Repeated, because another waiter may have had the process replaced meanwhile.
                while self.session is None:
                    await self._is_up.wait()
        except TimeoutError:
            raise _make_unavailable_error() from None
        return self.session

    def require_session(self) -> Session:
        """Return the present session, or raise `ServiceUnavailable` if ComfyUI is not ready."""
        if self.session is None:
            raise _make_unavailable_error()
        return self.session

    def set_session(self, session: Session) -> None:
        self.session = self._latest = session
        self.error = None
        self.is_changing = False
        self.start_seconds = time.monotonic() - self._start_begun_at
        self._is_up.set()

    def replace_session(self, session: Session, reason: str = "its process hung") -> None:
        """Stop the process of a session and start a new one, unless it was replaced already.

        No prompt is blamed for the end of the process. If one is the cause, the caller fails it.

        Args:
            reason: what is wrong with the process, for the log and `error`.
        """
        session.mark_broken(reason)
        if session is self.session:
            # Cleared at once, so that no other prompt is submitted to the old process.
            self._clear_session()

    def change_process(self, session: Session) -> None:
        """Replace the process of a session, which works, for another tenant."""
        self.is_changing = True
        self.change_count += 1
        self._start_begun_at = time.monotonic()
        self.replace_session(session)

    async def replace_hanging_session(self) -> bool:
        """Replace the present process, which hangs; return False if it had ended already."""
        session = self.session
        if session is None or await session.has_ended() or session is not self.session:
            return False
        self.replace_session(session)
        return True

    async def was_killed(self) -> bool:
        """Return whether the latest ComfyUI process was killed by another process."""
        return self._latest is not None and await self._latest.was_killed()

    def _clear_session(self) -> None:
        self.session = None
        self._is_up.clear()

    async def _supervise(self) -> None:
        backoff = Backoff()
        while True:
            try:
                if self._wait_for_memory is not None:
                    await self._wait_for_memory(self._report_wait)
                await self._run_process()
                # Reset the delay before the next start, because the process was ready and has
                # rendered a prompt.
                backoff = Backoff()
            except (MoyinError, OSError) as error:
                self.error = str(error)
                self.is_changing = False
                _log.warning("ComfyUI did not start and is started again: %s", error)
            if not self.is_changing:
                await asyncio.sleep(backoff.compute_delay(0))

    def _report_wait(self, reason: str) -> None:
        self.error = reason

    async def _run_process(self) -> None:
        """Run one ComfyUI process from its start to its end."""
        if not self.is_changing:
            self._start_begun_at = time.monotonic()
        async with self._run_session() as session:
            self.set_session(session)
            try:
                reason = await session.wait_until_broken()
                if self.is_changing:
                    _log.info("ComfyUI is stopped and started again for another tenant")
                else:
                    self.error = reason
                    _log.warning("ComfyUI is stopped and started again: %s", reason)
            finally:
                self._clear_session()
                prompt_may_be_cause = (
                    self.error is not None
                    and not session.is_marked_broken
                    and not await session.was_killed()
                )
                self._on_loss(self.error or "the process was stopped", prompt_may_be_cause)


def _make_unavailable_error() -> ServiceUnavailable:
    return ServiceUnavailable("ComfyUI is still starting; try again", retry_after=5)
