"""`RayRenderer`: a renderer on the other side of Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from actors.comfyui import ActorStatus, Failure, Told
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RendererStatus, RenderEvent, RenderRequest, RenderResult
from moyin.errors import MoyinError, WorkerLost

__all__ = ["RayRenderer"]

_CLOSE_SECONDS = 10.0
T = TypeVar("T")


class RayRenderer:
    """`moyin.domain.renderer.Renderer` on a `ComfyUIActor`. A dead actor is `WorkerLost`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._render = handle.render.options(num_returns="streaming")
        self._placed = False

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        stream = self._render.remote(request)
        try:
            async for reference in stream:
                told: Told = await reference
                for event in told:
                    if isinstance(event, Failure):
                        raise event.error
                    yield event
        except RayError as error:
            raise _translated(error) from error

    async def prepare(self, request: RenderRequest) -> None:
        await _answer(self._handle.prepare.remote(request))

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        return await _answer(self._handle.cancel.remote(prompt_id))

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return await _answer(self._handle.validate.remote(dict(graph), targets))

    async def object_info(self) -> dict[str, Any]:
        return await _answer(self._handle.object_info.remote())

    async def fetch(self, path: str) -> bytes | None:
        return await _answer(self._handle.fetch.remote(path))

    async def results(self) -> Mapping[str, RenderResult]:
        return await _answer(self._handle.results.remote())

    async def status(self) -> RendererStatus:
        return (await self.actor_status()).renderer

    async def actor_status(self) -> ActorStatus:
        """Waits until the actor has its place, however long that takes."""
        status: ActorStatus = await _answer(self._handle.status.remote())
        self._placed = True
        return status

    async def retire(self) -> None:
        """Stop ComfyUI, then remove the actor for good."""
        if self._placed:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._handle.close.remote()
        await asyncio.to_thread(ray.kill, self._handle, no_restart=True)


async def _answer(reference: Awaitable[T]) -> T:
    try:
        return await reference
    except RayError as error:
        raise _translated(error) from error


def _translated(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, MoyinError) else error
    return WorkerLost("the render actor was lost")
