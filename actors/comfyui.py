"""Contains `ComfyUIActor`, a Ray actor that reserves a share of a GPU for one ComfyUI process.

An actor outlives the replicas of its render pool: a new replica finds it by name and continues its
renders. Therefore the actor has a lease, which each call of `ComfyUIActor.status` renews. If the lease
expires while the actor renders nothing, for example because the app was deleted while its replica was
down, the actor terminates itself. After a crash, Ray restarts it on any node with enough resources.
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

from actors.placement import NAMESPACE, find_or_start_actor, terminate_actor
from moyin.domain.cluster import GpuReading, MemoryKill
from moyin.domain.prompt import PromptRecord
from moyin.domain.render_run import RenderRun
from moyin.domain.renderer import RendererStatus, RenderEvent, RenderRequest, RenderResult
from moyin.errors import MoyinError
from moyin.render.comfyui.install import find_comfyui
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.settings import Settings
from moyin.store.blobs import BlobStore
from moyin.store.frames import FrameStore
from moyin.store.previews import PreviewStore
from moyin.system.gpus import read_gpus
from moyin.system.memory_guard import MemoryGuard
from moyin.system.memory_kills import MemoryKillLog, get_kills_folder
from moyin.system.processes import freeze_startup_objects
from moyin.system.ranks import Rank, take_rank

_LEASE_SECONDS = 120.0
# Maximum number of concurrent calls of one actor: followed renders, status polls, cancellations.
_MAX_CALLS = 100
# What ComfyUI uses without a model.
_START_BYTES = 1024**3
_GIB = 1024**3
_GPU_DEVICES = ("nvidia[0-9]*", "kfd", "dxg")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfySpec:
    """The options and resources of a pool's actors.

    Attributes:
        gpus: share of a GPU and of its memory, from 0 (no GPU) to 1.
        cpus: CPUs that Ray reserves.
        models: folder of models; if None, the folder of the user's ComfyUI, or without one, a
            folder in the stack's data folder.
        custom_nodes: folders of node packages; relative paths start at ComfyUI's folder.
        flags: additional arguments for ComfyUI.
        warm_up: JSON of a graph that ComfyUI renders when it starts.
        labels: labels that the Ray node must have, as pairs of name and value.
        accelerator: Ray's name of the GPU type.
        start_timeout: seconds within which ComfyUI must start and finish a first prompt.
        progress_timeout: seconds without progress after which a prompt fails.
        isolation, network: what a ComfyUI process may see, and which network it may use.
        readable: additional folders that a confined process may read.
        environment: names of additional environment variables that the process gets.
        process_per_tenant: whether a process serves one tenant until it is restarted.
        memory_gib, processes, disk_gib, files: what a confined process may use; memory_gib of None
            means nine tenths of the machine's memory, or of its container's.
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
    process_per_tenant: bool = False
    memory_gib: float | None = None
    processes: int = 1024
    disk_gib: float = 64.0
    files: int = 100_000

    @property
    def resources(self) -> str:
        """The resources and labels that an actor needs from its node, as text for the log."""
        card_text = f" of {self.accelerator}" if self.accelerator else ""
        labels = "".join(f", {name}={value}" for name, value in self.labels)
        return f"{self.gpus:g} GPU{card_text}, {self.cpus:g} CPU{labels}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorStatus:
    """The status of a renderer and its actor.

    Attributes:
        devices: value of ``CUDA_VISIBLE_DEVICES``, if it is set.
        started: time of the actor's start, in seconds since 1970.
        memory_kills: how ComfyUI ended for want of memory in the last hour.
    """

    renderer: RendererStatus
    spec: ComfySpec
    node_id: str
    devices: str | None
    started: float
    memory_kills: tuple[MemoryKill, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderFailure:
    """The event that ends a failed render.

    `ComfyUIActor.render` yields this event instead of raising ``error``, because Ray would wrap a
    raised error in an exception of its own.
    """

    error: MoyinError


# The events that Ray sends in one message.
EventBatch: TypeAlias = "tuple[RenderEvent | RenderFailure, ...]"


class ComfyUIActor:
    """Runs one ComfyUI process, which render pools use as a `moyin.domain.renderer.Renderer`."""

    def __init__(self, name: str, spec: ComfySpec) -> None:
        take_rank(Rank.RENDER_ACTOR)
        settings = Settings()
        self._name = name
        self._spec = spec
        self._memory_kills = MemoryKillLog(get_kills_folder(settings.data), name)
        self._memory_guard = MemoryGuard(
            name,
            rank=Rank.COMFYUI,
            find_victim=lambda: None if self._renderer is None else self._renderer.pid,
            end_victim=self._end_comfyui,
            reserve_bytes=settings.memory_reserve_mib << 20,
            needed_bytes=_START_BYTES,
            kill_log=self._memory_kills,
        )
        self._started = time.time()
        self._lease_renewed_at = time.monotonic()
        self._renderer: ComfyRenderer | None = None
        self._watch: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def render(self, request: RenderRequest) -> AsyncGenerator[EventBatch, None]:
        """Yield the events of `Renderer.render` in batches; after an error, a `RenderFailure`.

        A batch has one event. A `RenderRun` or a `PromptRecord` gets no batch of its own: it is
        held back and put in front of the next event, which the renderer sends right afterwards.
        """
        renderer = await self._get_or_start_renderer()
        held_events: tuple[RenderRun | PromptRecord, ...] = ()
        try:
            async with aclosing(renderer.render(request)) as events:
                async for event in events:
                    if isinstance(event, RenderRun | PromptRecord):
                        held_events = (*held_events, event)
                    else:
                        yield (*held_events, event)
                        held_events = ()
        except MoyinError as error:
            yield (*held_events, RenderFailure(error=error))

    async def prepare(self, request: RenderRequest) -> None:
        await (await self._get_or_start_renderer()).prepare(request)

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        return await (await self._get_or_start_renderer()).cancel(prompt_id)

    async def settle(self, run_ids: Sequence[str]) -> None:
        await (await self._get_or_start_renderer()).settle(run_ids)

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None, tenant: str = ""
    ) -> dict[str, Any]:
        """Validate a graph in ComfyUI and return its response; the gateway calls this directly.

        Args:
            targets: the ids of the output nodes to execute; None means all.
            tenant: the anonymous id of the tenant that submits the graph (`make_tenant_id`).
        """
        return await (await self._get_or_start_renderer()).validate(graph, targets, tenant)

    async def get(self, path: str) -> bytes | None:
        return await (await self._get_or_start_renderer()).get(path)

    async def results(self) -> Mapping[str, RenderResult]:
        return await (await self._get_or_start_renderer()).results()

    async def status(self) -> ActorStatus:
        """Renew the lease and return the actor's status."""
        self._lease_renewed_at = time.monotonic()
        renderer = await self._get_or_start_renderer()
        return ActorStatus(
            renderer=await renderer.status(),
            spec=self._spec,
            node_id=ray.get_runtime_context().get_node_id(),
            devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
            started=self._started,
            memory_kills=await asyncio.to_thread(self._memory_kills.list_recent),
        )

    async def read_gpus(self) -> tuple[GpuReading, ...]:
        """Return the measurements of the actor's graphics cards; empty without cards."""
        return await read_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))

    async def check_health(self) -> None:
        """Raise RuntimeError if ComfyUI is no longer supervised, so that Ray restarts the actor."""
        (await self._get_or_start_renderer()).check_supervision()

    async def close(self) -> None:
        """Stop ComfyUI; the actor cannot be used afterwards."""
        if self._watch is not None:
            self._watch.cancel()
        self._memory_guard.stop()
        if self._renderer is not None:
            await self._renderer.close()

    def _end_comfyui(self, pid: int) -> None:
        assert self._renderer is not None
        self._renderer.kill(pid)

    async def _get_or_start_renderer(self) -> ComfyRenderer:
        # Ray runs constructors outside the event loop, so the first call starts the renderer.
        async with self._starting:
            if self._renderer is None:
                self._renderer = await asyncio.to_thread(
                    _new_renderer, self._name, self._spec, self._memory_guard
                )
                await self._renderer.start()
                self._memory_guard.start()
                self._watch = asyncio.create_task(self._terminate_when_unused())
                freeze_startup_objects()
        return self._renderer

    async def _terminate_when_unused(self) -> None:
        while True:
            await asyncio.sleep(_LEASE_SECONDS / 4)
            assert self._renderer is not None
            running_prompts = (await self._renderer.status()).running
            if not running_prompts and time.monotonic() - self._lease_renewed_at > _LEASE_SECONDS:
                break
        await self._renderer.close()
        terminate_actor()


