"""One life of a ComfyUI process, from its start to its end or to the day it stops working."""

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
_LOOK_SECONDS = 0.05
_PULSE_SECONDS = 30.0
# Between the last answer of a process that dies and the news of its death.
_EXIT_SECONDS = 1.0
# Needs no model; its end proves that prompts end, which HTTP answers do not.
_TRIVIAL_GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


class Session:
    """A process that has rendered a first prompt, its client, and its drained socket.

    Attributes:
        written: what its prompts write.
        memory: bytes of a card that it may take; None without a card.
        volatile: classes of nodes that may make something else of the same inputs.
    """

    def __init__(
        self,
        process: ComfyProcess,
        client: ComfyClient,
        written: WrittenFiles,
        idle: Callable[[], bool],
        memory: int | None,
        volatile: frozenset[str] = frozenset(),
    ) -> None:
        self.client = client
        self.written = written
        self.memory = memory
        self.volatile = volatile
        self._process = process
        self._idle = idle
        self._broken = asyncio.Event()

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
        idle: Callable[[], bool],
    ) -> AsyncIterator[Session]:
        """Start ComfyUI in a prepared folder and wait until it has finished a prompt; stop it at the end of
        the block.

        Args:
            idle: whether no prompt is at work.

        Raises:
            StackError: it does not start. Its last lines are in the message.
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
                    total = await client.memory()
                    memory = None if total is None else int(total * options.share)
                    volatile = await client.volatile()
                    yield cls(process, client, written, idle, memory, volatile)
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        finally:
            await process.stop()

    def finish(self, prompt_id: str) -> None:
        """Leave nothing of the prompt, which is over, where the next one could find it; blocks.

        Raises:
            OSError: a file can't be moved.
            WorkerLost: a process that the prompt has left does not end.
        """
        self._process.end_strays()
        self.written.end(prompt_id)

    def give_up(self) -> None:
        """Have `broken` return: the process does not do what it should."""
        self._broken.set()

    async def ended(self) -> bool:
        """Whether the process is gone."""
        await asyncio.wait([self._process.exited], timeout=_EXIT_SECONDS)
        return self._process.exited.done()

    async def killed(self) -> bool:
        """Whether the process is gone because somebody killed it: no fault of what it rendered."""
        return await self.ended() and self._process.killed

    async def broken(self) -> str:
        """Wait until the process is of no use any more; says why."""
        given_up = asyncio.create_task(self._broken.wait())
        pulse = asyncio.create_task(self._pulse_stops())
        try:
            await asyncio.wait(
                [self._process.exited, given_up, pulse], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (given_up, pulse):
                task.cancel()
            await asyncio.gather(given_up, pulse, return_exceptions=True)
        if self._process.exited.done():
            return f"it ended with status {self._process.exited.result()}"
        return "it hung" if self._broken.is_set() else "it answers, but executes nothing"

    async def _pulse_stops(self) -> None:
        """Return when the executing thread is dead.

        Not by a prompt: that would drop the cached results, and so the models, of the one before.
        """
        while True:
            await asyncio.sleep(_PULSE_SECONDS)
            try:
                alive = await self.client.pulse()
            except WorkerLost:
                # A node may keep the process too busy to answer; nothing else may.
                alive = not self._idle()
            if not alive:
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
    if not await client.pulse():
        raise StackError("ComfyUI runs without Moyin's bridge; see its log for the import error")
    await _render(client, _TRIVIAL_GRAPH)
    if graph is None:
        return
    try:
        await _render(client, from_json(graph))
    except (InvalidGraph, RenderFailed) as error:
        # Not worth a farm that stands still: the first job will be slow.
        _log.warning("the warm-up graph failed: %s", error)


async def _render(client: ComfyClient, graph: Mapping[str, Any]) -> None:
    prompt_id = str(uuid.uuid4())
    await client.submit(prompt_id, graph)
    entry = (await client.look(prompt_id)).entry
    while entry is None:
        await asyncio.sleep(_LOOK_SECONDS)
        entry = (await client.look(prompt_id)).entry
    raise_failure(entry)
