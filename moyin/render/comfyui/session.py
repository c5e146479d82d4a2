"""`Session`: one ComfyUI process, from its start until it ends or stops working."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import from_json

from moyin.errors import InvalidGraph, RenderFailed, StackError, WorkerLost
from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.paths import HostPaths
from moyin.render.comfyui.process import ComfyProcess, Spawner
from moyin.render.comfyui.stream import EventStream
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.response import raise_failure
from moyin.render.protocol.wire import Message

__all__ = ["Session"]

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_CHECK_SECONDS = 30.0
# Longest time between the last response of a dying process and the notice of its exit.
_EXIT_SECONDS = 1.0
# Needs no model. Its end proves that prompts are executed, which HTTP responses do not.
_TRIVIAL_GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


class Session:
    """A process that has rendered a first prompt, with its client.

    Attributes:
        written: the files that its prompts write.
        memory: bytes of GPU memory that it may use; None without a GPU.
        volatile: node classes whose output may differ for the same inputs.
    """

    def __init__(
        self,
        process: ComfyProcess,
        client: ComfyClient,
        written: WrittenFiles,
        is_idle: Callable[[], bool],
        memory: int | None,
        volatile: frozenset[str] = frozenset(),
    ) -> None:
        self.client = client
        self.written = written
        self.memory = memory
        self.volatile = volatile
        self._process = process
        self._is_idle = is_idle
        self._given_up = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        options: ComfyOptions,
        folder: ProcessFolder,
        spawner: Spawner,
        *,
        on_event: Callable[[Message], None],
        on_binary: Callable[[bytes], None],
        is_idle: Callable[[], bool],
    ) -> AsyncIterator[Session]:
        """Start ComfyUI in a prepared folder and stop it at the end of the block.

        Returns when it has finished a prompt.

        Args:
            is_idle: returns whether no prompt is in progress.

        Raises:
            StackError: it does not start; the message has the last lines of its log.
        """
        process = await ComfyProcess.start(options, folder, spawner)
        try:
            paths = HostPaths.of(options)
            async with ComfyClient(process.address, uuid.uuid4().hex, paths) as client:
                stream = EventStream(
                    client,
                    lambda message: on_event(paths.event(message)),
                    lambda frame: on_binary(paths.frame(frame)),
                )
                reading = asyncio.create_task(stream.run())
                try:
                    await _first_prompts(process, client, stream, options)
                    written = WrittenFiles(folder)
                    await asyncio.to_thread(process.settle)
                    await asyncio.to_thread(written.clear)
                    total = await client.total_memory()
                    memory = None if total is None else int(total * options.share)
                    volatile = await client.volatile_classes()
                    yield cls(process, client, written, is_idle, memory, volatile)
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        finally:
            await process.stop()

    def finish(self, prompt_id: str) -> None:
        """Move the files and end the processes of a finished prompt, for the next one; blocks.

        Raises:
            OSError: a file can't be moved.
            WorkerLost: a process that the prompt started does not end.
        """
        self._process.end_strays()
        self.written.end(prompt_id)

    def give_up(self) -> None:
        """Make `wait_until_broken` return: the process does not work as it should."""
        self._given_up.set()

    async def ended(self) -> bool:
        """Return whether the process has ended."""
        await asyncio.wait([self._process.exited], timeout=_EXIT_SECONDS)
        return self._process.exited.done()

    async def killed(self) -> bool:
        """Return whether the process was killed from outside, which no prompt is to blame for."""
        return await self.ended() and self._process.was_killed

    async def wait_until_broken(self) -> str:
        """Return the reason when the process has ended or does not work any more."""
        given_up = asyncio.create_task(self._given_up.wait())
        executor_dead = asyncio.create_task(self._wait_until_executor_is_dead())
        try:
            await asyncio.wait(
                [self._process.exited, given_up, executor_dead],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in (given_up, executor_dead):
                task.cancel()
            await asyncio.gather(given_up, executor_dead, return_exceptions=True)
        if self._process.exited.done():
            return f"it ended with status {self._process.exited.result()}"
        return "it hung" if self._given_up.is_set() else "it answers, but executes nothing"

    async def _wait_until_executor_is_dead(self) -> None:
        """Return when the executing thread is dead.

        It sends no prompt to find out: that would drop the cached results and models of the last.
        """
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                is_alive = await self.client.is_executor_alive()
            except WorkerLost:
                # Only an executing node may keep the process too busy to answer.
                is_alive = not self._is_idle()
            if not is_alive:
                return


async def _first_prompts(
    process: ComfyProcess,
    client: ComfyClient,
    stream: EventStream,
    options: ComfyOptions,
) -> None:
    seconds = options.start_timeout
    rendering = asyncio.create_task(_warm_up(client, stream, options.warm_up))
    try:
        await asyncio.wait(
            [rendering, process.exited], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if process.exited.done():
            status = process.exited.result()
            raise StackError(f"ComfyUI ended with status {status}:\n{process.last_lines()}")
        if not rendering.done():
            raise StackError(f"ComfyUI is not ready after {seconds} s:\n{process.last_lines()}")
        await rendering
    finally:
        rendering.cancel()
        await asyncio.gather(rendering, return_exceptions=True)


async def _warm_up(client: ComfyClient, stream: EventStream, graph: str | None) -> None:
    await stream.connected.wait()
    if not await client.is_executor_alive():
        raise StackError("ComfyUI could not load Moyin's bridge; see its log for the import error")
    await _render(client, _TRIVIAL_GRAPH)
    if graph is None:
        return
    try:
        await _render(client, from_json(graph))
    except (InvalidGraph, RenderFailed) as error:
        # The pool can still render; only the first job will be slow.
        _log.warning("the warm-up graph failed: %s", error)


async def _render(client: ComfyClient, graph: Mapping[str, Any]) -> None:
    prompt_id = str(uuid.uuid4())
    await client.submit(prompt_id, graph)
    entry = (await client.prompt_state(prompt_id)).entry
    while entry is None:
        await asyncio.sleep(_POLL_SECONDS)
        entry = (await client.prompt_state(prompt_id)).entry
    raise_failure(entry)