def find_or_start(name: str, spec: ComfySpec) -> Any:
    """Return the handle of the actor ``name``, and start the actor if it does not exist.

    The call does not wait until the actor has a GPU.
    """
    return find_or_start_actor(
        ComfyUIActor,
        name,
        name,
        spec,
        max_concurrency=_MAX_CALLS,
        num_cpus=spec.cpus,
        num_gpus=spec.gpus,
        label_selector=dict(spec.labels) or None,
        accelerator_type=spec.accelerator,
    )


def list_actors(prefix: str) -> list[str]:
    """Return the names of running actors whose names begin with ``prefix``; this call blocks."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        actor["name"]
        for actor in actors
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(prefix)
    )


def _new_renderer(name: str, spec: ComfySpec, memory_guard: MemoryGuard) -> ComfyRenderer:
    settings = Settings()
    comfyui = find_comfyui(settings)
    models_folder = settings.data / "comfyui" / "models"
    if settings.comfyui_home is not None:
        models_folder = comfyui.home / "models"
    options = ComfyOptions(
        home=comfyui.home,
        python=comfyui.python,
        folder=settings.data / "comfyui" / "run" / name,
        models=Path(spec.models) if spec.models else models_folder,
        custom_nodes=tuple(comfyui.home / path for path in spec.custom_nodes),
        flags=spec.flags,
        warm_up=spec.warm_up,
        cpu=not (spec.gpus and _has_gpu_device()),
        share=spec.gpus or 1.0,
        start_timeout=spec.start_timeout,
        progress_timeout=spec.progress_timeout,
        isolation=spec.isolation,
        network=spec.network,
        readable=tuple(Path(path) for path in spec.readable),
        hidden=_list_hidden_folders(settings),
        environment=spec.environment,
        process_per_tenant=spec.process_per_tenant,
        memory_bytes=None if spec.memory_gib is None else int(spec.memory_gib * _GIB),
        processes=spec.processes,
        disk_bytes=int(spec.disk_gib * _GIB),
        files=spec.files,
        uid=settings.comfyui_uid,
    )
    return ComfyRenderer(
        options,
        BlobStore(settings.blobs_url),
        FrameStore(settings.redis_url),
        PreviewStore(settings.redis_url),
        memory_guard.wait_for_memory,
    )


def _list_hidden_folders(settings: Settings) -> tuple[Path, ...]:
    """Return the stack's data folders, which ComfyUI must never read.

    These folders stay hidden even where they lie inside a folder that ComfyUI may read.
    """
    scheme, _, folder = settings.blobs_url.partition("://")
    return (settings.data, *((Path(folder),) if scheme == "file" else ()))


def _has_gpu_device() -> bool:
    """Return True if this machine has a GPU.

    The GPUs that Ray counts are no proof, because a node can be configured with any number of them.
    """
    return any(path for pattern in _GPU_DEVICES for path in Path("/dev").glob(pattern))
