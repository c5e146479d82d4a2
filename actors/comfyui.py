"""`ComfyUIActor`: a Ray actor that holds a share of a GPU for one ComfyUI process.

One actor serves whichever replica of its render pool there is, and outlives each of them: a new
replica finds it by name and goes on with what it renders. So it lives on a lease, like
`actors.llama`: when no pool has asked for its status for a while and it renders nothing, because
the app was deleted or made smaller while its replica was dead, the actor ends itself for good.
Ray restarts it after a crash, on any node that has room.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ray

from actors.detached import NAMESPACE, end_for_good, start_once
from moyin.domain.prompt import PromptRecord
from moyin.domain.renderer import RendererStatus, RenderEvent, RenderRequest, RenderResult
from moyin.errors import MoyinError
from moyin.render.comfyui.install import locate
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.settings import Settings
from moyin.store.blobs import BlobStore
from moyin.store.frames import FrameStore
from moyin.system.garbage import freeze_startup_objects

__all__ = ["ActorStatus", "ComfySpec", "ComfyUIActor", "Failure", "existing", "find_or_start"]

_LEASE_SECONDS = 120.0
# Watchers of prompts, status polls and cancellations, side by side.
_CONCURRENCY = 100
_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfySpec:
    """What one actor of a pool runs, and with how much.

    Attributes:
        gpus: share of a card, 0 (none) to 1; also the share of the card's memory.
        cpus: of Ray's resources.
        models: folder of models; None: the user's ComfyUI's own, or one in the data folder.
        custom_nodes: folders of node packages; relative ones lie in ComfyUI's folder.
        flags: more arguments for ComfyUI.
        warm_up: JSON of a graph that is rendered before anything else.
        isolation, network, readable, environment: see `moyin.render.comfyui.options.ComfyOptions`.
        labels: of Ray nodes, name and value; ``accelerator`` Ray's name of the card.
    """

    gpus: float = 1.0
    cpus: float = 0.5
    models: str | None = None
    custom_nodes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    warm_up: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    accelerator: str | None = None
    start_timeout: float = 180.0
    progress_timeout: float = 900.0
    isolation: Isolation = Isolation.STRICT
    network: Network = Network.NONE
    readable: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()

    @property
    def room(self) -> str:
        """What an actor needs a node to have, for people."""
        card = f" of {self.accelerator}" if self.accelerator else ""
        labels = "".join(f", {name}={value}" for name, value in self.labels)
        return f"{self.gpus:g} GPU{card}, {self.cpus:g} CPU{labels}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorStatus:
    """The renderer's status, and where and what the actor is.

    Attributes:
        spec: with which it was started.
        devices: its ``CUDA_VISIBLE_DEVICES``.
        started: seconds since the epoch.
    """

    renderer: RendererStatus
    spec: ComfySpec
    node_id: str
    devices: str | None
    started: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The last item of a render that failed. Ray would wrap a raised error in one of its own."""

    error: MoyinError


# What one item of a render holds.
Told: TypeAlias = "tuple[RenderEvent | Failure, ...]"


