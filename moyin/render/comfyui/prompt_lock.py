"""Ensures that ComfyUI executes one prompt at a time and can access only that prompt's files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from moyin.errors import WorkerLost
from moyin.render.comfyui.comfy_supervisor import ComfySupervisor
from moyin.render.comfyui.inputs import InputFiles
from moyin.render.comfyui.session import Session

_log = logging.getLogger(__name__)
_NOT_CLEAN = "the files of a prompt can't be removed"
ResultT = TypeVar("ResultT")


class PromptLock:
    """A lock that one prompt holds while its files are in the folders of the ComfyUI process."""

    def __init__(self, supervisor: ComfySupervisor, inputs: InputFiles) -> None:
        self._supervisor = supervisor
        self._inputs = inputs
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the lock without a prompt, so that no prompt is executed while the block runs."""
        async with self._lock:
            yield

    @asynccontextmanager
    async def hold_for(
        self, session: Session, prompt_id: str, tenant: str, file_names: Collection[str]
    ) -> AsyncIterator[bool]:
        """Hold the lock for a tenant's prompt, with its input files in the process's folder.

        Yields True, or False without placing files if the session's process has been replaced.
        Replaces ComfyUI if the cleanup fails, and raises the cleanup's error, such as `OSError` or
        `WorkerLost`.
        """
        async with self._lock:
            if session is not self._supervisor.session:
                yield False
                return
            try:
                await run_to_end(
                    asyncio.to_thread(self._prepare_prompt, session, prompt_id, tenant, file_names)
                )
                yield True
            finally:
                await self._release_prompt(session, prompt_id)

    def _prepare_prompt(
        self, session: Session, prompt_id: str, tenant: str, file_names: Collection[str]
    ) -> None:
        session.written_files.begin_prompt(prompt_id, tenant)
        self._inputs.place_files(file_names)

    async def _release_prompt(self, session: Session, prompt_id: str) -> None:
        if session is not self._supervisor.session:
            return  # the next process begins with an empty folder
        await run_to_end(self._clean_up_or_replace(session, prompt_id))

    async def _clean_up_or_replace(self, session: Session, prompt_id: str) -> None:
        try:
            await asyncio.to_thread(self._clean_up, session, prompt_id)
        except Exception as error:
            # Whatever the error is, something of the prompt may be left.
            _log.warning(
                "ComfyUI is replaced, because prompt %s can't be cleaned up: %s", prompt_id, error
            )
            if session is self._supervisor.session:
                # The tenant gets the reason, and other errors may name paths of the machine.
                reason = error.message if isinstance(error, WorkerLost) else _NOT_CLEAN
                self._supervisor.replace_session(session, reason)
            raise

    def _clean_up(self, session: Session, prompt_id: str) -> None:
        session.finish_prompt(prompt_id)
        self._inputs.remove_placed_files()


async def run_to_end(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run the coroutine to its end, even if this task is cancelled meanwhile.

    A cancelled task can't stop its thread, which would move files while the next prompt executes.
    """
    work_task = asyncio.create_task(work)
    try:
        return await asyncio.shield(work_task)
    except asyncio.CancelledError:
        while not work_task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([work_task])
        if not work_task.cancelled() and (error := work_task.exception()) is not None:
            _log.warning("the cleanup of a cancelled prompt has failed: %s", error)
        raise
