"""Starts a ComfyUI process, tests it with a prompt, and watches it until it ends or hangs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from pydantic_core import from_json

from moyin.errors import (
    InvalidGraph,
    RenderFailed,
    ResourceLimitExceeded,
    StackError,
    WorkerLost,
)
from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.process import ComfyProcess, Spawner
from moyin.render.comfyui.stream import EventStream
from moyin.render.comfyui.untrusted_json import MalformedResponse
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.response import raise_for_failure
from moyin.render.protocol.wire import EventMessage

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_CHECK_SECONDS = 30.0
_MEASURE_SECONDS = 0.25
# How long to wait for the exit of a process that no longer responds.
_EXIT_SECONDS = 1.0
_HANGING = "its process hung"
# A graph without models. Its execution proves that ComfyUI works, which HTTP responses do not.
_TEST_GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


class Session:
    """A ComfyUI process that has rendered a first prompt, with its HTTP client.

    Attributes:
        client: HTTP client of the process.
        written_files: files that prompts have written.
        memory_bytes: GPU memory that the process may use, or None without a GPU.
        volatile_classes: node classes that may return different outputs for the same inputs.
        tenant: anonymous id of the only tenant whose prompts the process executes; None if it is
            bound to none.
        refused_processes: number of processes that the latest prompt was not allowed to create.
    """

    def __init__(
        self,
        process: ComfyProcess,
        client: ComfyClient,
        written_files: WrittenFiles,
        is_idle: Callable[[], bool],
        memory_bytes: int | None,
        volatile_classes: frozenset[str] = frozenset(),
    ) -> None:
        self.client = client
        self.written_files = written_files
        self.memory_bytes = memory_bytes
        self.volatile_classes = volatile_classes
        self.tenant: str | None = None
        self.refused_processes = 0
        self._process = process
        self._is_idle = is_idle
        self._was_marked_broken = asyncio.Event()
        self._broken_reason = _HANGING

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """Kill ComfyUI to free memory; may be called by any thread."""
        self._process.kill()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        options: ComfyOptions,
        folder: ProcessFolder,
        spawner: Spawner,
        *,
        on_event: Callable[[EventMessage], None],
        on_binary: Callable[[bytes], None],
        is_idle: Callable[[], bool],
    ) -> AsyncIterator[Session]:
        """Start ComfyUI, wait until it has rendered a prompt, and stop it at the end of the block.

        Args:
            folder: the prepared folder of the process.
            on_event, on_binary: called with each event and each binary frame that ComfyUI sends.
            is_idle: returns whether no prompt is running.

        Raises:
            StackError: ComfyUI does not start; the message has the last lines of its log.
        """
        process = await ComfyProcess.start(options, folder, spawner)
        try:
            paths = HostPathFilter.create_for_process(options)
            async with ComfyClient(process.address, uuid.uuid4().hex, paths) as client:
                stream = EventStream(
                    client,
                    lambda message: on_event(paths.hide_in_event(message)),
                    lambda frame: on_binary(paths.hide_in_frame(frame)),
                )
                reading_task = asyncio.create_task(stream.run())
                try:
                    await _run_first_prompts(process, client, stream, options)
                    written_files = WrittenFiles(folder)
                    await asyncio.to_thread(process.exempt_present_processes)
                    await asyncio.to_thread(written_files.remove_unclaimed)
                    total_memory = await client.read_total_memory()
                    memory_bytes = (
                        None if total_memory is None else int(total_memory * options.share)
                    )
                    volatile_classes = await client.list_volatile_classes()
                    yield cls(
                        process, client, written_files, is_idle, memory_bytes, volatile_classes
                    )
                finally:
                    reading_task.cancel()
                    await asyncio.gather(reading_task, return_exceptions=True)
        finally:
            await process.stop()

    def finish_prompt(self, prompt_id: str) -> None:
        """Move a finished prompt's files out of ComfyUI's reach, and kill the prompt's processes.

        Blocks. Raises `OSError` or `WorkerLost` if that fails; then ComfyUI must be replaced.
        """
        self.refused_processes = self._process.kill_new_processes()
        self.written_files.end_prompt(prompt_id)

    def mark_broken(self, reason: str = _HANGING) -> None:
        """Make `wait_until_broken` return ``reason``; later calls have no effect."""
        if not self._was_marked_broken.is_set():
            self._broken_reason = reason
            self._was_marked_broken.set()

    @property
    def is_marked_broken(self) -> bool:
        """Whether `mark_broken` was called, so that the end of the process is no prompt's fault."""
        return self._was_marked_broken.is_set()

    async def wait_for_excess(self) -> ResourceLimitExceeded:
        """Wait until the sandbox uses more than it may, and return the exceeded limit."""
        while True:
            await asyncio.sleep(_MEASURE_SECONDS)
            error = await asyncio.to_thread(self._find_excess)
            if error is not None:
                return error

    def end_excess(self) -> bool:
        """Kill the prompt's processes, and return whether that has ended the excess (blocking)."""
        self._process.kill_new_processes()
        return self._find_excess() is None

    def _find_excess(self) -> ResourceLimitExceeded | None:
        try:
            self._process.check_resources()
        except ResourceLimitExceeded as error:
            return error
        except OSError as error:
            _log.warning("the resources of a prompt can't be measured: %s", error)
        return None

    async def has_ended(self) -> bool:
        """Return whether the process has ended."""
        await asyncio.wait([self._process.exited], timeout=_EXIT_SECONDS)
        return self._process.exited.done()

    async def was_killed(self) -> bool:
        """Return whether another process has killed ComfyUI, so that no prompt is the cause."""
        return await self.has_ended() and self._process.was_killed

    async def wait_until_broken(self) -> str:
        """Wait until the process has ended or hangs, and return the reason."""
        broken_task = asyncio.create_task(self._was_marked_broken.wait())
        executor_task = asyncio.create_task(self._wait_until_executor_is_dead())
        try:
            await asyncio.wait(
                [self._process.exited, broken_task, executor_task],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in (broken_task, executor_task):
                task.cancel()
            await asyncio.gather(broken_task, executor_task, return_exceptions=True)
        if self._process.exited.done():
            return self._process.describe_end()
        if self._was_marked_broken.is_set():
            return self._broken_reason
        return "the thread that executes prompts has ended"

    async def _wait_until_executor_is_dead(self) -> None:
        """Wait until the thread that executes prompts has ended.

        The check does not submit a prompt, which would drop cached results and loaded models.
        """
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                is_alive = await self.client.is_executor_alive()
            except MalformedResponse:
                is_alive = False
            except WorkerLost:
                # No response is not a failure, because an executing node may prevent the process
                # from responding.
                is_alive = not self._is_idle()
            if not is_alive:
                return


async def _run_first_prompts(
    process: ComfyProcess,
    client: ComfyClient,
    stream: EventStream,
    options: ComfyOptions,
) -> None:
    seconds = options.start_timeout
    rendering_task = asyncio.create_task(_warm_up(client, stream, options.warm_up))
    try:
        await asyncio.wait(
            [rendering_task, process.exited], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if process.exited.done():
            status = process.exited.result()
            raise StackError(
                f"ComfyUI ended with status {status}:\n{process.read_last_log_lines()}"
            )
        if not rendering_task.done():
            raise StackError(
                f"ComfyUI has not rendered a prompt within its start_timeout of {seconds:g} s:\n"
                f"{process.read_last_log_lines()}"
            )
        await rendering_task
    finally:
        rendering_task.cancel()
        await asyncio.gather(rendering_task, return_exceptions=True)


async def _warm_up(client: ComfyClient, stream: EventStream, graph_json: str | None) -> None:
    await stream.connected.wait()
    if not await client.is_executor_alive():
        raise StackError("ComfyUI could not load Moyin's bridge; see its log for the import error")
    await _render(client, _TEST_GRAPH)
    if graph_json is None:
        return
    try:
        await _render(client, from_json(graph_json))
    except (InvalidGraph, RenderFailed) as error:
        # The failure is only logged, because the pool can still render.
        _log.warning("the pool's warm_up graph failed, so the first job will be slow: %s", error)


async def _render(client: ComfyClient, graph: Mapping[str, Any]) -> None:
    prompt_id = str(uuid.uuid4())
    await client.submit(prompt_id, graph)
    entry = (await client.get_prompt_state(prompt_id)).entry
    while entry is None:
        await asyncio.sleep(_POLL_SECONDS)
        entry = (await client.get_prompt_state(prompt_id)).entry
    raise_for_failure(entry)