class ComfyUIActor:
    """See `moyin.domain.renderer.Renderer`, which this is with Ray in between."""

    def __init__(self, name: str, spec: ComfySpec) -> None:
        self._name = name
        self._spec = spec
        self._started = time.time()
        self._asked = time.monotonic()
        self._renderer: ComfyRenderer | None = None
        self._watch: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def render(self, request: RenderRequest) -> AsyncGenerator[Told, None]:
        """Progress, `ExecutionFinished` and `RenderSucceeded`; or `Failure` instead of the last.

        The record comes with what follows it at once: each item costs both sides a message.
        """
        renderer = await self._running()
        record: tuple[PromptRecord, ...] = ()
        try:
            async with aclosing(renderer.render(request)) as events:
                async for event in events:
                    if isinstance(event, PromptRecord):
                        record = (event,)
                    else:
                        yield (*record, event)
                        record = ()
        except MoyinError as error:
            yield (*record, Failure(error=error))

    async def prepare(self, request: RenderRequest) -> None:
        await (await self._running()).prepare(request)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        return await (await self._running()).cancel(prompt_id)

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        return await (await self._running()).validate(graph, targets)

    async def object_info(self) -> dict[str, Any]:
        return await (await self._running()).object_info()

    async def fetch(self, path: str) -> bytes | None:
        return await (await self._running()).fetch(path)

    async def results(self) -> Mapping[str, RenderResult]:
        return await (await self._running()).results()

    async def status(self) -> ActorStatus:
        """Prolongs the lease."""
        self._asked = time.monotonic()
        renderer = await self._running()
        return ActorStatus(
            renderer=await renderer.status(),
            spec=self._spec,
            node_id=ray.get_runtime_context().get_node_id(),
            devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
            started=self._started,
        )

    async def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nobody looks after the process any more.
        """
        (await self._running()).check()

    async def close(self) -> None:
        """Stop ComfyUI. The actor is of no use afterwards."""
        if self._watch is not None:
            self._watch.cancel()
        if self._renderer is not None:
            await self._renderer.close()

    async def _running(self) -> ComfyRenderer:
        # Ray runs constructors outside of the event loop: so the first call starts everything.
        async with self._starting:
            if self._renderer is None:
                self._renderer = await asyncio.to_thread(_new_renderer, self._name, self._spec)
                await self._renderer.start()
                self._watch = asyncio.create_task(self._end_when_unused())
                freeze_startup_objects()
        return self._renderer

    async def _end_when_unused(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_SECONDS / 4)
            assert self._renderer is not None
            busy = (await self._renderer.status()).running
            if not busy and time.monotonic() - self._asked > _LEASE_SECONDS:
                break
        await self._renderer.close()
        end_for_good()


def find_or_start(name: str, spec: ComfySpec) -> Any:
    """The handle of the actor ``name``, started if there is none. Does not wait for a GPU."""
    return start_once(
        ComfyUIActor,
        name,
        name,
        spec,
        max_concurrency=_CONCURRENCY,
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        label_selector=dict(spec.labels) or None,
        accelerator_type=spec.accelerator,
    )


def existing(prefix: str) -> list[str]:
    """Names of the actors whose name starts so, dead ones not included; blocks."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"]
        for actor in found
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    )


def _new_renderer(name: str, spec: ComfySpec) -> ComfyRenderer:
    settings = Settings()
    found = locate(settings)
    models = settings.data / "comfyui" / "models"
    if settings.comfyui_home is not None:
        models = found.home / "models"
    options = ComfyOptions(
        home=found.home,
        python=found.python,
        folder=settings.data / "comfyui" / "run" / name,
        models=Path(spec.models) if spec.models else models,
        custom_nodes=tuple(found.home / path for path in spec.custom_nodes),
        flags=spec.flags,
        warm_up=spec.warm_up,
        cpu=not (spec.gpus and _has_device()),
        share=spec.gpus or 1.0,
        start_timeout=spec.start_timeout,
        progress_timeout=spec.progress_timeout,
        isolation=spec.isolation,
        network=spec.network,
        readable=tuple(Path(path) for path in spec.readable),
        hidden=_hidden(settings),
        environment=spec.environment,
        uid=settings.comfyui_uid,
    )
    return ComfyRenderer(options, BlobStore(settings.blobs_url), FrameStore(settings.redis_url))


def _hidden(settings: Settings) -> tuple[Path, ...]:
    """Folders of the stack's own: they may lie in one that ComfyUI reads."""
    scheme, _, folder = settings.blobs_url.partition("://")
    return (settings.data, *((Path(folder),) if scheme == "file" else ()))


def _has_device() -> bool:
    """Whether there is a real card behind Ray's number: it may be a logical one."""
    return any(path for pattern in _DEVICES for path in Path("/dev").glob(pattern))
