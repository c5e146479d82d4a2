"""Contains `RayRenderer`, through which a pool calls a renderer in a Ray actor."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from actors.comfyui import ActorStatus, EventBatch, RenderFailure
from moyin.domain.cluster import GpuReading
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RendererStatus, RenderEvent, RenderRequest, RenderResult
from moyin.errors import MoyinError, WorkerLost

_CLOSE_TIMEOUT_SECONDS = 10.0
T = TypeVar("T")


class RayRenderer:
    """Implements `moyin.domain.renderer.Renderer` by calls to a `ComfyUIActor`.

    Every method raises `WorkerLost` if the actor has died.

    Attributes:
        is_of_earlier_version: True if the latest status lacked members that this version reports.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._render = handle.render.options(num_returns="streaming")
        self._is_placed = False
        self.is_of_earlier_version = False

    async def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        stream = self._render.remote(request)
        try:
            async for reference in stream:
                batch: EventBatch = await reference
                for event in batch:
                    if isinstance(event, RenderFailure):
                        raise event.error
                    yield event
        except RayError as error:
            raise _to_moyin_error(error) from error

    async def prepare(self, request: RenderRequest) -> None:
        await _await_result(self._handle.prepare.remote(request))

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        return await _await_result(self._handle.cancel.remote(prompt_id))

    async def settle(self, run_ids: Sequence[str]) -> None:
        await _await_result(self._handle.settle.remote(run_ids))

    async def get(self, path: str) -> bytes | None:
        return await _await_result(self._handle.get.remote(path))

    async def results(self) -> Mapping[str, RenderResult]:
        return await _await_result(self._handle.results.remote())

    async def status(self) -> RendererStatus:
        return (await self.get_actor_status()).renderer

    async def get_actor_status(self) -> ActorStatus:
        """Return the actor's status; wait without a time limit until Ray has placed the actor.

        Members that an actor of an earlier version does not report have their default values.
        """
        status: ActorStatus = await _await_result(self._handle.status.remote())
        self.is_of_earlier_version = fill_missing_members(status)
        self._is_placed = True
        return status

    async def read_gpus(self) -> tuple[GpuReading, ...]:
        """Return the measurements of the actor's graphics cards; empty without cards."""
        readings: tuple[GpuReading, ...] = await _await_result(self._handle.read_gpus.remote())
        return readings

    async def retire(self) -> None:
        """Stop ComfyUI, then terminate the actor without a restart."""
        if self._is_placed:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                    await self._handle.close.remote()
        await asyncio.to_thread(ray.kill, self._handle, no_restart=True)


def fill_missing_members(value: Any) -> bool:
    """Set the members that an unpickled dataclass lacks to their defaults, also in nested ones.

    Pickle restores only the members that the class had where the object was made. Later versions
    must therefore add members at the end, and with a default.

    Returns:
        Whether a member was missing.
    """
    was_missing = False
    for field in dataclasses.fields(value):
        if not hasattr(value, field.name):
            was_missing = True
            default = (
                field.default
                if field.default_factory is dataclasses.MISSING
                else field.default_factory()
            )
            # The dataclasses are frozen.
            object.__setattr__(value, field.name, default)
        member = getattr(value, field.name)
        for item in member if isinstance(member, tuple) else (member,):
            if dataclasses.is_dataclass(item):
                was_missing |= fill_missing_members(item)
    return was_missing


async def _await_result(reference: Awaitable[T]) -> T:
    try:
        return await reference
    except RayError as error:
        raise _to_moyin_error(error) from error


def _to_moyin_error(error: RayError) -> Exception:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, MoyinError) else error
    return WorkerLost("the Ray actor of the renderer was lost; try again")
