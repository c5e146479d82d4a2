"""`ComfyRenderer`: prompts in, stored pictures out, by a ComfyUI process that it keeps running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from moyin.domain.prompt import PromptFile, PromptRecord
from moyin.domain.renderer import (
    ExecutionFinished,
    RendererStatus,
    RenderEvent,
    RenderRequest,
    RenderResult,
)
from moyin.errors import (
    MoyinError,
    OutOfMemory,
    RenderFailed,
    ServiceUnavailable,
    StepFailed,
    WorkerLost,
)
from moyin.render.comfyui.client import NoAnswer
from moyin.render.comfyui.comfy_supervisor import ComfySupervisor
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.inputs import InputFiles
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.outputs import Outputs, StoredResult
from moyin.render.comfyui.process import Spawner
from moyin.render.comfyui.prompts import BoundedDict, Prompt
from moyin.render.comfyui.relay import Relay
from moyin.render.comfyui.sandbox import user_of
from moyin.render.comfyui.session import Session
from moyin.render.comfyui.sizes import ModelSizes
from moyin.render.comfyui.turns import Turns
from moyin.render.protocol.binary import described
from moyin.render.protocol.models import models_of
from moyin.render.protocol.response import prompt_of, raise_failure
from moyin.render.protocol.wire import HistoryEntry, Message, PromptState
from moyin.store.blobs import BlobStore
from moyin.store.frames import FrameStore

__all__ = ["ComfyRenderer"]

_log = logging.getLogger(__name__)
_REMEMBERED = 256
# Events may be lost with a socket: the history is the truth, and is looked at this often anyway.
_LOOK_SECONDS = 3.0
_INTERRUPT_SECONDS = 15.0
_ABOUT_NO_PROMPT = ("status", "feature_flags")


class ComfyRenderer:
    """The renderer port on a ComfyUI of its own. Starts with `start`, ends with `close`.

    Args:
        frames: for clients that want to hear what ComfyUI says; None: nobody does.
    """

    def __init__(
        self, options: ComfyOptions, blobs: BlobStore, frames: FrameStore | None = None
    ) -> None:
        self._options = options
        self._blobs = blobs
        self._frames = frames
        self._folder = ProcessFolder(options)
        self._inputs = InputFiles(self._folder, options.input_bytes)
        self._outputs: Outputs | None = None
        self._spawner = Spawner()
        self._keeper = ComfySupervisor(options, self._open_session, self._lose)
        self._turns = Turns(self._keeper, self._inputs)
        self._models: tuple[str, ...] = ()
        self._active: dict[str, tuple[Prompt, asyncio.Task[None]]] = {}
        self._finished: BoundedDict[str, StoredResult] = BoundedDict(_REMEMBERED)
        # What ComfyUI executes: not all that it says names the prompt.
        self._executing: str | None = None
        # An interrupt must hit the prompt it was meant for: none is submitted meanwhile.
        self._gate = asyncio.Lock()
        # What one render fetches, another's trimming might remove before anybody needs it.
        self._trimming = asyncio.Lock()
        self._last_sign = time.monotonic()

    async def start(self) -> None:
        """Start the process in the background; `status` tells when it is ready."""
        self._keeper.start()

    async def close(self) -> None:
        """Stop the process; prompts at work are lost."""
        await self._keeper.close()
        tasks = [task for _, task in self._active.values()]
        self._lose("it was stopped", blamed=False)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._spawner.close)

    def check(self) -> None:
        """
        Raises:
            RuntimeError: nobody looks after the process any more, which is a bug.
        """
        self._keeper.check()

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        """See `moyin.domain.renderer.Renderer`."""
        kept = self._finished.get(request.prompt_id)
        if kept is not None:
            yield ExecutionFinished()
            yield kept.record
            yield kept.done
            return
        async with aclosing(self._prompt(request).follow()) as events:
            async for event in events:
                yield event

    async def prepare(self, request: RenderRequest) -> None:
        """See `moyin.domain.renderer.Renderer`."""
        if self._keeper.session is not None:
            await self._add_inputs(request)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """See `moyin.domain.renderer.Renderer`."""
        if prompt_id not in self._active:
            return None
        prompt, task = self._active[prompt_id]
        prompt.cancelled = True
        session = self._keeper.session
        if session is None or not prompt.submitted:
            self._fail(prompt, RenderFailed("the render was cancelled"))
            task.cancel()
            return None
        async with self._gate:
            await session.client.interrupt(prompt_id)
        prompt.look.set()
        await asyncio.wait([task], timeout=_INTERRUPT_SECONDS)
        return prompt.record

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """See `moyin.domain.renderer.Renderer`."""
        return await self._keeper.present().client.validate(graph, targets)

    async def object_info(self) -> dict[str, Any]:
        """See `moyin.domain.renderer.Renderer`."""
        return await self._keeper.present().client.object_info()

    async def fetch(self, path: str) -> bytes | None:
        """See `moyin.domain.renderer.Renderer`."""
        return await self._keeper.present().client.ask(path)

    async def results(self) -> dict[str, RenderResult]:
        """See `moyin.domain.renderer.Renderer`."""
        return {
            prompt_id: RenderResult(done=kept.done, record=kept.record)
            for prompt_id, kept in self._finished.items()
        }

    async def status(self) -> RendererStatus:
        """See `moyin.domain.renderer.Renderer`."""
        session = self._keeper.session
        return RendererStatus(
            ready=session is not None,
            pid=None if session is None else session.pid,
            running=tuple(self._active),
            known=(*self._active, *self._finished),
            error=self._keeper.error,
            models=self._models,
            memory=None if session is None else session.memory,
        )

    def _prompt(self, request: RenderRequest) -> Prompt:
        if request.prompt_id not in self._active:
            prompt = Prompt(request, self._relay(request))
            task = asyncio.create_task(self._work(prompt))
            self._active[request.prompt_id] = (prompt, task)
            # For tasks that are cancelled.
            task.add_done_callback(lambda _: self._forget(prompt))
        return self._active[request.prompt_id][0]

    def _relay(self, request: RenderRequest) -> Relay | None:
        if self._frames is None or request.channel is None:
            return None
        return Relay(
            self._frames,
            self._blobs,
            request,
            request.channel,
            self._collect_node,
        )

    async def _work(self, prompt: Prompt) -> None:
        prompt_id = prompt.request.prompt_id
        try:
            kept = await self._execute(prompt)
            if prompt.relay is not None:
                await prompt.relay.flush()
            self._finished[prompt_id] = kept
            self._forget(prompt)
            prompt.succeed(kept.done)
        except WorkerLost as error:
            silent = isinstance(error, NoAnswer) and prompt.submitted
            if silent and await self._keeper.give_up_hanging():
                # It need not be the prompt's fault: a disk may stand still, and all that read it.
                self._fail(prompt, error)
                return
            blamed = prompt.submitted and not await self._keeper.was_killed()
            self._fail(prompt, _ended(error.message) if blamed else error)
        except MoyinError as error:
            if prompt.relay is not None:
                await prompt.relay.flush()
            self._fail(prompt, error)
        except OSError as error:
            _log.warning("prompt %s: %s", prompt_id, error)
            told = "the artifact store or the folder of ComfyUI is not available"
            self._fail(prompt, ServiceUnavailable(told, retry_after=5))
        except Exception:
            _log.exception("prompt %s failed", prompt_id)
            self._fail(prompt, StepFailed("the render failed for an internal reason"))

    def _fail(self, prompt: Prompt, error: MoyinError) -> None:
        # First, so that who is told and asks again gets another try.
        self._forget(prompt)
        prompt.fail(error)

    def _forget(self, prompt: Prompt) -> None:
        prompt_id = prompt.request.prompt_id
        if prompt_id in self._active and self._active[prompt_id][0] is prompt:
            del self._active[prompt_id]
            if prompt.relay is not None:
                prompt.relay.abandon()

    async def _execute(self, prompt: Prompt) -> StoredResult:
        try:
            return await self._execute_until_kept(prompt)
        except MoyinError:
            # What can be kept of it is kept: the rest would stay for as long as the process.
            if (session := self._keeper.session) is not None:
                await asyncio.to_thread(session.written.discard, prompt.request.prompt_id)
            raise

    async def _execute_until_kept(self, prompt: Prompt) -> StoredResult:
        freed = False
        for again in range(3):
            async with self._turn_of(prompt) as session:
                if again:
                    await session.client.free()
                    await session.client.pulse()
                entry = await self._run(session, prompt)
            if entry.status.status_str == "success":
                # Before anything else, so that the next prompt comes at once.
                prompt.executed()
            try:
                raise_failure(entry)
            except RenderFailed as error:
                if freed or not isinstance(error, OutOfMemory):
                    await self._collect(prompt, entry)
                    raise
                # What earlier prompts have left in memory may be all that is in the way.
                freed = True
                continue
            kept = await self._collect(prompt, entry)
            if kept is not None:
                repeatable = not _classes(prompt.request.graph) & session.volatile
                return replace(kept, done=replace(kept.done, repeatable=repeatable))
            # Cached outputs that nobody knows any more: without the cache they are made anew.
        raise StepFailed("an output file vanished before it could be stored")

    @asynccontextmanager
    async def _turn_of(self, prompt: Prompt) -> AsyncIterator[Session]:
        """The process, with the prompt's files and no other's in it."""
        request = prompt.request
        while True:
            session = await self._keeper.ready()
            await self._add_inputs(request)
            async with self._turns.take(session, request.prompt_id, request.files) as ours:
                if ours:
                    yield session
            # The next process began with an empty folder.
            if ours:
                return

    async def _collect(self, prompt: Prompt, entry: HistoryEntry) -> StoredResult | None:
        assert self._outputs is not None
        kept = await self._outputs.collect(prompt.request.prompt_id, entry)
        prompt.record = None if kept is None else kept.record
        return kept

    async def _collect_node(self, prompt_id: str, output: Mapping[str, Any]) -> list[PromptFile]:
        # Another process has other outputs.
        assert self._outputs is not None
        return await self._outputs.collect_node(prompt_id, output)

    async def _add_inputs(self, request: RenderRequest) -> None:
        if not request.files:
            return
        while True:
            try:
                await self._inputs.fetch(self._blobs, request.files)
            except FileNotFoundError:
                raise StepFailed("an input file is no longer in the artifact store") from None
            async with self._trimming:
                needed = {
                    name for active, _ in self._active.values() for name in active.request.files
                }
                needed.update(request.files)
                await asyncio.to_thread(self._inputs.trim, needed)
                if self._inputs.has(request.files):
                    return

    async def _run(self, session: Session, prompt: Prompt) -> HistoryEntry:
        """Submit and wait for the end; return what the history says, which can be read once.

        Events tell when to look. They are not believed: any node can send them, and while it is
        executed no other prompt may have its turn.
        """
        client, prompt_id = session.client, prompt.request.prompt_id
        prompt.begun = False
        async with self._gate:
            prompt.submitted = True
            await client.submit(
                prompt_id,
                prompt.request.graph,
                extra_data=prompt.request.extra_data,
                targets=prompt.request.targets,
            )
            self._last_sign = time.monotonic()
            if prompt.request.models:
                self._models = _largest_first(prompt.request.models)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await prompt.look.wait()
            prompt.look.clear()
            entry = (await self._standing(session, prompt)).entry
            if entry is not None:
                return entry
            if time.monotonic() - self._last_sign > self._options.progress_timeout:
                await self._interrupt_hung(session, prompt)

    async def _standing(self, session: Session, prompt: Prompt) -> PromptState:
        standing = await session.client.look(prompt.request.prompt_id)
        if standing.entry is None and not standing.queued:
            raise self._vanished(prompt)
        return standing

    def _vanished(self, prompt: Prompt) -> MoyinError:
        if prompt.cancelled:
            return RenderFailed("the render was cancelled")
        return WorkerLost("ComfyUI does not know the prompt any more")

    async def _interrupt_hung(self, session: Session, prompt: Prompt) -> None:
        """Always raises; the process is given up unless an interrupt ends the prompt.

        Raises:
            NoAnswer: ComfyUI has not come to the prompt: what hangs came before it.
            RenderFailed: the prompt hangs.
        """
        if not prompt.begun:
            raise NoAnswer("ComfyUI hangs at something else")
        prompt_id = prompt.request.prompt_id
        async with self._gate:
            await session.client.interrupt(prompt_id)
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        while (await session.client.look(prompt_id)).queued:
            if time.monotonic() > deadline:
                self._keeper.give_up(session)
                break
            await asyncio.sleep(0.2)
        seconds = self._options.progress_timeout
        raise RenderFailed(f"the render made no progress for {seconds:g} seconds")

    def _take(self, message: Message) -> None:
        if message.type in _ABOUT_NO_PROMPT:
            return
        prompt_id = prompt_of(message)
        if message.type == "execution_start":
            self._executing = prompt_id
        if prompt_id is not None:
            self._last_sign = time.monotonic()
            if prompt_id in self._active:
                self._active[prompt_id][0].feed(message)
        self._pass_on(prompt_id, message)

    def _take_binary(self, frame: bytes) -> None:
        self._pass_on(described(frame)[0].get("prompt_id"), frame)

    def _pass_on(self, prompt_id: str | None, said: Message | bytes) -> None:
        active = self._active.get(prompt_id or self._executing or "")
        if active is not None and active[0].relay is not None:
            active[0].relay.feed(said)

    @asynccontextmanager
    async def _open_session(self) -> AsyncIterator[Session]:
        user = user_of(self._options)
        async with self._turns.none():
            await asyncio.to_thread(self._folder.prepare, user)
        async with Session.open(
            self._options,
            self._folder,
            self._spawner,
            on_event=self._take,
            on_binary=self._take_binary,
            idle=lambda: not self._active,
        ) as session:
            self._outputs = Outputs(session.written, self._blobs, self._options.output_bytes)
            self._models = await self._warm_models()
            yield session

    async def _warm_models(self) -> tuple[str, ...]:
        if self._options.warm_up is None:
            return ()
        models = models_of(from_json(self._options.warm_up))
        return _largest_first(await ModelSizes(self._options.models).of(models))

    def _lose(self, why: str, blamed: bool) -> None:
        for prompt, task in list(self._active.values()):
            if prompt.submitted:
                told = f"ComfyUI was lost under the render: {why}"
                self._fail(prompt, _ended(told) if blamed else WorkerLost(told))
                task.cancel()


def _classes(graph: Mapping[str, Any]) -> set[str]:
    return {str(node.get("class_type")) for node in graph.values() if isinstance(node, Mapping)}


def _largest_first(models: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(models, key=lambda name: (models[name], name), reverse=True))


def _ended(why: str) -> WorkerLost:
    """The process ended under a prompt, which may be the cause."""
    return WorkerLost(why, details={"ended": "comfyui"})
