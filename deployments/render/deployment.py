"""`RenderPool`: the Serve deployment that renders the jobs of one pool. No HTTP.

How it ends decides what becomes of its actors:

* Serve calls ``__del__`` when it stops the replica on purpose: the app was deleted, its args
  changed, or Serve shuts down. Renders that wait go back into the queue, those at work get their
  grace, then the idle actors are removed; those still at work go on, and a replica with other args,
  which starts after that, adopts them until they are done.
* After a crash, kill -9 or a failed health check nothing is called. The actors go on rendering,
  and the next replica finds them by name and attaches to their prompts. Where no replica follows,
  the actors end by themselves (see `actors.comfyui`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json

from actors.comfyui import ComfySpec
from deployments.logs import configure_logs
from deployments.render.activities import RenderActivities
from deployments.render.actor_supervisor import ActorSupervisor
from deployments.render.config import RenderArgs
from deployments.render.guard import RenderGuard
from deployments.render.memory import MemoryGuard
from deployments.render.pool import Pool
from deployments.render.telemetry import PoolTelemetry
from deployments.render.worker import RenderWorker
from moyin.domain.serialization import encode
from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.client import Temporal
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.render.comfyui.install import version
from moyin.render.comfyui.pool_client import RULES, PoolAnswer
from moyin.render.comfyui.sizes import ModelSizes
from moyin.render.scheduling.fair_share import OwnerFairShare
from moyin.render.scheduling.scaling import Scale
from moyin.render.scheduling.scheduler import RenderScheduler
from moyin.render.scheduling.window import Window
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore
from moyin.store.limits import LimitStore
from moyin.store.prompts import PromptStore
from moyin.store.renders import CacheRules, RenderStore
from moyin.store.sql import Database
from moyin.system.garbage import freeze_startup_objects

__all__ = ["RenderPool"]


class RenderPool:
    """A Temporal worker of the queue ``render-<pool>`` in front of its ComfyUI actors."""

    # Serve awaits constructors.
    async def __init__(self, args: RenderArgs) -> None:  # type: ignore[misc]
        settings = Settings()
        configure_logs(settings.log_level)
        retention = timedelta(days=settings.job_history_days)
        self._closing = AsyncExitStack()
        database = Database(settings.sql_url)
        self._closing.push_async_callback(database.close)
        await database.ready()
        jobs = JobStore(database)
        events = EventStore(settings.redis_url, retention=retention)
        self._closing.push_async_callback(events.close)
        frames = FrameStore(settings.redis_url)
        self._closing.push_async_callback(frames.close)
        cache = RenderStore(settings.redis_url)
        self._closing.push_async_callback(cache.close)
        self._pool = Pool(
            args.pool,
            RenderScheduler(Window(turns=OwnerFairShare(args.weights))),
            MemoryGuard(args.larger_pool),
        )
        self._rules = args.rules()
        telemetry = PoolTelemetry(self._pool)
        self._version = await asyncio.to_thread(_fingerprint, args, settings)
        self._crew = ActorSupervisor(self._pool, _spec(args), _scale(args), telemetry.tell)
        self._worker = RenderWorker(
            temporal=Temporal(
                settings.temporal_address, settings.temporal_namespace, retention=retention
            ),
            activities=RenderActivities(
                pool=self._pool,
                blobs=BlobStore(settings.blobs_url),
                artifacts=ArtifactStore(database),
                jobs=jobs,
                prompts=PromptStore(database),
                events=events,
                record=JobStatusWriter(jobs=jobs, events=events, frames=frames),
                sizes=ModelSizes(_models(args, settings)),
                cache=cache,
                rules=await asyncio.to_thread(_rules, args, settings),
                guard=RenderGuard(args.pool, self._rules, LimitStore(database)),
            ),
            pool=args.pool,
            concurrency=args.actors + args.window,
            grace=timedelta(seconds=args.drain_timeout),
            weights=args.weights,
        )
        self._crew.start()
        self._worker.start()
        freeze_startup_objects()

    async def renderers(self) -> list[str]:
        """Names of the actors that are up, for those who want to ask one of them themselves."""
        return self._pool.renderers

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """ComfyUI's own validation body; see `moyin.domain.renderer.Renderer`.

        Raises:
            ServiceUnavailable: no actor is up.
        """
        return await self._pool.validate(graph, targets)

    async def object_info(self) -> dict[str, Any]:
        """The nodes that the pool knows.

        Raises:
            ServiceUnavailable: no actor is up.
        """
        return await self._pool.object_info()

    async def ask(self, path: str) -> PoolAnswer:
        """Ask one of the pool's ComfyUIs for ``path`` by GET, which must change nothing.

        The pool answers for its own rules itself, whether a ComfyUI is up or not.

        Raises:
            WorkerLost: ComfyUI stumbled over the request, or died.
        """
        if path == RULES:
            return PoolAnswer(version=self._version, state="up", content=encode(self._rules))
        try:
            content = await self._pool.fetch(path)
        except ServiceUnavailable:
            state: Literal["starting", "down"] = "starting" if self._crew.starting else "down"
            return PoolAnswer(version=self._version, state=state)
        return PoolAnswer(version=self._version, state="up", content=content)

    async def ask_all(self, path: str) -> dict[str, bytes]:
        """The same of every ComfyUI that answers, by its actor's name."""
        return await self._pool.ask_all(path)

    async def executed(self, prompt_ids: Sequence[str]) -> list[str]:
        """Those of the prompts that are rendered, though their files may still be on their way."""
        return self._pool.executed(prompt_ids)

    async def status(self) -> dict[str, Any]:
        """``{"pool", "waiting", "changes", "actors": {name: ActorStatus as a dict}, "placing"}``.

        ``changes`` counts how often models were loaded. ``placing``: the actors that wait for room
        on a node, or for a node to come, and for how many seconds; ``actors`` are all others.
        """
        actors = {name: asdict(status) for name, status in self._crew.statuses.items()}
        return {
            "pool": self._pool.name,
            "waiting": self._pool.waiting,
            "changes": self._pool.changes,
            "actors": actors,
            "placing": self._crew.placing,
        }

    async def check_health(self) -> None:
        """Tell Serve to replace a replica whose worker has crashed; Temporal's absence is fine.

        Raises:
            RuntimeError: a part is not running any more.
        """
        self._worker.check()
        self._crew.check()

    async def __del__(self) -> None:
        # What only waits here would hold up the end, and is the next replica's.
        self._pool.close()
        await self._worker.stop()
        await self._crew.remove()
        await self._closing.aclose()


