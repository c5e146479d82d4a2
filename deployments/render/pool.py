"""`Pool`: the renderers of one pool, and the way of a render through them. Knows no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from typing import Any

from moyin.comfyui.port import (
    Executed,
    RenderDone,
    Renderer,
    RenderProgress,
    RenderRequest,
)
from moyin.comfyui.prompts import Memory
from moyin.errors import MoyinError, ServiceUnavailable, WorkerLost
from moyin.scheduling.dispatcher import Dispatcher
from moyin.scheduling.policy import Waiting

__all__ = ["Pool"]

_ASK_SECONDS = 2.0
_REMEMBERED = 4096


class Pool:
    """Which renderers there are changes at any time, by `up` and `down`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._dispatcher = Dispatcher()
        self._renderers: dict[str, Renderer] = {}
        # Where prompts were sent, finished ones too: a cancellation may come after its watcher left.
        self._sent: Memory[str, str] = Memory(_REMEMBERED)

    @property
    def waiting(self) -> int:
        """Renders without a renderer yet."""
        return self._dispatcher.waiting

    def up(self, name: str, renderer: Renderer, running: Collection[str]) -> None:
        """The renderer takes work. ``running``: the prompts that it is at."""
        self._renderers[name] = renderer
        # What runs there and never came through here was sent by a pool before this one.
        foreign = [prompt_id for prompt_id in running if prompt_id not in self._sent]
        self._dispatcher.up(name, foreign)

    def down(self, name: str) -> None:
        self._renderers.pop(name, None)
        self._dispatcher.down(name)

    async def render(
        self,
        request: RenderRequest,
        waiting: Waiting,
        on_progress: Callable[[RenderProgress], None],
    ) -> tuple[str, RenderDone]:
        """Render on whichever renderer knows the prompt already, else on one that is free.

        Returns:
            The renderer's name and what it made.

        Raises:
            MoyinError: as `Renderer.render` does.
        """
        holder = await self._holder(request.prompt_id)
        if holder is not None:
            return holder, await self._drive(holder, request, on_progress, _nothing)
        async with self._dispatcher.lease(waiting) as lease:
            return lease.name, await self._drive(lease.name, request, on_progress, lease.release)

    async def cancel(self, prompt_id: str) -> None:
        """Interrupt the prompt where it runs; nothing when it does not run.

        Raises:
            WorkerLost: its renderer does not answer.
        """
        renderer = self._renderers.get(self._sent.get(prompt_id, ""))
        if renderer is not None:
            await renderer.cancel(prompt_id)

    async def validate(self, graph: Mapping[str, Any]) -> dict[str, Any] | None:
        """ComfyUI's own validation body, or None when it accepts the graph.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        return await self._any().validate(graph)

    async def object_info(self) -> dict[str, Any]:
        """The nodes that the pool knows.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        return await self._any().object_info()

    def _any(self) -> Renderer:
        for renderer in self._renderers.values():
            return renderer
        raise ServiceUnavailable(f"no renderer of pool {self.name!r} is up", retry_after=5)

    async def _holder(self, prompt_id: str) -> str | None:
        names = list(self._renderers)
        found = await asyncio.gather(*(self._knows(name, prompt_id) for name in names))
        return next((name for name, known in zip(names, found, strict=True) if known), None)

    async def _knows(self, name: str, prompt_id: str) -> bool:
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                return prompt_id in (await self._renderers[name].status()).known
        except (MoyinError, TimeoutError):
            return False

    async def _drive(
        self,
        name: str,
        request: RenderRequest,
        on_progress: Callable[[RenderProgress], None],
        on_executed: Callable[[], None],
    ) -> RenderDone:
        renderer = self._renderers.get(name)
        if renderer is None:
            raise WorkerLost("the renderer went away before it began")
        self._sent[request.prompt_id] = name
        async with aclosing(renderer.render(request)) as events:
            async for event in events:
                if isinstance(event, RenderProgress):
                    on_progress(event)
                elif isinstance(event, Executed):
                    on_executed()
                else:
                    return event
        raise WorkerLost("the render ended without a result")


def _nothing() -> None:
    """For renders that hold no lease."""
