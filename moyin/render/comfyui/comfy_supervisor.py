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
    """Starts with `start`, ends with `close`; in between what dies or hangs is replaced.

    Args:
        open_session: starts a process.
        on_loss: told why a process was lost, and whether what it was at may be the cause.

    Attributes:
        session: what is there now; None while there is nothing.
        error: why there was nothing the last time.
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
        self._up = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process in the background."""
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop the process."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    def check(self) -> None:
        """
        Raises:
            RuntimeError: nobody looks after the process any more, which is a bug.
        """
        if self._keeping is not None and self._keeping.done():
            raise RuntimeError("the renderer has stopped")

    async def ready(self) -> Session:
        """The process, once it is there.

        Raises:
            ServiceUnavailable: it does not come up.
        """
        try:
            async with asyncio.timeout(self._options.start_timeout):
                await self._up.wait()
        except TimeoutError:
            raise _unavailable() from None
        return self.present()

    def present(self) -> Session:
        """The process.

        Raises:
            ServiceUnavailable: there is none.
        """
        if self.session is None:
            raise _unavailable()
        return self.session

    def take(self, session: Session) -> None:
        """Have this one used from now on."""
        self.session = self._latest = session
        self.error = None
        self._up.set()

    def give_up(self, session: Session) -> None:
        """Have the process replaced."""
        # At once, so that no other prompt is sent there.
        self._let_go()
        session.give_up()

    async def give_up_hanging(self) -> bool:
        """Have a process that is there and does not answer replaced; whether it was that."""
        session = self.session
        if session is None or await session.ended() or session is not self.session:
            return False
        self.give_up(session)
        return True

    async def was_killed(self) -> bool:
        """Whether the latest process is gone because somebody killed it."""
        return self._latest is not None and await self._latest.killed()

    def _let_go(self) -> None:
        self.session = None
        self._up.clear()

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._live()
                # It has rendered at least one prompt, and starting takes its time anyway.
                backoff = Backoff()
            except (MoyinError, OSError) as error:
                self.error = str(error)
                _log.warning("ComfyUI did not start: %s", error)
            await asyncio.sleep(backoff.after(0))

    async def _live(self) -> None:
        """One process, from start to end."""
        async with self._open_session() as session:
            self.take(session)
            try:
                self.error = await session.broken()
                _log.warning("ComfyUI is lost: %s", self.error)
            finally:
                self._let_go()
                blamed = self.error is not None and not await session.killed()
                self._on_loss(self.error or "it was stopped", blamed)


def _unavailable() -> ServiceUnavailable:
    return ServiceUnavailable("ComfyUI is not running yet", retry_after=5)
