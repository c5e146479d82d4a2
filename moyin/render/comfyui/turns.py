"""One prompt at a time in a ComfyUI process, and no file of another one's there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from moyin.errors import WorkerLost
from moyin.render.comfyui.comfy_supervisor import ComfySupervisor
from moyin.render.comfyui.inputs import InputFiles
from moyin.render.comfyui.session import Session

__all__ = ["Turns"]

_log = logging.getLogger(__name__)


class Turns:
    """From the placing of a prompt's files until they are out of the process's reach again."""

    def __init__(self, keeper: ComfySupervisor, inputs: InputFiles) -> None:
        self._keeper = keeper
        self._inputs = inputs
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def none(self) -> AsyncIterator[None]:
        """No prompt has a turn in the block, nor are files of one being moved."""
        async with self._lock:
            yield

    @asynccontextmanager
    async def take(
        self, session: Session, prompt_id: str, names: Collection[str]
    ) -> AsyncIterator[bool]:
        """The prompt's turn, with its input files in their place; False: the process is another.

        Raises:
            OSError: files can't be placed or moved; the process is given up.
            WorkerLost: what the prompt has started does not end; the process is given up.
        """
        async with self._lock:
            if session is not self._keeper.session:
                yield False
                return
            try:
                await _to_the_end(self._begin, session, prompt_id, names)
                yield True
            finally:
                await self._finish(session, prompt_id)

    def _begin(self, session: Session, prompt_id: str, names: Collection[str]) -> None:
        session.written.begin(prompt_id)
        self._inputs.place(names)

    async def _finish(self, session: Session, prompt_id: str) -> None:
        if session is not self._keeper.session:
            # The next process begins with an empty folder.
            return
        try:
            await _to_the_end(self._end, session, prompt_id)
        except (OSError, WorkerLost) as error:
            _log.warning("ComfyUI is replaced, a prompt left what can't be removed: %s", error)
            if session is self._keeper.session:
                self._keeper.give_up(session)
            raise

    def _end(self, session: Session, prompt_id: str) -> None:
        session.finish(prompt_id)
        self._inputs.take_away()


async def _to_the_end(work: Callable[..., None], *given: Any) -> None:
    """Do this in a thread. Whoever cancels it waits: a thread can't be stopped, and would move files
    during the next turn."""
    working = asyncio.create_task(asyncio.to_thread(work, *given))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([working])
        if not working.cancelled() and (error := working.exception()) is not None:
            _log.warning("files of a cancelled prompt: %s", error)
        raise
