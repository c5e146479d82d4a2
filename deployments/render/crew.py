"""`Crew`: keeps the actors of a pool: starts or adopts them, watches them, removes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from actors.comfyui import ActorStatus, ComfySpec, Failure, find_or_start
from deployments.render.pool import Pool
from moyin.comfyui.port import RendererStatus, RenderEvent, RenderRequest
from moyin.errors import MoyinError, WorkerLost

__all__ = ["Crew", "RayRenderer"]

_log = logging.getLogger(__name__)
_WATCH_SECONDS = 1.0
_CLOSE_SECONDS = 10.0
T = TypeVar("T")


class RayRenderer:
    """`moyin.comfyui.port.Renderer` on a `ComfyUIActor`. A dead actor is `WorkerLost`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        stream = self._handle.render.options(num_returns="streaming").remote(request)
        try:
            async for reference in stream:
                item = await reference
                if isinstance(item, Failure):
                    raise item.error
                yield item
        except RayError as error:
            raise _translated(error) from error

    async def cancel(self, prompt_id: str) -> None:
        await _answer(self._handle.cancel.remote(prompt_id))

    async def validate(self, graph: Mapping[str, Any]) -> dict[str, Any] | None:
        return await _answer(self._handle.validate.remote(dict(graph)))

    async def object_info(self) -> dict[str, Any]:
        return await _answer(self._handle.object_info.remote())

    async def status(self) -> RendererStatus:
        return (await self.actor_status()).renderer

    async def actor_status(self) -> ActorStatus:
        return await _answer(self._handle.status.remote())

    async def retire(self) -> None:
        """Stop ComfyUI, then remove the actor for good."""
        with contextlib.suppress(RayError, TimeoutError):
            await asyncio.wait_for(self._handle.close.remote(), _CLOSE_SECONDS)
        await asyncio.to_thread(ray.kill, self._handle, no_restart=True)


class Crew:
    """Detached actors ``comfyui-<pool>-<i>``. They may take as long as they like to be placed."""

    def __init__(self, pool: Pool, spec: ComfySpec, count: int) -> None:
        self._pool = pool
        self._spec = spec
        self._names = [f"comfyui-{pool.name}-{number}" for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []
        self._renderers: dict[str, RayRenderer] = {}
        self.statuses: dict[str, ActorStatus] = {}

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(name)) for name in self._names]

    def check(self) -> None:
        """
        Raises:
            RuntimeError: nobody looks after an actor any more, which is a bug.
        """
        if any(task.done() for task in self._tasks):
            raise RuntimeError("an actor is no longer looked after")

    async def leave(self) -> None:
        """Stop watching; the actors stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def remove(self) -> None:
        """Remove the actors for good, with what they render."""
        await self.leave()
        await asyncio.gather(*(renderer.retire() for renderer in self._renderers.values()))

    async def _keep(self, name: str) -> None:
        while True:
            try:
                handle = await asyncio.to_thread(find_or_start, name, self._spec)
                await self._watch(name, RayRenderer(handle))
            except (MoyinError, RayError, ValueError) as error:
                _log.warning("actor %s: %s", name, error)
            self.statuses.pop(name, None)
            self._pool.down(name)
            await asyncio.sleep(_WATCH_SECONDS)

    async def _watch(self, name: str, renderer: RayRenderer) -> None:
        """Follow an actor until it dies or must be replaced by one of another specification."""
        self._renderers[name] = renderer
        while True:
            status = await renderer.actor_status()
            self.statuses[name] = status
            if status.spec != self._spec:
                self._pool.down(name)
                if not status.renderer.running:
                    _log.info("actor %s has another specification; replacing it", name)
                    await renderer.retire()
                    return
            elif status.renderer.ready:
                self._pool.up(name, renderer, status.renderer.running)
            else:
                self._pool.down(name)
            await asyncio.sleep(_WATCH_SECONDS)


async def _answer(reference: Awaitable[T]) -> T:
    try:
        return await reference
    except RayError as error:
        raise _translated(error) from error


def _translated(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, MoyinError) else error
    return WorkerLost("the render actor was lost")