def _spec(args: RenderArgs) -> ComfySpec:
    warm_up = args.comfyui.warm_up
    return ComfySpec(
        gpus=args.gpus,
        cpus=args.cpus,
        labels=tuple(sorted(args.labels.items())),
        accelerator=args.accelerator,
        warm_up=None if warm_up is None else to_json(warm_up).decode(),
        **args.comfyui.model_dump(exclude={"warm_up"}),
    )


def _fingerprint(args: RenderArgs, settings: Settings) -> str:
    """Return a digest of what decides which nodes and models the pool has, and how it runs."""
    return hashlib.sha256(to_json([version(settings), args.model_dump()])).hexdigest()


def _models(args: RenderArgs, settings: Settings) -> Path:
    """Where the actors' models lie, as seen from here; `actors.comfyui` knows it for its node."""
    if args.comfyui.models is not None:
        return Path(args.comfyui.models)
    return (settings.comfyui_home or settings.data / "comfyui") / "models"


def _rules(args: RenderArgs, settings: Settings) -> CacheRules:
    """Renderers are of one kind, whatever pool they are in, when they run the same code alike."""
    kind = [
        version(settings),
        args.cache.version,
        sorted(args.comfyui.custom_nodes),
        list(args.comfyui.flags),
        args.comfyui.models,
    ]
    return CacheRules(
        kind=to_json(kind).decode(),
        enabled=args.cache.enabled,
        ttl=args.cache.ttl_s,
        entries=args.cache.entries,
        shared=args.cache.shared,
    )


def _scale(args: RenderArgs) -> Scale:
    return Scale(
        minimum=args.actors if args.min_actors is None else args.min_actors,
        maximum=args.actors,
        patience=args.queue_patience,
        idle=args.idle_timeout,
    )
