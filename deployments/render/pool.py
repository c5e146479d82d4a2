"""`Pool`: the renderers of one pool, and the way of a render through them. Knows no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from deployments.render.memory import MemoryGuard
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
from moyin.errors import (
    MoyinError,
    OutOfMemory,
    ServiceUnavailable,
    WorkerLost,
)
from moyin.render.comfyui.prompts import BoundedDict
from moyin.render.scheduling.policy import PendingRender
from moyin.render.scheduling.scheduler import RenderScheduler

__all__ = ["Pool"]

_ASK_SECONDS = 5.0
_SETTLE_SECONDS = 20.0
_REMEMBERED = 4096
_INHERITED = 1024


@dataclass(frozen=True, slots=True)
class _Told:
    """Who hears of a render on its way."""

    progress: Callable[[RenderProgress], None]
    record: Callable[[PromptRecord], None]
    executed: Callable[[], None]


class Pool:
    """Which renderers there are changes at any time, by `up` and `down`.

    Args:
        memory: what is too large for this pool; by default nothing is.
    """

    def __init__(
        self,
        name: str,
        dispatcher: RenderScheduler | None = None,
        memory: MemoryGuard | None = None,
    ) -> None:
        self.name = name
        self._dispatcher = dispatcher or RenderScheduler()
        self._memory = memory or MemoryGuard()
        self._renderers: dict[str, Renderer] = {}
        # Those that finish their work for another configuration, whose nodes may differ.
        self._draining: set[str] = set()
        self._requests: dict[str, RenderRequest] = {}
        self._preparing: dict[str, asyncio.Task[None]] = {}
        # Where prompts were sent, finished ones too: a cancellation may come after its watcher left.
        self._sent: BoundedDict[str, str] = BoundedDict(_REMEMBERED)
        # Where prompts are being followed now.
        self._followed: dict[str, str] = {}
        # Prompts under way without a lease: their renderer is not free, though no lease says so.
        self._unleased: BoundedDict[str, str] = BoundedDict(_REMEMBERED)
        # Prompts that nobody follows any more though they had no end, and where they are.
        self._left: BoundedDict[str, str] = BoundedDict(_REMEMBERED)
        # Prompts that a renderer is through with, though their files may still be on their way.
        self._executed: BoundedDict[str, None] = BoundedDict(_REMEMBERED)
        # What renderers finished that are gone now.
        self._inherited: BoundedDict[str, tuple[str, RenderResult]] = BoundedDict(_INHERITED)
        # Set once the renderers that an earlier pool left have been seen.
        self.settled = asyncio.Event()
        self.settled.set()

    @property
    def waiting(self) -> int:
        """Renders without a renderer yet."""
        return self._dispatcher.waiting

    @property
    def renderers(self) -> list[str]:
        """Names of those that take work."""
        return [name for name in self._renderers if name not in self._draining]

    def up(self, name: str, renderer: Renderer, status: RendererStatus) -> None:
        """The renderer takes work; ``status`` is its own."""
        self._renderers[name] = renderer
        self._draining.discard(name)
        self._memory.saw(status.memory)
        # What runs there and never came through here was sent by a pool before this one.
        foreign = [
            prompt_id
            for prompt_id in status.running
            if prompt_id not in self._sent or prompt_id in self._unleased
        ]
        self._dispatcher.up(name, foreign, status.models)

    @property
    def service(self) -> float:
        """Seconds that a render takes, on average."""
        return self._dispatcher.service

    @property
    def changes(self) -> int:
        """How often a renderer had to load models."""
        return self._dispatcher.changes

    def has(self, name: str) -> bool:
        """Whether the renderer takes work, or is at the last that it took."""
        return name in self._renderers

    def is_draining(self, name: str) -> bool:
        """Whether the renderer takes no more work."""
        return name in self._draining

    def idle(self, name: str) -> float | None:
        """Seconds for which the renderer has had nothing to do; None when it has."""
        return self._dispatcher.idle(name)

    def drain(self, name: str, renderer: Renderer) -> None:
        """The renderer takes no more work; what it knows may be asked for."""
        self._renderers[name] = renderer
        self._draining.add(name)
        self._dispatcher.down(name)

    @property
    def left(self) -> frozenset[str]:
        """Renderers with prompts whose end nobody was there to hear."""
        return frozenset(self._left.values())

    def follows(self, name: str) -> bool:
        """Whether somebody waits for what the renderer does."""
        return name in self._followed.values()

    def inherit(self, name: str, results: Mapping[str, RenderResult]) -> None:
        """A renderer goes away; what it has finished may still be asked for."""
        for prompt_id, result in results.items():
            self._inherited[prompt_id] = (name, result)

    def executed(self, prompt_ids: Collection[str]) -> list[str]:
        """Those of the prompts of which no renderer has anything left to do."""
        return [prompt_id for prompt_id in prompt_ids if prompt_id in self._executed]

    def close(self) -> None:
        """Nothing more begins here: what waits is sent back, what is under way goes on."""
        self._dispatcher.close()

    def down(self, name: str) -> None:
        self._renderers.pop(name, None)
        self._draining.discard(name)
        self._dispatcher.down(name)

    async def render(
        self,
        request: RenderRequest,
        waiting: PendingRender,
        on_progress: Callable[[RenderProgress], None],
        *,
        on_record: Callable[[PromptRecord], None] = lambda _: None,
        repeated: bool = False,
    ) -> tuple[str, RenderSucceeded]:
        """Render on whichever renderer knows the prompt already, else on one that is free.

        Args:
            on_record: told what ComfyUI's history says, also of a render that fails.
            repeated: an earlier attempt may have left the prompt with a renderer.

        Returns:
            The renderer's name and what it made.

        Raises:
            OutOfMemory: ``details["pool"]`` names the pool to go to, if there is one.
            ServiceUnavailable: the pool closes before it began.
            MoyinError: as `Renderer.render` does.
        """
        prompt_id = request.prompt_id
        if repeated or prompt_id in self._sent:
            holder = await self._holder(prompt_id)
            if holder is not None:
                return holder, await self._attach(holder, request, on_progress, on_record)
            if prompt_id in self._inherited:
                name, result = self._inherited[prompt_id]
                if result.record is not None:
                    on_record(result.record)
                return name, result.done
        self._executed.pop(prompt_id, None)
        self._memory.check(request)
        self._requests[request.prompt_id] = request
        try:
            async with self._dispatcher.lease(waiting) as lease:
                # Another attempt of the same render may have waited beside this one.
                holder = self._followed.get(prompt_id)
                if holder is not None:
                    lease.release()
                    return holder, await self._attach(holder, request, on_progress, on_record)
                self._prepare_next(lease.name)
                on_progress(RenderProgress(value=0, max=max(1, len(request.graph))))
                self._unleased.pop(prompt_id, None)
                told = _Told(on_progress, on_record, lease.release)
                return lease.name, await self._drive(lease.name, request, told)
        finally:
            self._requests.pop(request.prompt_id, None)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """Interrupt the prompt where it runs; nothing when it does not run.

        Returns:
            See `Renderer.cancel`.

        Raises:
            WorkerLost: its renderer does not answer.
        """
        self._left.pop(prompt_id, None)
        renderer = self._renderers.get(self._sent.get(prompt_id, ""))
        return None if renderer is None else await renderer.cancel(prompt_id)

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """ComfyUI's own validation body; see `moyin.domain.renderer.Renderer`.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        return await self._any().validate(graph, targets)

    async def object_info(self) -> dict[str, Any]:
        """The nodes that the pool knows.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        return await self._any().object_info()

    async def fetch(self, path: str) -> bytes | None:
        """What a renderer answers to GET; None: it has nothing there.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        return await self._any().fetch(path)

    async def ask_all(self, path: str) -> dict[str, bytes]:
        """What every renderer answers, by name; those that have or say nothing miss."""
        names = self.renderers
        found = await asyncio.gather(*(self._asked(name, path) for name in names))
        return {name: said for name, said in zip(names, found, strict=True) if said is not None}

    async def _asked(self, name: str, path: str) -> bytes | None:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return await self._renderers[name].fetch(path)
        except (MoyinError, TimeoutError, KeyError):
            return None

    def _any(self) -> Renderer:
        for name in self.renderers:
            return self._renderers[name]
        raise ServiceUnavailable(f"no renderer of pool {self.name!r} is up", retry_after=5)

    async def _holder(self, prompt_id: str) -> str | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self.settled.wait()
        names = list(self._renderers)
        found = await asyncio.gather(*(self._knows(name, prompt_id) for name in names))
        return next((name for name, known in zip(names, found, strict=True) if known), None)

    async def _knows(self, name: str, prompt_id: str) -> bool:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return prompt_id in (await self._renderers[name].status()).known
        except (MoyinError, TimeoutError):
            return False

    def _prepare_next(self, name: str) -> None:
        """Have the renderer fetch the inputs of its probable next render during this one."""
        foreseen, renderer = self._dispatcher.next_for(name), self._renderers.get(name)
        request = None if foreseen is None else self._requests.get(foreseen.id)
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
        """Follow a prompt that an earlier attempt has sent."""
        self._unleased[request.prompt_id] = name
        return await self._drive(name, request, _Told(on_progress, on_record, _nothing))

    async def _drive(self, name: str, request: RenderRequest, told: _Told) -> RenderSucceeded:
        renderer = self._renderers.get(name)
        if renderer is None:
            raise WorkerLost("the renderer went away before it began")
        self._sent[request.prompt_id] = name
        self._left.pop(request.prompt_id, None)
        self._executed.pop(request.prompt_id, None)
        self._followed.setdefault(request.prompt_id, name)
        left = False
        try:
            async with aclosing(renderer.render(request)) as events:
                async for event in events:
                    if isinstance(event, RenderProgress):
                        told.progress(event)
                    elif isinstance(event, PromptRecord):
                        told.record(event)
                    elif isinstance(event, ExecutionFinished):
                        self._executed[request.prompt_id] = None
                        told.executed()
                    else:
                        return event
        except asyncio.CancelledError:
            left = True
            raise
        except OutOfMemory as error:
            raise self._memory.exceeded(request, error) from error
        finally:
            if self._followed.get(request.prompt_id) == name:
                del self._followed[request.prompt_id]
            for noted in (self._left, self._unleased):
                if left:
                    noted[request.prompt_id] = name
                else:
                    noted.pop(request.prompt_id, None)
        raise WorkerLost("the render ended without a result")


async def _prepare(renderer: Renderer, request: RenderRequest) -> None:
    # Whatever is wrong is said when the render's own turn has come.
    with contextlib.suppress(MoyinError):
        await renderer.prepare(request)


def _nothing() -> None:
    """For renders that hold no lease."""
