"""`Pool`: the renderers of one pool, and how a render is sent through them. Imports no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import chain

from deployments.render.guard import MemoryGuard
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import (
    ExecutionFinished,
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

__all__ = ["Pool"]

_REQUEST_SECONDS = 5.0
_SETTLE_SECONDS = 20.0
_REMEMBERED_PROMPTS = 4096
_REMEMBERED_RESULTS = 1024


@dataclass(frozen=True, slots=True)
class _Callbacks:
    """Receive the events of one attempt to render a prompt."""

    on_progress: Callable[[RenderProgress], None]
    on_record: Callable[[PromptRecord], None]
    on_executed: Callable[[], None]


@dataclass(slots=True)
class _PromptState:
    """Holds what the pool knows about one prompt.

    Attributes:
        attempts: calls of `Pool.render` for this prompt that are in progress.
        request: the latest request; None while no attempt is in progress.
        sent_to: name of the renderer that last got the prompt, whether it has finished or not; a
            cancellation may come after the last attempt has ended.
        followed_on: name of the renderer whose events an attempt reads now.
        abandoned_on: name of the renderer on which the last attempt left the prompt unfinished.
        is_unleased: the prompt may run without a lease, so its renderer is busy although the
            scheduler has not assigned it.
        is_executed: the renderer has executed the prompt; its files may still be being stored.
    """

    attempts: int = 0
    request: RenderRequest | None = None
    sent_to: str | None = None
    followed_on: str | None = None
    abandoned_on: str | None = None
    is_unleased: bool = False
    is_executed: bool = False


class Pool:
    """Assigns renders to renderers, which are added and removed at any time.

    Args:
        memory: refuses renders that are too large for this pool; by default it refuses none.

    Attributes:
        settled: set once every renderer that an earlier pool left behind has been seen.
    """

    def __init__(
        self,
        name: str,
        scheduler: RenderScheduler | None = None,
        memory: MemoryGuard | None = None,
    ) -> None:
        self.name = name
        self._scheduler = scheduler or RenderScheduler()
        self._memory = memory or MemoryGuard()
        self._renderers: dict[str, Renderer] = {}
        # Renderers that finish their work for another configuration, whose nodes may differ.
        self._draining: set[str] = set()
        self._preparing: dict[str, asyncio.Task[None]] = {}
        # Prompts with an attempt in progress, and earlier ones. Abandoned ones are kept apart: their
        # results are still to be fetched, so finished prompts must not displace them.
        self._active: dict[str, _PromptState] = {}
        self._past: BoundedDict[str, _PromptState] = BoundedDict(_REMEMBERED_PROMPTS)
        self._abandoned: BoundedDict[str, _PromptState] = BoundedDict(_REMEMBERED_PROMPTS)
        # Results of renderers that have been removed, with the renderer's name.
        self._inherited: BoundedDict[str, tuple[str, RenderResult]]
        self._inherited = BoundedDict(_REMEMBERED_RESULTS)
        self.settled = asyncio.Event()
        self.settled.set()

    @property
    def waiting(self) -> int:
        """The number of renders that no renderer has taken yet."""
        return self._scheduler.waiting

    @property
    def renderers(self) -> list[str]:
        """The names of the renderers that take work."""
        return [name for name in self._renderers if name not in self._draining]

    @property
    def mean_seconds(self) -> float:
        """The mean duration of a render, in seconds."""
        return self._scheduler.mean_seconds

    @property
    def model_changes(self) -> int:
        """The number of times that a renderer had to load models."""
        return self._scheduler.model_changes

    @property
    def abandoned_renderers(self) -> frozenset[str]:
        """The names of renderers with a prompt whose last attempt ended before the prompt did."""
        states = chain(self._active.values(), self._abandoned.values())
        return frozenset(state.abandoned_on for state in states if state.abandoned_on is not None)

    def add_renderer(self, name: str, renderer: Renderer, status: RendererStatus) -> None:
        """Let a renderer take work, or update what is known about it from its ``status``."""
        self._renderers[name] = renderer
        self._draining.discard(name)
        self._memory.set_available(status.memory)
        # A running prompt that was never sent by this pool was sent by a pool before it.
        foreign = [prompt_id for prompt_id in status.running if self._is_foreign(prompt_id)]
        self._scheduler.add_renderer(name, foreign, status.models)

    def remove_renderer(self, name: str) -> None:
        """Forget a renderer; do nothing if it is not there."""
        self._renderers.pop(name, None)
        self._draining.discard(name)
        self._scheduler.remove_renderer(name)

    def drain_renderer(self, name: str, renderer: Renderer) -> None:
        """Send a renderer no more work, but keep following the prompts that it has."""
        self._renderers[name] = renderer
        self._draining.add(name)
        self._scheduler.remove_renderer(name)

    def has_renderer(self, name: str) -> bool:
        """Return whether the renderer takes work or is being drained."""
        return name in self._renderers

    def is_draining(self, name: str) -> bool:
        """Return whether the renderer takes no more work."""
        return name in self._draining

    def idle_seconds(self, name: str) -> float | None:
        """Return for how many seconds the renderer has been free; None while it is busy."""
        return self._scheduler.idle_seconds(name)

    def is_followed(self, name: str) -> bool:
        """Return whether an attempt waits for a prompt on the renderer."""
        return any(state.followed_on == name for state in self._active.values())

    def inherit(self, name: str, results: Mapping[str, RenderResult]) -> None:
        """Keep the results of a renderer that is removed, for attempts that come later."""
        for prompt_id, result in results.items():
            self._inherited[prompt_id] = (name, result)

    def executed(self, prompt_ids: Collection[str]) -> list[str]:
        """Return those of the prompts that a renderer has executed."""
        states = {prompt_id: self._state(prompt_id) for prompt_id in prompt_ids}
        return [prompt_id for prompt_id, state in states.items() if state and state.is_executed]

    def close(self) -> None:
        """Reject waiting and new renders; let renders in progress go on."""
        self._scheduler.close()

    async def render(
        self,
        request: RenderRequest,
        pending: PendingRender,
        on_progress: Callable[[RenderProgress], None],
        *,
        on_record: Callable[[PromptRecord], None] = lambda _: None,
        is_retry: bool = False,
    ) -> tuple[str, RenderSucceeded]:
        """Render on the renderer that already has the prompt, or else on a free one.

        Args:
            on_record: called with ComfyUI's history entry, also when the render fails.
            is_retry: an earlier attempt may have left the prompt on a renderer.

        Returns:
            The renderer's name and its result.

        Raises:
            OutOfMemory: ``details["pool"]`` names the pool that should render it, if there is one.
            ServiceUnavailable: the pool was closed before the render began.
            MoyinError: as `Renderer.render` does.
        """
        prompt_id = request.prompt_id
        with self._attempt(request) as state:
            if is_retry or state.sent_to is not None:
                holder = await self._find_holder(prompt_id)
                if holder is not None:
                    return holder, await self._attach(holder, request, on_progress, on_record)
                if prompt_id in self._inherited:
                    name, result = self._inherited[prompt_id]
                    if result.record is not None:
                        on_record(result.record)
                    return name, result.done
            state.is_executed = False
            self._memory.check(request)
            async with self._scheduler.lease(pending) as lease:
                # Another attempt at the same prompt may have got a renderer in the meantime.
                if state.followed_on is not None:
                    holder = state.followed_on
                    lease.release()
                    return holder, await self._attach(holder, request, on_progress, on_record)
                self._prepare_next(lease.name)
                on_progress(RenderProgress(value=0, max=max(1, len(request.graph))))
                state.is_unleased = False
                callbacks = _Callbacks(on_progress, on_record, lease.release)
                return lease.name, await self._follow(lease.name, request, callbacks)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """Interrupt the prompt on its renderer; do nothing if it does not run.

        Returns:
            See `Renderer.cancel`.

        Raises:
            WorkerLost: the renderer does not answer.
        """
        state = self._state(prompt_id)
        if state is None or state.sent_to is None:
            return None
        state.abandoned_on = None
        renderer = self._renderers.get(state.sent_to)
        return None if renderer is None else await renderer.cancel(prompt_id)

    async def get(self, path: str) -> bytes | None:
        """Return the body that one renderer's ComfyUI serves at ``path``; None if there is none.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        for name in self.renderers:
            return await self._renderers[name].get(path)
        raise ServiceUnavailable(f"no renderer of pool {self.name!r} is up", retry_after=5)

    async def get_all(self, path: str) -> dict[str, bytes]:
        """Return the bodies that the renderers serve at ``path``, by renderer.

        Renderers that fail or have nothing at this path are left out.
        """
        names = self.renderers
        bodies = await asyncio.gather(*(self._get_from(name, path) for name in names))
        return {name: body for name, body in zip(names, bodies, strict=True) if body is not None}

    async def _get_from(self, name: str, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await self._renderers[name].get(path)
        except (MoyinError, TimeoutError, KeyError):
            return None

    @contextmanager
    def _attempt(self, request: RenderRequest) -> Iterator[_PromptState]:
        """Keep the prompt's state among the active ones while an attempt is in progress."""
        prompt_id = request.prompt_id
        state = self._state(prompt_id) or _PromptState()
        self._past.pop(prompt_id, None)
        self._abandoned.pop(prompt_id, None)
        self._active[prompt_id] = state
        state.request = request
        state.attempts += 1
        try:
            yield state
        finally:
            state.attempts -= 1
            if not state.attempts:
                state.request = None
                del self._active[prompt_id]
                if state.abandoned_on is not None:
                    self._abandoned[prompt_id] = state
                elif state.sent_to is not None:
                    self._past[prompt_id] = state

    def _state(self, prompt_id: str) -> _PromptState | None:
        return (
            self._active.get(prompt_id)
            or self._abandoned.get(prompt_id)
            or self._past.get(prompt_id)
        )

    def _is_foreign(self, prompt_id: str) -> bool:
        state = self._state(prompt_id)
        return state is None or state.sent_to is None or state.is_unleased

    async def _find_holder(self, prompt_id: str) -> str | None:
        """Return the name of the renderer that has the prompt or its result."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self.settled.wait()
        names = list(self._renderers)
        known = await asyncio.gather(*(self._knows(name, prompt_id) for name in names))
        return next((name for name, knows in zip(names, known, strict=True) if knows), None)

    async def _knows(self, name: str, prompt_id: str) -> bool:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                return prompt_id in (await self._renderers[name].status()).known
        except (MoyinError, TimeoutError):
            return False

    def _prepare_next(self, name: str) -> None:
        """Have the renderer fetch the inputs of its probable next render during this one."""
        pending, renderer = self._scheduler.peek_next(name), self._renderers.get(name)
        state = None if pending is None else self._active.get(pending.id)
        request = None if state is None else state.request
        if renderer is None or request is None or not request.files or name in self._preparing:
            return
        task = asyncio.create_task(_prepare(renderer, request))
        self._preparing[name] = task
        task.add_done_callback(lambda _: self._preparing.pop(name, None))

    async def _attach(
        self,
        name: str,
        request: RenderRequest,
        on_progress: Callable[[RenderProgress], None],
        on_record: Callable[[PromptRecord], None],
    ) -> RenderSucceeded:
        """Follow a prompt that an earlier attempt has sent; there is no lease to release."""
        self._active[request.prompt_id].is_unleased = True
        callbacks = _Callbacks(on_progress, on_record, lambda: None)
        return await self._follow(name, request, callbacks)

    async def _follow(
        self, name: str, request: RenderRequest, callbacks: _Callbacks
    ) -> RenderSucceeded:
        """Send the prompt to the renderer, which may have it already, and wait for its end."""
        renderer = self._renderers.get(name)
        if renderer is None:
            raise WorkerLost(f"renderer {name!r} was removed before the render began")
        state = self._active[request.prompt_id]
        state.sent_to = name
        state.abandoned_on = None
        state.is_executed = False
        state.followed_on = state.followed_on or name
        is_cancelled = False
        try:
            async with aclosing(renderer.render(request)) as events:
                async for event in events:
                    if isinstance(event, RenderProgress):
                        callbacks.on_progress(event)
                    elif isinstance(event, PromptRecord):
                        callbacks.on_record(event)
                    elif isinstance(event, ExecutionFinished):
                        state.is_executed = True
                        callbacks.on_executed()
                    else:
                        return event
        except asyncio.CancelledError:
            is_cancelled = True
            raise
        except OutOfMemory as error:
            raise self._memory.redirect(request, error) from error
        finally:
            if state.followed_on == name:
                state.followed_on = None
            state.abandoned_on = name if is_cancelled else None
            state.is_unleased = is_cancelled
        raise WorkerLost(f"renderer {name!r} ended the render without a result")


async def _prepare(renderer: Renderer, request: RenderRequest) -> None:
    # The render itself will report the same error.
    with contextlib.suppress(MoyinError):
        await renderer.prepare(request)
