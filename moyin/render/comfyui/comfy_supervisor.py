"""`ComfySupervisor`: keeps a ComfyUI process running, one `Session` after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from moyin.errors import MoyinError, ServiceUnavailable
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.session import Session
from moyin.system.backoff import Backoff

__all__ = ["ComfySupervisor"]

_log = logging.getLogger(__name__)


class ComfySupervisor:
    """Replaces the process whenever it dies or hangs, from `start` to `close`.

    Args:
        open_session: starts a process.
        on_loss: called with the reason for the loss of a process, and whether its prompts may be
            the cause.

    Attributes:
        session: the present session; None while no process is up.
        error: why the latest process was lost or failed to start.
    """

    def __init__(
        self,
        options: ComfyOptions,
        open_session: Callable[[], AbstractAsyncContextManager[Session]],
        on_loss: Callable[[str, bool], None],
    ) -> None:
        self._options = options
        self._open_session = open_session
        self._on_loss = on_loss
        self.session: Session | None = None
        self.error: str | None = None
        self._latest: Session | None = None
        self._is_up = asyncio.Event()
        self._supervising: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process in the background."""
        self._supervising = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """Stop the process."""
        if self._supervising is not None:
            self._supervising.cancel()
            await asyncio.gather(self._supervising, return_exceptions=True)

    def check(self) -> None:
        """Check that the process is still supervised.

        Raises:
            RuntimeError: the supervising task has ended, which is a bug.
        """
        if self._supervising is not None and self._supervising.done():
            raise RuntimeError("the task that supervises ComfyUI has ended")

    async def wait_for_session(self) -> Session:
        """Return the session, once there is one.

        Raises:
            ServiceUnavailable: the process does not start in time.
        """
        try:
            async with asyncio.timeout(self._options.start_timeout):
                await self._is_up.wait()
        except TimeoutError:
            raise _unavailable() from None
        return self.require_session()

    def require_session(self) -> Session:
        """Return the session.

        Raises:
            ServiceUnavailable: no process is up.
        """
        if self.session is None:
            raise _unavailable()
        return self.session

    def use(self, session: Session) -> None:
        """Make this the present session."""
        self.session = self._latest = session
        self.error = None
        self._is_up.set()

    def give_up(self, session: Session) -> None:
        """Have the process replaced."""
        # At once, so that no other prompt is sent to it.
        self._clear_session()
        session.give_up()

    async def give_up_hanging(self) -> bool:
        """Have the process replaced if it is alive; return whether it was."""
        session = self.session
        if session is None or await session.ended() or session is not self.session:
            return False
        self.give_up(session)
        return True

    async def was_killed(self) -> bool:
        """Return whether the latest process was killed from outside."""
        return self._latest is not None and await self._latest.killed()

    def _clear_session(self) -> None:
        self.session = None
        self._is_up.clear()

    async def _supervise(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._run_once()
                # It has rendered a prompt, so there is no reason to wait longer the next time.
                backoff = Backoff()
            except (MoyinError, OSError) as error:
                self.error = str(error)
                _log.warning("ComfyUI did not start: %s", error)
            await asyncio.sleep(backoff.after(0))

    async def _run_once(self) -> None:
        """Run one process from its start to its end."""
        async with self._open_session() as session:
            self.use(session)
            try:
                self.error = await session.wait_until_broken()
                _log.warning("ComfyUI is lost: %s", self.error)
            finally:
                self._clear_session()
                is_blamed = self.error is not None and not await session.killed()
                self._on_loss(self.error or "it was stopped", is_blamed)


def _unavailable() -> ServiceUnavailable:
    return ServiceUnavailable("ComfyUI is not running yet", retry_after=5)
