"""Renders prompts with a supervised ComfyUI process and stores their outputs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn

from pydantic_core import from_json, to_json

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
    ResourceLimitExceeded,
    ServiceUnavailable,
    StepFailed,
    WorkerLost,
)
from moyin.render.comfyui.client import NoResponse
from moyin.render.comfyui.comfy_supervisor import ComfySupervisor, WaitForMemory
from moyin.render.comfyui.failure_streak import FailureStreak
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.inputs import InputFiles
from moyin.render.comfyui.model_sizes import ModelSizes
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.outputs import OutputStore, StoredResult
from moyin.render.comfyui.preview_publisher import PreviewPublisher
from moyin.render.comfyui.process import Spawner
from moyin.render.comfyui.prompt_lock import PromptLock, run_to_end
from moyin.render.comfyui.prompts import RunningPrompt
from moyin.render.comfyui.public_responses import PublicResponses
from moyin.render.comfyui.relay import Relay
from moyin.render.comfyui.run_journal import RunJournal
from moyin.render.comfyui.sandbox import choose_user_id
from moyin.render.comfyui.session import Session
from moyin.render.comfyui.tenant import get_request_tenant
from moyin.render.comfyui.untrusted_json import MalformedResponse
from moyin.render.protocol.binary import parse_image_metadata
from moyin.render.protocol.graph import find_model_files
from moyin.render.protocol.response import get_prompt_id, has_succeeded, raise_for_failure
from moyin.render.protocol.wire import EventMessage, HistoryEntry, PromptState
from moyin.store.blobs import BlobStore
from moyin.store.frames import FrameStore
from moyin.store.previews import PreviewStore
from moyin.store.usage import CANCELLED
from moyin.system.bounded import BoundedDict

_log = logging.getLogger(__name__)
_MAX_RESULTS = 256
# The interval of polls, which notice the end of a prompt whose events a broken socket has lost.
_POLL_SECONDS = 3.0
_INTERRUPT_SECONDS = 15.0
_ATTEMPTS = 3
# Errors are stored by Temporal, which refuses more than 2 MiB. Those of large graphs have more.
_MAX_DETAIL_BYTES = 256 * 1024
_EVENTS_WITHOUT_PROMPT = ("status", "feature_flags")


class ComfyRenderer:
    """The implementation of `moyin.domain.renderer.Renderer` with one ComfyUI process.

    The process runs from `start` to `close`.

    Args:
        frames: the store of the streams on which clients follow their prompts, or None if events
            are not published.
        previews: the store of the previews of jobs, or None if they are not published.
        wait_for_memory: see `ComfySupervisor`.
    """

    def __init__(
        self,
        options: ComfyOptions,
        blobs: BlobStore,
        frames: FrameStore | None = None,
        previews: PreviewStore | None = None,
        wait_for_memory: WaitForMemory | None = None,
    ) -> None:
        self._options = options
        self._blobs = blobs
        self._frames = frames
        self._previews = previews
        self._folder = ProcessFolder(options)
        self._inputs = InputFiles(self._folder, options.input_bytes)
        self._outputs: OutputStore | None = None
        self._spawner = Spawner()
        self._supervisor = ComfySupervisor(
            options, self._run_session, self._end_submitted_prompts, wait_for_memory
        )
        self._prompt_lock = PromptLock(self._supervisor, self._inputs)
        self._public_responses = PublicResponses()
        self._streak = FailureStreak()
        self._models: tuple[str, ...] = ()
        self._journal = RunJournal()
        self._active_prompts: dict[str, tuple[RunningPrompt, asyncio.Task[None]]] = {}
        self._finished_results: BoundedDict[str, StoredResult] = BoundedDict(_MAX_RESULTS)
        # The id of the executing prompt; events without a prompt id belong to this prompt.
        self._executing: str | None = None
        # Serialises submissions and interrupts, because otherwise an interrupt could stop a newer
        # prompt.
        self._submit_lock = asyncio.Lock()
        # Serialises fetching, because trimming for one prompt could remove files just fetched for
        # another.
        self._trim_lock = asyncio.Lock()
        self._last_event = time.monotonic()

    async def start(self) -> None:
        """Start ComfyUI in the background; `status` shows whether it is ready."""
        self._supervisor.start()

    async def close(self) -> None:
        """Stop ComfyUI; running prompts fail with `WorkerLost`."""
        await self._supervisor.close()
        tasks = [task for _, task in self._active_prompts.values()]
        self._end_submitted_prompts("the renderer was closed", prompt_may_be_cause=False)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._spawner.close)

    def check_supervision(self) -> None:
        """Raise `RuntimeError` if ComfyUI is no longer supervised, which would be a bug."""
        self._supervisor.check_supervision()

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        """Render a prompt and yield its events.

        If the prompt is running or has recently succeeded, its events are yielded without
        another run. If it was cancelled, it is run again as soon as the cancelled run has ended.
        """
        await self._wait_until_cancelled(request.prompt_id)
        result = self._finished_results.get(request.prompt_id)
        if result is not None:
            yield ExecutionFinished()
            for run in self._journal.list_ended(request.prompt_id):
                yield run
            yield result.record
            yield result.done
            return
        async with aclosing(self._get_or_start_prompt(request).follow()) as events:
            async for event in events:
                yield event

    async def prepare(self, request: RenderRequest) -> None:
        """Fetch the input files of a prompt in advance, because it will be rendered next."""
        if self._supervisor.session is not None:
            await self._fetch_inputs(request)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """Cancel a prompt and return its history record.

        Returns None if the renderer does not have the prompt. Also returns None if ComfyUI has no
        history entry for the prompt, because it was not submitted yet or has not ended in time.
        """
        if prompt_id not in self._active_prompts:
            return None
        prompt, task = self._active_prompts[prompt_id]
        prompt.is_cancelled = True
        session = self._supervisor.session
        if session is None or not prompt.is_submitted:
            self._fail_prompt(prompt, RenderFailed("the render was cancelled"))
            task.cancel()
            return None
        async with self._submit_lock:
            await session.client.interrupt(prompt_id)
        prompt.should_poll.set()
        await asyncio.wait([task], timeout=_INTERRUPT_SECONDS)
        return prompt.record

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None, tenant: str = ""
    ) -> dict[str, Any]:
        """Validate a graph without executing it, and return ComfyUI's response body.

        If a process serves one tenant only and this one does not serve ``tenant``, the response is
        empty: node packages could keep the graph for the tenant that the process serves later.

        For an invalid graph, the body has ``error``. For a valid graph, it has the ids of the
        ``outputs`` that ComfyUI would execute and ``node_errors`` for the other outputs. It also
        has ``free``: the inputs that ComfyUI checks only for type and range, so that
        `moyin.comfy_api.validation_cache` need not ask ComfyUI again when only these change.

        Args:
            targets: ids of the output nodes to validate, or None for all.

        Raises:
            ServiceUnavailable: ComfyUI is not ready.
        """
        session = self._supervisor.require_session()
        if self._options.process_per_tenant and session.tenant != tenant:
            return {}
        with self._replace_if_idle_and_malformed(session):
            return await session.client.validate(graph, targets)

    async def get(self, path: str) -> bytes | None:
        """Return the body of ComfyUI's response to GET ``path``, or None for status 404.

        If a process serves one tenant only, the response is that of a process that has served
        nobody. Raises `ServiceUnavailable` if there is none.
        """
        session = self._supervisor.require_session()
        with self._replace_if_idle_and_malformed(session):
            if self._options.process_per_tenant:
                return await self._public_responses.get(session, path)
            return await session.client.get(path)

    async def results(self) -> dict[str, RenderResult]:
        """Return the results of prompts that have recently succeeded, by prompt id."""
        return {
            prompt_id: RenderResult(
                done=result.done, record=result.record, runs=self._journal.list_ended(prompt_id)
            )
            for prompt_id, result in self._finished_results.items()
        }

    @property
    def pid(self) -> int | None:
        """The id of ComfyUI's process, or None while none is ready."""
        session = self._supervisor.session
        return None if session is None else session.pid

    def kill(self, pid: int) -> None:
        """Kill ComfyUI's process ``pid`` to free memory, which is no prompt's fault.

        May be called by any thread. Does nothing if ``pid`` is not ComfyUI's process any more.
        """
        session = self._supervisor.session
        if session is not None and session.pid == pid:
            session.kill()

    async def status(self) -> RendererStatus:
        session = self._supervisor.session
        return RendererStatus(
            # A process that is being replaced for a prompt's tenant accepts that prompt.
            ready=session is not None or self._supervisor.is_changing,
            pid=None if session is None else session.pid,
            running=tuple(self._active_prompts),
            known=(
                *(
                    id_
                    for id_, (prompt, _) in self._active_prompts.items()
                    if not prompt.is_cancelled
                ),
                *self._finished_results,
            ),
            error=self._supervisor.error,
            models=self._models,
            memory=None if session is None else session.memory_bytes,
            runs=self._journal.list_unsettled(),
            tenant="" if session is None else session.tenant or "",
            tenant_changes=self._supervisor.change_count,
            start_seconds=self._supervisor.start_seconds,
        )

    async def settle(self, run_ids: Sequence[str]) -> None:
        self._journal.settle(run_ids)

    async def _wait_until_cancelled(self, prompt_id: str) -> None:
        """Wait until a cancelled run of the prompt has ended, so that a retry starts a new run."""
        while prompt_id in self._active_prompts:
            prompt, task = self._active_prompts[prompt_id]
            if not prompt.is_cancelled:
                return
            await asyncio.wait([task])
            self._remove_active_prompt(prompt)

    def _get_or_start_prompt(self, request: RenderRequest) -> RunningPrompt:
        if request.prompt_id not in self._active_prompts:
            prompt = RunningPrompt(
                request, self._create_relay(request), self._create_preview_publisher(request)
            )
            task = asyncio.create_task(self._run_prompt(prompt))
            self._active_prompts[request.prompt_id] = (prompt, task)
            # A callback, because it also runs if the task is cancelled before it starts.
            task.add_done_callback(lambda _: self._remove_active_prompt(prompt))
        return self._active_prompts[request.prompt_id][0]

    def _create_relay(self, request: RenderRequest) -> Relay | None:
        if self._frames is None or request.channel is None:
            return None
        return Relay(self._frames, self._blobs, request, request.channel, self._collect_node_output)

    def _create_preview_publisher(self, request: RenderRequest) -> PreviewPublisher | None:
        if self._previews is None or not request.job_id:
            return None
        return PreviewPublisher(self._previews, request)

    async def _run_prompt(self, prompt: RunningPrompt) -> None:
        prompt_id = prompt.request.prompt_id
        try:
            result = await self._execute(prompt)
            if prompt.relay is not None:
                await prompt.relay.flush()
            self._finished_results[prompt_id] = result
            self._end_runs(prompt, picture_count=_count_pictures(result))
            self._remove_active_prompt(prompt)
            prompt.succeed(result.done)
            self._streak.end()
        except MalformedResponse as error:
            # `_acquire_session` has replaced the process.
            self._fail_prompt(prompt, _make_loss_error(error.message))
        except WorkerLost as error:
            is_hanging = isinstance(error, NoResponse) and prompt.is_submitted
            if is_hanging and await self._supervisor.replace_hanging_session():
                # Not an error of the render, because the prompt may not be the cause: a disk may
                # hang, for example.
                self._fail_prompt(prompt, error)
                return
            prompt_may_be_cause = prompt.is_submitted and not await self._supervisor.was_killed()
            self._fail_prompt(
                prompt, _make_loss_error(error.message) if prompt_may_be_cause else error
            )
        except MoyinError as error:
            if prompt.relay is not None:
                await prompt.relay.flush()
            self._fail_prompt(prompt, _limit_details(error))
            if not isinstance(error, ServiceUnavailable):
                await self._count_failure(prompt)
        except OSError as error:
            _log.warning("prompt %s failed, because a file is not accessible: %s", prompt_id, error)
            message = "the artifact store or ComfyUI's folder is not available; try again"
            self._fail_prompt(prompt, ServiceUnavailable(message, retry_after=5))
        except Exception:
            _log.exception("prompt %s failed", prompt_id)
            message = (
                f"the render failed with an internal error; see the log for prompt {prompt_id}"
            )
            self._fail_prompt(prompt, StepFailed(message))

    async def _count_failure(self, prompt: RunningPrompt) -> None:
        """Count a prompt that ComfyUI has failed, and replace the process after too many of them."""
        if not prompt.is_submitted or prompt.is_cancelled:
            return
        self._streak.add_failure(get_request_tenant(prompt.request))
        if not self._streak.is_over:
            return
        # Between two prompts, so that none is lost. Meanwhile, another prompt may succeed.
        async with self._prompt_lock.hold():
            if self._streak.is_over and (session := self._supervisor.session) is not None:
                reason = "three prompts in a row, of different tenants, have failed"
                self._supervisor.replace_session(session, reason)

    @contextlib.contextmanager
    def _replace_if_idle_and_malformed(self, session: Session) -> Iterator[None]:
        """Replace the process if the block raises `MalformedResponse` while no prompt runs.

        While a prompt runs, the responses about the prompt itself show whether ComfyUI is broken.
        """
        try:
            yield
        except MalformedResponse as error:
            if not self._active_prompts:
                self._supervisor.replace_session(session, error.message)
            raise

    def _fail_prompt(self, prompt: RunningPrompt, error: MoyinError) -> None:
        self._end_runs(prompt, error=CANCELLED if prompt.is_cancelled else error.code)
        # Remove the prompt first, so that a caller's immediate retry starts the prompt again.
        self._remove_active_prompt(prompt)
        prompt.fail(error)

    def _end_runs(
        self, prompt: RunningPrompt, *, picture_count: int = 0, error: str | None = None
    ) -> None:
        prompt_id = prompt.request.prompt_id
        # A prompt that has been replaced by a new try must not end the new try's runs.
        if prompt_id in self._active_prompts and self._active_prompts[prompt_id][0] is prompt:
            prompt.runs = self._journal.end_prompt(
                prompt_id, picture_count=picture_count, error=error
            )

    def _remove_active_prompt(self, prompt: RunningPrompt) -> None:
        prompt_id = prompt.request.prompt_id
        if prompt_id in self._active_prompts and self._active_prompts[prompt_id][0] is prompt:
            del self._active_prompts[prompt_id]
            # Has an effect only if a bug ended the prompt with neither a result nor an error.
            self._journal.end_prompt(prompt_id, error=StepFailed.code)
            if prompt.relay is not None:
                prompt.relay.stop()
            if prompt.previews is not None:
                prompt.previews.stop()

    async def _execute(self, prompt: RunningPrompt) -> StoredResult:
        try:
            return await self._execute_with_retries(prompt)
        except MoyinError:
            # Discard files that are left because storing them failed.
            if (session := self._supervisor.session) is not None:
                await asyncio.to_thread(
                    session.written_files.discard_files, prompt.request.prompt_id
                )
            raise

    async def _execute_with_retries(self, prompt: RunningPrompt) -> StoredResult:
        ran_out_of_memory = False
        for attempt in range(_ATTEMPTS):
            async with self._acquire_session(prompt) as session:
                if attempt:
                    await session.client.unload_models()
                    await session.client.is_executor_alive()
                entry = await self._run_to_end(session, prompt)
            refused_processes = session.refused_processes
            if has_succeeded(entry):
                # Sent before the files are stored, so that the next prompt can begin at once.
                prompt.mark_executed()
            try:
                raise_for_failure(entry)
            except RenderFailed as error:
                if refused_processes:
                    await self._collect_result(prompt, entry)
                    raise _make_process_error(error, self._options.processes) from error
                if ran_out_of_memory or not isinstance(error, OutOfMemory):
                    await self._collect_result(prompt, entry)
                    raise
                # Retry without models and results of earlier prompts, which may fill the memory.
                ran_out_of_memory = True
                continue
            result = await self._collect_result(prompt, entry)
            if result is not None:
                is_repeatable = (
                    not _find_node_classes(prompt.request.graph) & session.volatile_classes
                )
                return replace(result, done=replace(result.done, repeatable=is_repeatable))
            # Retry without ComfyUI's cache, which names files that no longer exist.
        raise StepFailed(
            "ComfyUI reports an output file that does not exist: a node may have removed the file"
        )

    @asynccontextmanager
    async def _acquire_session(self, prompt: RunningPrompt) -> AsyncIterator[Session]:
        """Yield the session of ComfyUI as soon as ComfyUI is idle.

        During the block, ComfyUI can access only the files of this prompt.
        """
        request = prompt.request
        while True:
            session = await self._supervisor.wait_for_session()
            if not self._bind_tenant(session, request):
                await self._change_process(session)
                continue
            await self._fetch_inputs(request)
            lock_context = self._prompt_lock.hold_for(
                session, request.prompt_id, get_request_tenant(request), request.files
            )
            async with lock_context as is_current_session:
                if is_current_session:
                    try:
                        yield session
                    except MalformedResponse as error:
                        self._supervisor.replace_session(session, error.message)
                        raise
            # Otherwise the process was replaced, and the folder of the next process is empty.
            if is_current_session:
                return

    def _bind_tenant(self, session: Session, request: RenderRequest) -> bool:
        """Bind the process to the request's tenant; return False if it is bound to another one."""
        if not self._options.process_per_tenant:
            return True
        tenant = get_request_tenant(request)
        if session.tenant is None:
            session.tenant = tenant
        return session.tenant == tenant

    async def _change_process(self, session: Session) -> None:
        """Replace the process for another tenant, or wait for a prompt that still needs it."""
        other_tasks = self._list_tasks_of_tenant(session)
        if other_tasks:
            # The new process gets an empty folder, so the files of these prompts are stored first.
            # Those that are not submitted yet count too, because two tenants who fetch files would
            # otherwise replace each other's processes for ever. Limited, because these prompts may
            # wait for another process by now.
            await asyncio.wait(
                other_tasks, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            return
        async with self._prompt_lock.hold():
            is_current_session = session is self._supervisor.session
            if is_current_session and not self._list_tasks_of_tenant(session):
                self._supervisor.change_process(session)

    def _list_tasks_of_tenant(self, session: Session) -> list[asyncio.Task[None]]:
        """Return the tasks of active prompts of the tenant that the session's process serves."""
        return [
            task
            for prompt, task in self._active_prompts.values()
            if get_request_tenant(prompt.request) == session.tenant
        ]

    async def _collect_result(
        self, prompt: RunningPrompt, entry: HistoryEntry
    ) -> StoredResult | None:
        assert self._outputs is not None
        result = await self._outputs.collect(prompt.request.prompt_id, entry)
        prompt.record = None if result is None else result.record
        return result

    async def _collect_node_output(
        self, prompt_id: str, output: Mapping[str, Any]
    ) -> list[PromptFile]:
        # Looked up for each call, because each new ComfyUI process has its own `OutputStore`.
        assert self._outputs is not None
        return await self._outputs.collect_node_output(prompt_id, output)

    async def _fetch_inputs(self, request: RenderRequest) -> None:
        if not request.files:
            return
        while True:
            try:
                await self._inputs.fetch(self._blobs, request.files)
            except FileNotFoundError:
                raise StepFailed(
                    "the artifact store no longer has one of the render's input files; upload them again"
                ) from None
            async with self._trim_lock:
                needed_names = {
                    name
                    for active_prompt, _ in self._active_prompts.values()
                    for name in active_prompt.request.files
                }
                needed_names.update(request.files)
                await asyncio.to_thread(self._inputs.trim_staged, needed_names)
                if self._inputs.are_staged(request.files):
                    return

    async def _run_to_end(self, session: Session, prompt: RunningPrompt) -> HistoryEntry:
        """Submit a prompt, wait until it has been executed, and return its history entry.

        The prompt has ended when its history entry exists. An event only triggers a poll, because a
        malicious node could send a false event, so that the next prompt would begin too early.
        """
        client, prompt_id = session.client, prompt.request.prompt_id
        prompt.has_begun = False
        async with self._submit_lock:
            prompt.is_submitted = True
            await client.submit(
                prompt_id,
                prompt.request.graph,
                extra_data=prompt.request.extra_data,
                targets=prompt.request.targets,
            )
            prompt.mark_started()
            self._last_event = time.monotonic()
            if prompt.request.models:
                self._models = _sort_by_size(prompt.request.models)
        # ComfyUI has accepted the prompt and executes no other.
        with self._journal.measure(prompt.request):
            excess_task = asyncio.create_task(session.wait_for_excess())
            excess_task.add_done_callback(lambda _: prompt.should_poll.set())
            try:
                return await self._wait_for_entry(session, prompt, excess_task)
            finally:
                excess_task.cancel()

    async def _wait_for_entry(
        self,
        session: Session,
        prompt: RunningPrompt,
        excess_task: asyncio.Task[ResourceLimitExceeded],
    ) -> HistoryEntry:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await prompt.should_poll.wait()
            prompt.should_poll.clear()
            if excess_task.done():
                await self._end_excess(session, prompt, excess_task.result())
            entry = (await self._read_state(session, prompt)).entry
            if entry is not None:
                return entry
            if time.monotonic() - self._last_event > self._options.progress_timeout:
                await self._interrupt_hanging(session, prompt)

    async def _read_state(self, session: Session, prompt: RunningPrompt) -> PromptState:
        state = await session.client.get_prompt_state(prompt.request.prompt_id)
        if state.entry is not None or state.queued:
            return state
        if prompt.is_cancelled:
            raise RenderFailed("the render was cancelled")
        prompt_id = prompt.request.prompt_id
        raise WorkerLost(
            f"prompt {prompt_id} is neither in ComfyUI's queue nor in its history; try again"
        )

    async def _interrupt_hanging(self, session: Session, prompt: RunningPrompt) -> NoReturn:
        """Interrupt a hanging prompt, or replace the process, and raise an error.

        Raises `NoResponse` if the prompt has not begun, because then the prompt is not the cause.
        Otherwise raises `RenderFailed`.
        """
        if not prompt.has_begun:
            raise NoResponse(
                f"ComfyUI hangs and has not begun prompt {prompt.request.prompt_id}; try again"
            )
        await self._interrupt_or_replace(session, prompt.request.prompt_id)
        seconds = self._options.progress_timeout
        message = (
            f"the render made no progress within the pool's progress_timeout of {seconds:g} s: let "
            "its nodes do less, or set a longer progress_timeout"
        )
        raise RenderFailed(message)

    async def _end_excess(
        self, session: Session, prompt: RunningPrompt, error: ResourceLimitExceeded
    ) -> NoReturn:
        """End a prompt that uses too much, and replace ComfyUI if ComfyUI itself does."""
        if await run_to_end(asyncio.to_thread(session.end_excess)):
            try:
                await self._interrupt_or_replace(session, prompt.request.prompt_id)
            except WorkerLost:
                await self._supervisor.replace_hanging_session()
        else:
            self._supervisor.replace_session(session)
        raise error

    async def _interrupt_or_replace(self, session: Session, prompt_id: str) -> None:
        """Interrupt a prompt, or replace ComfyUI if the prompt does not end."""
        async with self._submit_lock:
            await session.client.interrupt(prompt_id)
        deadline = time.monotonic() + _INTERRUPT_SECONDS
        while (await session.client.get_prompt_state(prompt_id)).queued:
            if time.monotonic() > deadline:
                self._supervisor.replace_session(session)
                break
            await asyncio.sleep(0.2)

    def _on_event(self, message: EventMessage) -> None:
        if message.type in _EVENTS_WITHOUT_PROMPT:
            return
        prompt_id = get_prompt_id(message)
        if message.type == "execution_start":
            self._executing = prompt_id
        if prompt_id is not None:
            self._last_event = time.monotonic()
            if prompt_id in self._active_prompts:
                self._process_prompt_event(self._active_prompts[prompt_id][0], message)
        self._enqueue_for_relay(prompt_id, message)

    def _process_prompt_event(self, prompt: RunningPrompt, message: EventMessage) -> None:
        prompt.process_event(message)
        if message.type == "executing":
            # The node is null after the last node.
            node = message.data.get("node")
            self._journal.record_node(
                prompt.request.prompt_id,
                loads_models=isinstance(node, str) and node in prompt.loader_nodes,
            )

    def _on_binary_frame(self, frame: bytes) -> None:
        prompt_id = parse_image_metadata(frame)[0].get("prompt_id")
        self._enqueue_for_relay(prompt_id, frame)
        prompt = self._find_active_prompt(prompt_id)
        if prompt is not None and prompt.previews is not None:
            prompt.previews.schedule_frame(frame)

    def _enqueue_for_relay(self, prompt_id: str | None, message: EventMessage | bytes) -> None:
        prompt = self._find_active_prompt(prompt_id)
        if prompt is not None and prompt.relay is not None:
            prompt.relay.enqueue(message)

    def _find_active_prompt(self, prompt_id: str | None) -> RunningPrompt | None:
        """Return the prompt with this id, or the executing prompt if the id is None.

        Returns None if that prompt is not active.
        """
        active_prompt = self._active_prompts.get(prompt_id or self._executing or "")
        return None if active_prompt is None else active_prompt[0]

    @asynccontextmanager
    async def _run_session(self) -> AsyncIterator[Session]:
        uid = choose_user_id(self._options)
        async with self._prompt_lock.hold():
            await asyncio.to_thread(self._folder.prepare, uid)
        async with Session.open(
            self._options,
            self._folder,
            self._spawner,
            on_event=self._on_event,
            on_binary=self._on_binary_frame,
            is_idle=lambda: not self._active_prompts,
        ) as session:
            self._outputs = OutputStore(
                session.written_files, self._blobs, self._options.output_bytes
            )
            self._models = await self._find_warm_models()
            self._streak.end()
            if self._options.process_per_tenant:
                await self._public_responses.collect(session)
            yield session

    async def _find_warm_models(self) -> tuple[str, ...]:
        if self._options.warm_up is None:
            return ()
        models = find_model_files(from_json(self._options.warm_up))
        return _sort_by_size(await ModelSizes(self._options.models).measure(models))

    def _end_submitted_prompts(self, reason: str, prompt_may_be_cause: bool) -> None:
        """Raise `WorkerLost` for the callers of all prompts that the lost process had accepted.

        Args:
            reason: why the process was lost, for the message.
            prompt_may_be_cause: True if a prompt may have ended the process.
        """
        for prompt, task in list(self._active_prompts.values()):
            if prompt.is_submitted:
                message = f"ComfyUI was lost during the render: {reason}"
                self._fail_prompt(
                    prompt,
                    _make_loss_error(message) if prompt_may_be_cause else WorkerLost(message),
                )
                task.cancel()


def _find_node_classes(graph: Mapping[str, Any]) -> set[str]:
    return {str(node.get("class_type")) for node in graph.values() if isinstance(node, Mapping)}


def _sort_by_size(models: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(sorted(models, key=lambda name: (models[name], name), reverse=True))


def _count_pictures(result: StoredResult) -> int:
    return sum(
        file.media_type.startswith("image/") and not file.temporary for file in result.done.files
    )


def _limit_details(error: MoyinError) -> MoyinError:
    """Return the error, without its details if these are too large to be stored."""
    if len(to_json(error.details)) <= _MAX_DETAIL_BYTES:
        return error
    return type(error)(f"{error.message} (the details are left out, because they are too large)")


def _make_process_error(error: RenderFailed, max_processes: int) -> ResourceLimitExceeded:
    return ResourceLimitExceeded(
        f"{error.message}: the pool's processes allows {max_processes:,}, so start fewer at once",
        details={**error.details, "bound": "processes", "limit": max_processes},
    )


def _make_loss_error(message: str) -> WorkerLost:
    """Return the error for a prompt whose process ended, perhaps because of the prompt."""
    return WorkerLost(message, details={"ended": "comfyui"})
