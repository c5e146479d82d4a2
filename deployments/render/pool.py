"""Contains `Pool`, which assigns the renders of a pool to its renderers, without importing Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from deployments.render.guard import MemoryGuard
from moyin.domain.prompt import PromptRecord
from moyin.domain.queue_place import QueuePlace
from moyin.domain.render_run import MeasuredRender, RenderRun
from moyin.domain.renderer import (
    ExecutionFinished,
    ExecutionStarted,
    Renderer,
    RendererStatus,
    RenderProgress,
    RenderRequest,
    RenderResult,
    RenderSucceeded,
)
from moyin.errors import MoyinError, OutOfMemory, ServiceUnavailable, WorkerLost
from moyin.render.scheduling.rules import PendingRender
from moyin.render.scheduling.scheduler import RenderScheduler
from moyin.system.bounded import BoundedDict

_REQUEST_TIMEOUT_SECONDS = 5.0
_SETTLE_TIMEOUT_SECONDS = 20.0
_REMEMBERED_PROMPTS = 4096
_REMEMBERED_RESULTS = 1024


@dataclass(frozen=True, slots=True)
class _AttemptCallbacks:
    """The callbacks of one attempt to render a prompt."""

    on_progress: Callable[[RenderProgress], None]
    on_record: Callable[[PromptRecord], None]
    on_run: Callable[[RenderRun], None]
    on_start: Callable[[], None]
    on_executed: Callable[[], None]
    # Called with the final run of a successful prompt.
    on_measured: Callable[[RenderRun], None]


@dataclass(slots=True)
class _PromptState:
    """The state of a prompt in the pool.

    Attributes:
        attempts: number of calls of `Pool.render` for this prompt that are in progress.
        newest_job_attempt: the highest attempt number of the job with which `Pool.render` was called.
        request: latest request, or None if no attempt is in progress.
        latest_renderer: name of the renderer that last received the prompt, also after the prompt's end.
        followed_renderer: name of the renderer whose events an attempt is reading, if any.
        abandoned_renderer: name of the renderer that still ran the prompt when the last attempt ended.
        is_unleased: True if the prompt may run without a lease. Its renderer is then busy although
            the scheduler did not assign the prompt.
        is_executed: True if ComfyUI has executed the prompt, whose files may not be stored yet.
        measured_run: id of the last measured run; every attempt receives the run, but it counts
            once.
    """

    attempts: int = 0
    newest_job_attempt: int = 0
    request: RenderRequest | None = None
    latest_renderer: str | None = None
    followed_renderer: str | None = None
    abandoned_renderer: str | None = None
    is_unleased: bool = False
    is_executed: bool = False
    measured_run: str | None = None


class Pool:
    """Assigns renders to renderers, which can be added and removed at any time.

    Args:
        memory: rejects renders that are too large for this pool; by default rejects none.

    Attributes:
        settled: event that is set when the status of every renderer of an earlier replica is known.
    """

    def __init__(
        self, name: str, scheduler: RenderScheduler | None = None, memory: MemoryGuard | None = None
    ) -> None:
        self.name = name
        self._scheduler = scheduler or RenderScheduler()
        self._memory = memory or MemoryGuard()
        self._renderers: dict[str, Renderer] = {}
        # Names of renderers with an outdated configuration, which only finish their prompts.
        self._draining: set[str] = set()
        self._preparing: dict[str, asyncio.Task[None]] = {}
        # States of prompts with an attempt in progress, of finished prompts, and of abandoned prompts. An
        # attempt will fetch the result of an abandoned prompt, so finished prompts must not evict it.
        self._active_states: dict[str, _PromptState] = {}
        self._past_states: BoundedDict[str, _PromptState] = BoundedDict(_REMEMBERED_PROMPTS)
        self._abandoned: BoundedDict[str, _PromptState] = BoundedDict(_REMEMBERED_PROMPTS)
        self._inherited: BoundedDict[str, tuple[str, RenderResult]]
        self._inherited = BoundedDict(_REMEMBERED_RESULTS)
        self.settled = asyncio.Event()
        self.settled.set()

    @property
    def waiting_renders(self) -> int:
        """The number of renders that wait for a renderer."""
        return self._scheduler.waiting_count

    @property
    def running_renders(self) -> int:
        """The number of renders that have a renderer."""
        return self._scheduler.running_count

    @property
    def oldest_wait(self) -> float | None:
        """The seconds since the oldest waiting render's step was queued; None if none waits."""
        return self._scheduler.oldest_wait

    def compute_wait_quantile(self, share: float) -> float | None:
        """Return the wait in seconds that a ``share`` (0 to 1) of recent renders did not exceed.

        The result is None without recent renders.
        """
        return self._scheduler.compute_wait_quantile(share)

    def is_busy(self, name: str) -> bool:
        """Return True if the renderer executes a render."""
        return self._scheduler.is_busy(name)

    @property
    def renderers(self) -> list[str]:
        """The names of the renderers that accept new renders."""
        return [name for name in self._renderers if name not in self._draining]

    def list_renderers_for(self, tenant: str) -> list[str]:
        """Return the names of the renderers whose processes are bound to the tenant."""
        names = set(self._scheduler.list_renderers_of(tenant))
        return [name for name in self.renderers if name in names]

    @property
    def mean_render_seconds(self) -> float:
        """The mean duration of recent renders, in seconds."""
        return self._scheduler.mean_seconds

    @property
    def model_change_count(self) -> int:
        """The number of renders, since this process began, for which other models were loaded."""
        return self._scheduler.model_change_count

    @property
    def abandoned_renderers(self) -> frozenset[str]:
        """The names of renderers with a prompt that was unfinished when its last attempt ended."""
        states = chain(self._active_states.values(), self._abandoned.values())
        return frozenset(
            state.abandoned_renderer for state in states if state.abandoned_renderer is not None
        )

    def add_renderer(self, name: str, renderer: Renderer, status: RendererStatus) -> None:
        """Add a renderer that accepts renders; update its state if the pool already has it."""
        self._renderers[name] = renderer
        self._draining.discard(name)
        self._memory.set_available_memory(status.memory)
        # An earlier replica may have sent running prompts that this pool did not send.
        foreign_prompts = [
            prompt_id for prompt_id in status.running if self._is_foreign_prompt(prompt_id)
        ]
        if status.start_seconds is not None:
            self._scheduler.record_restart_seconds(status.start_seconds)
        self._scheduler.add_renderer(name, foreign_prompts, status.models, status.tenant)

    def remove_renderer(self, name: str) -> None:
        """Remove a renderer; do nothing if the pool does not have it."""
        self._renderers.pop(name, None)
        self._draining.discard(name)
        self._scheduler.remove_renderer(name)

    def drain_renderer(self, name: str, renderer: Renderer) -> None:
        """Assign no more renders to a renderer, but follow its unfinished prompts."""
        self._renderers[name] = renderer
        self._draining.add(name)
        self._scheduler.remove_renderer(name)

    def has_renderer(self, name: str) -> bool:
        """Return True if the pool has the renderer, including one that is being drained."""
        return name in self._renderers

    def is_draining(self, name: str) -> bool:
        """Return True if the renderer only finishes its prompts and gets no more renders."""
        return name in self._draining

    def measure_idle_seconds(self, name: str) -> float | None:
        """Return the seconds for which the renderer has been idle; None if it is busy."""
        return self._scheduler.measure_idle_seconds(name)

    def is_followed(self, name: str) -> bool:
        """Return True if an attempt is waiting for a prompt on the renderer."""
        return any(state.followed_renderer == name for state in self._active_states.values())

    def inherit_results(self, name: str, results: Mapping[str, RenderResult]) -> None:
        """Store results of the renderer ``name``, which is about to be removed, for later attempts.

        Args:
            results: the results by prompt id.
        """
        for prompt_id, result in results.items():
            self._inherited[prompt_id] = (name, result)

    def list_places(self) -> dict[str, QueuePlace]:
        """Return the queue places of the jobs with waiting or running renders, by job id.

        A batch has the place of its first waiting render.
        """
        places: dict[str, QueuePlace] = {}
        for position, expectation in enumerate(self._scheduler.forecast(), start=1):
            place = QueuePlace(
                position=position, starts_in=expectation.starts_in, ends_in=expectation.ends_in
            )
            places.setdefault(expectation.pending.job_id, place)
        for expectation in self._scheduler.list_running():
            places.setdefault(expectation.pending.job_id, QueuePlace(ends_in=expectation.ends_in))
        return places

    def find_executed(self, prompt_ids: Collection[str]) -> list[str]:
        """Return those of ``prompt_ids`` whose prompts a renderer has executed."""
        states = {prompt_id: self._find_state(prompt_id) for prompt_id in prompt_ids}
        return [prompt_id for prompt_id, state in states.items() if state and state.is_executed]

    def close(self) -> None:
        """Reject waiting and new renders, and continue the renders in progress."""
        self._scheduler.close()

    async def render(
        self,
        request: RenderRequest,
        pending_render: PendingRender,
        on_progress: Callable[[RenderProgress], None],
        *,
        on_record: Callable[[PromptRecord], None] = lambda _: None,
        on_run: Callable[[RenderRun], None] = lambda _: None,
        on_start: Callable[[], None] = lambda: None,
        job_attempt: int = 1,
        is_retry: bool = False,
    ) -> tuple[str, RenderSucceeded]:
        """Render a prompt on the renderer that already has it, or on the next free renderer.

        Args:
            pending_render: the description of the render for the scheduler.
            on_record: called with ComfyUI's history entry, also when the render fails.
            on_run: called with each run of the prompt when it ends, also when the render fails.
            on_start: called when ComfyUI has received the prompt, but not for a prompt that has
                already ended.
            job_attempt: the number of the job's attempt; each retry of a job has a higher number.
            is_retry: True if a renderer may have the prompt from an earlier attempt.

        Returns:
            The renderer's name and its result.

        Raises:
            OutOfMemory: the render needs more memory; ``details["pool"]`` names a larger pool, if any.
            ServiceUnavailable: the pool was closed before the render began.
        """
        prompt_id = request.prompt_id
        with self._track_attempt(request) as state:
            state.newest_job_attempt = max(state.newest_job_attempt, job_attempt)
            record_duration = partial(self._record_duration, state, pending_render.shape)
            callbacks = _AttemptCallbacks(
                on_progress, on_record, on_run, on_start, lambda: None, record_duration
            )
            if is_retry or state.latest_renderer is not None:
                holder_name = await self._find_renderer(prompt_id)
                if holder_name is not None:
                    return holder_name, await self._reattach(holder_name, request, callbacks)
                if prompt_id in self._inherited:
                    name, result = self._inherited[prompt_id]
                    if result.record is not None:
                        on_record(result.record)
                    for run in result.runs:
                        on_run(run)
                    if result.runs:
                        record_duration(result.runs[-1])
                    return name, result.done
            state.is_executed = False
            self._memory.check_memory(request)
            async with self._scheduler.lease(pending_render) as lease:
                # Another attempt may have sent the prompt to a renderer during the wait.
                if state.followed_renderer is not None:
                    holder_name = state.followed_renderer
                    lease.release(has_failed=True)
                    return holder_name, await self._reattach(holder_name, request, callbacks)
                self._prepare_next(lease.name)
                on_progress(RenderProgress(value=0, max=max(1, len(request.graph))))
                state.is_unleased = False
                leased_callbacks = replace(
                    callbacks,
                    on_executed=lease.release,
                    on_measured=partial(record_duration, load_seconds=lease.load_seconds),
                )
                return lease.name, await self._follow_prompt(lease.name, request, leased_callbacks)

    async def cancel(self, prompt_id: str, job_attempt: int) -> PromptRecord | None:
        """Interrupt the prompt on its renderer; do nothing if the prompt does not run.

        Args:
            job_attempt: the number of the cancelled attempt of the job. If a later attempt has
                requested the prompt meanwhile, the prompt is not interrupted.

        Returns:
            ComfyUI's history entry of the interrupted prompt; None if there is none.

        Raises:
            WorkerLost: the renderer does not respond.
        """
        state = self._find_state(prompt_id)
        if state is None or state.latest_renderer is None:
            return None
        if state.newest_job_attempt > job_attempt:
            return None
        state.abandoned_renderer = None
        renderer = self._renderers.get(state.latest_renderer)
        return None if renderer is None else await renderer.cancel(prompt_id)

    async def find_ended_runs(self, prompt_id: str) -> list[RenderRun]:
        """Return the ended runs of a prompt that its renderer still reports.

        A renderer reports a run until `Renderer.settle` confirms that the run was recorded.
        """
        state = self._find_state(prompt_id)
        renderer = None if state is None else self._renderers.get(state.latest_renderer or "")
        if renderer is None:
            return []
        runs = (await renderer.status()).runs
        return [run for run in runs if run.prompt_id == prompt_id and run.is_ended]

    async def get(self, path: str) -> bytes | None:
        """Send GET ``path`` to one renderer's ComfyUI; return the body, or None for status 404."""
        error = ServiceUnavailable(
            f"no renderer of pool {self.name!r} is up; try again", retry_after=5
        )
        for name in self.renderers:
            try:
                return await self._renderers[name].get(path)
            except ServiceUnavailable as next_error:
                error = next_error
        raise error

    async def get_all(self, path: str) -> dict[str, bytes]:
        """Send a GET request to every renderer's ComfyUI and return the bodies by renderer name."""
        names = self.renderers
        bodies = await asyncio.gather(*(self._try_get(name, path) for name in names))
        return {name: body for name, body in zip(names, bodies, strict=True) if body is not None}

    async def _try_get(self, name: str, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                return await self._renderers[name].get(path)
        except (MoyinError, TimeoutError, KeyError):
            return None

    @contextmanager
    def _track_attempt(self, request: RenderRequest) -> Iterator[_PromptState]:
        """Track an attempt to render a prompt, and yield the prompt's state.

        The state stays available after the attempt, so that a later attempt can find the renderer.
        """
        prompt_id = request.prompt_id
        state = self._find_state(prompt_id) or _PromptState()
        self._past_states.pop(prompt_id, None)
        self._abandoned.pop(prompt_id, None)
        self._active_states[prompt_id] = state
        state.request = request
        state.attempts += 1
        try:
            yield state
        finally:
            state.attempts -= 1
            if not state.attempts:
                state.request = None
                del self._active_states[prompt_id]
                if state.abandoned_renderer is not None:
                    self._abandoned[prompt_id] = state
                elif state.latest_renderer is not None:
                    self._past_states[prompt_id] = state

    def _find_state(self, prompt_id: str) -> _PromptState | None:
        return (
            self._active_states.get(prompt_id)
            or self._abandoned.get(prompt_id)
            or self._past_states.get(prompt_id)
        )

    def _is_foreign_prompt(self, prompt_id: str) -> bool:
        state = self._find_state(prompt_id)
        return state is None or state.latest_renderer is None or state.is_unleased

    async def _find_renderer(self, prompt_id: str) -> str | None:
        """Return the name of the renderer that has the prompt or its result; None if none has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_TIMEOUT_SECONDS):
                await self.settled.wait()
        names = list(self._renderers)
        prompt_flags = await asyncio.gather(*(self._has_prompt(name, prompt_id) for name in names))
        return next(
            (name for name, has_prompt in zip(names, prompt_flags, strict=True) if has_prompt), None
        )

    async def _has_prompt(self, name: str, prompt_id: str) -> bool:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                return prompt_id in (await self._renderers[name].status()).known
        except (MoyinError, TimeoutError):
            return False

    def _record_duration(
        self, state: _PromptState, shape: str, run: RenderRun, load_seconds: float = 0.0
    ) -> None:
        """Record the duration of a successful run, once for all attempts.

        Args:
            shape: the digest of what determines the duration of a render (`compute_shape`).
            load_seconds: the estimated seconds for loading models, or 0 if none were loaded.
        """
        if state.measured_run == run.id:
            return
        state.measured_run = run.id
        # Actors of earlier versions do not measure the loading of models.
        measured_load_seconds = getattr(run, "load_seconds", 0.0)
        measured_render = MeasuredRender(
            shape=shape,
            seconds=run.seconds,
            load_seconds=measured_load_seconds,
            pictures=run.pictures,
        )
        self._scheduler.measurements.record(measured_render, load_seconds)

    def _prepare_next(self, name: str) -> None:
        """Make the renderer fetch the input files of its probable next render in advance."""
        pending_render, renderer = self._scheduler.peek_next(name), self._renderers.get(name)
        state = None if pending_render is None else self._active_states.get(pending_render.id)
        request = None if state is None else state.request
        if renderer is None or request is None or not request.files or name in self._preparing:
            return
        task = asyncio.create_task(_fetch_inputs(renderer, request))
        self._preparing[name] = task
        task.add_done_callback(lambda _: self._preparing.pop(name, None))

    async def _reattach(
        self, name: str, request: RenderRequest, callbacks: _AttemptCallbacks
    ) -> RenderSucceeded:
        """Follow a prompt that an earlier attempt has sent to the renderer ``name``.

        This attempt has no lease of the renderer. Returns the result of the prompt.
        """
        self._active_states[request.prompt_id].is_unleased = True
        return await self._follow_prompt(name, request, callbacks)

    async def _follow_prompt(
        self, name: str, request: RenderRequest, callbacks: _AttemptCallbacks
    ) -> RenderSucceeded:
        """Send the prompt to the renderer, unless it has the prompt, and return the result."""
        renderer = self._renderers.get(name)
        if renderer is None:
            raise WorkerLost(
                f"renderer {name!r} was removed before it rendered prompt {request.prompt_id}; try again"
            )
        state = self._active_states[request.prompt_id]
        state.latest_renderer = name
        state.abandoned_renderer = None
        state.is_executed = False
        state.followed_renderer = state.followed_renderer or name
        is_cancelled = False
        last_run: RenderRun | None = None
        try:
            async with aclosing(renderer.render(request)) as events:
                async for event in events:
                    if isinstance(event, RenderProgress):
                        callbacks.on_progress(event)
                    elif isinstance(event, PromptRecord):
                        callbacks.on_record(event)
                    elif isinstance(event, RenderRun):
                        last_run = event
                        callbacks.on_run(event)
                    elif isinstance(event, ExecutionStarted):
                        callbacks.on_start()
                    elif isinstance(event, ExecutionFinished):
                        state.is_executed = True
                        callbacks.on_executed()
                    elif isinstance(event, RenderSucceeded):
                        if last_run is not None:
                            callbacks.on_measured(last_run)
                        return event
                    # An actor of a later version may send events that this version does not know.
        except asyncio.CancelledError:
            is_cancelled = True
            raise
        except OutOfMemory as error:
            raise self._memory.record_failure(request, error) from error
        finally:
            if state.followed_renderer == name:
                state.followed_renderer = None
            state.abandoned_renderer = name if is_cancelled else None
            state.is_unleased = is_cancelled
        raise WorkerLost(
            f"renderer {name!r} ended prompt {request.prompt_id} without a result; try again"
        )


async def _fetch_inputs(renderer: Renderer, request: RenderRequest) -> None:
    # The error will occur again in the render, which reports it.
    with contextlib.suppress(MoyinError):
        await renderer.prepare(request)
