"""`RayRenderer`: a renderer on the other side of Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from actors.comfyui import ActorStatus, Failure, Told
from moyin.comfyui.port import RendererStatus, RenderEvent, RenderRequest, RenderResult
from moyin.errors import MoyinError, WorkerLost

__all__ = ["RayRenderer"]

_log = logging.getLogger(__name__)
_CLOSE_SECONDS = 10.0
_ASK_SECONDS = 5.0
# An end has been seen to get lost between actor and pool on a busy machine: its reader waited for
# ever, and a render that is done must not.
_SILENCE_SECONDS = 15.0
T = TypeVar("T")


class RayRenderer:
    """`moyin.comfyui.port.Renderer` on a `ComfyUIActor`. A dead actor is `WorkerLost`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._render = handle.render.options(num_returns="streaming")
        self._placed = False

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        stream = self._render.remote(request)
        while True:
            item = asyncio.create_task(_item(stream))
            try:
                if not await self._comes(item, request.prompt_id):
                    _log.warning("an end was lost on its way; asking again: %s", request.prompt_id)
                    stream = self._render.remote(request)
                    continue
                events = item.result()
            except RayError as error:
                raise _translated(error) from error
            finally:
                item.cancel()
            if events is None:
                return
            for event in events:
                if isinstance(event, Failure):
                    raise event.error
                yield event

    async def prepare(self, request: RenderRequest) -> None:
        await _answer(self._handle.prepare.remote(request))

    async def cancel(self, prompt_id: str) -> None:
        await _answer(self._handle.cancel.remote(prompt_id))

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return await _answer(self._handle.validate.remote(dict(graph), targets))

    async def object_info(self) -> dict[str, Any]:
        return await _answer(self._handle.object_info.remote())

    async def ask(self, path: str) -> bytes | None:
        return await _answer(self._handle.ask.remote(path))

    async def results(self) -> Mapping[str, RenderResult]:
        return await _answer(self._handle.results.remote())

    async def status(self) -> RendererStatus:
        return (await self.actor_status()).renderer

    async def actor_status(self) -> ActorStatus:
        """Waits until the actor has its place, however long that takes."""
        status: ActorStatus = await _answer(self._handle.status.remote())
        self._placed = True
        return status

    async def _comes(self, item: asyncio.Task[Any], prompt_id: str) -> bool:
        """Wait for ``item``. False: the actor has ended the prompt, and what it said never came.

        Raises:
            WorkerLost: the actor knows nothing of the prompt.
        """
        while not (await asyncio.wait([item], timeout=_SILENCE_SECONDS))[0]:
            try:
                async with asyncio.timeout(_ASK_SECONDS):
                    status = (await self.actor_status()).renderer
            except TimeoutError:
                continue  # busy, or about to start
            if prompt_id in status.running:
                continue
            # The end may have come between the two.
            if (await asyncio.wait([item], timeout=_ASK_SECONDS))[0]:
                break
            if prompt_id not in status.known:
                raise WorkerLost("the render actor does not know the prompt any more")
            return False
        return True

    async def retire(self) -> None:
        """Stop ComfyUI, then remove the actor for good."""
        if self._placed:
            with contextlib.suppress(RayError, TimeoutError):
                await asyncio.wait_for(self._handle.close.remote(), _CLOSE_SECONDS)
        await asyncio.to_thread(ray.kill, self._handle, no_restart=True)


async def _item(stream: Any) -> Told | None:
    """The next of what an actor's stream brings; None: it has ended."""
    reference = await anext(stream, None)
    if reference is None:
        return None
    item: Told = await reference
    return item


async def _answer(reference: Awaitable[T]) -> T:
    try:
        return await reference
    except RayError as error:
        raise _translated(error) from error


def _translated(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, MoyinError) else error
    return WorkerLost("the render actor was lost")
