"""`RayRenderer`: a renderer that runs in a Ray actor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from actors.comfyui import ActorStatus, EventBatch, Failure
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RendererStatus, RenderEvent, RenderRequest, RenderResult
from moyin.errors import MoyinError, WorkerLost

__all__ = ["RayRenderer"]

_CLOSE_SECONDS = 10.0
T = TypeVar("T")


class RayRenderer:
    """Implements `moyin.domain.renderer.Renderer` by calls of a `ComfyUIActor`.

    A dead actor raises `WorkerLost`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._render = handle.render.options(num_returns="streaming")
        self._is_placed = False

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        stream = self._render.remote(request)
        try:
            async for reference in stream:
                batch: EventBatch = await reference
                for event in batch:
                    if isinstance(event, Failure):
                        raise event.error
                    yield event
        except RayError as error:
            raise _translate(error) from error

    async def prepare(self, request: RenderRequest) -> None:
        await _result(self._handle.prepare.remote(request))

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        return await _result(self._handle.cancel.remote(prompt_id))

    async def get(self, path: str) -> bytes | None:
        return await _result(self._handle.get.remote(path))

    async def results(self) -> Mapping[str, RenderResult]:
        return await _result(self._handle.results.remote())

    async def status(self) -> RendererStatus:
        return (await self.actor_status()).renderer

    async def actor_status(self) -> ActorStatus:
        """Return the actor's status; wait until Ray has placed it, however long that takes."""
        status: ActorStatus = await _result(self._handle.status.remote())
        self._is_placed = True
        return status

    async def retire(self) -> None:
        """Stop ComfyUI, then remove the actor for good."""
        if self._is_placed:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._handle.close.remote()
        await asyncio.to_thread(ray.kill, self._handle, no_restart=True)


async def _result(reference: Awaitable[T]) -> T:
    try:
        return await reference
    except RayError as error:
        raise _translate(error) from error


def _translate(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, MoyinError) else error
    return WorkerLost("the render actor was lost")
