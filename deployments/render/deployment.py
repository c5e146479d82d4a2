"""`RenderPool`: the Serve deployment that renders the jobs of one pool. It serves no HTTP.

The way in which a replica ends decides what happens to its actors:

* Serve calls ``__del__`` when it stops the replica on purpose: the app was deleted, its args
  changed, or Serve shuts down. Waiting renders go back into the queue, and renders in progress get
  the drain timeout. Then the idle actors are removed. Busy actors go on; a replica with other args
  that starts later adopts them until they are done.
* After a crash, kill -9 or a failed health check nothing is called. The actors go on rendering,
  and the next replica finds them by name and attaches to their prompts. If no replica follows, the
  actors end by themselves (see `actors.comfyui`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json
from ray.util import metrics

from actors.comfyui import ComfySpec
from deployments.logs import configure_logs
from deployments.render.activities import RenderActivities
from deployments.render.actor_supervisor import ActorCounts, ActorSupervisor
from deployments.render.config import RenderArgs
from deployments.render.guard import MemoryGuard, RenderGuard
from deployments.render.pool import Pool
from deployments.render.worker import RenderWorker
from moyin.domain.serialization import encode
from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.render.comfyui.install import read_comfyui_version
from moyin.render.comfyui.model_sizes import ModelSizes
from moyin.render.comfyui.pool_client import RULES_PATH, PoolResponse
from moyin.render.scheduling.rules import OwnerFairShare, ScalingPolicy
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
from moyin.store.render_cache import CacheRules, ValkeyRenderCache
from moyin.store.sql import Database
from moyin.system.processes import freeze_startup_objects

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
        await database.ensure_schema()
        jobs = JobStore(database)
        events = EventStore(settings.redis_url, retention=retention)
        self._closing.push_async_callback(events.close)
        frames = FrameStore(settings.redis_url)
        self._closing.push_async_callback(frames.close)
        cache = ValkeyRenderCache(settings.redis_url)
        self._closing.push_async_callback(cache.close)
        self._pool = Pool(
            args.pool,
            RenderScheduler(Window(fair_share=OwnerFairShare(args.weights))),
            MemoryGuard(args.larger_pool),
        )
        self._rules = args.rules()
        telemetry = PoolTelemetry(self._pool)
        self._version = await asyncio.to_thread(_fingerprint, args, settings)
        self._supervisor = ActorSupervisor(self._pool, _spec(args), _scale(args), telemetry.record)
        self._worker = RenderWorker(
            temporal=TemporalConnection(
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
                sizes=ModelSizes(_models_folder(args, settings)),
                cache=cache,
                rules=await asyncio.to_thread(_cache_rules, args, settings),
                guard=RenderGuard(args.pool, self._rules, LimitStore(database)),
            ),
            pool=args.pool,
            concurrency=args.actors + args.window,
            grace=timedelta(seconds=args.drain_timeout),
            weights=args.weights,
        )
        self._supervisor.start()
        self._worker.start()
        freeze_startup_objects()

    async def renderers(self) -> list[str]:
        """Return the names of the actors that are up, so that callers can reach one directly."""
        return self._pool.renderers

    async def get(self, path: str) -> PoolResponse:
        """Send a GET request that changes nothing to one of the pool's ComfyUIs.

        The pool itself answers requests for its rules, even when no ComfyUI is up.

        Raises:
            WorkerLost: ComfyUI failed on the request, or died.
        """
        if path == RULES_PATH:
            return PoolResponse(version=self._version, state="up", content=encode(self._rules))
        try:
            content = await self._pool.get(path)
        except ServiceUnavailable:
            state: Literal["starting", "down"] = (
                "starting" if self._supervisor.is_starting else "down"
            )
            return PoolResponse(version=self._version, state=state)
        return PoolResponse(version=self._version, state="up", content=content)

    async def get_all(self, path: str) -> dict[str, bytes]:
        """Send the request to every ComfyUI; return the bodies of those that answer, by actor."""
        return await self._pool.get_all(path)

    async def executed(self, prompt_ids: Sequence[str]) -> list[str]:
        """Return those of the prompts that are executed; their files may still be being stored."""
        return self._pool.executed(prompt_ids)

    async def status(self) -> dict[str, Any]:
        """Return ``{"pool", "waiting", "changes", "actors", "placing"}``.

        ``changes`` counts how often models were loaded. ``placing`` has the actors that wait for a
        node with room, with the seconds of their wait; ``actors`` has the `ActorStatus` of all
        others as a dict.
        """
        actors = {name: asdict(status) for name, status in self._supervisor.statuses.items()}
        return {
            "pool": self._pool.name,
            "waiting": self._pool.waiting,
            "changes": self._pool.model_changes,
            "actors": actors,
            "placing": self._supervisor.placing_seconds,
        }

    async def check_health(self) -> None:
        """Fail if the worker keeps crashing or the supervisor has stopped: Serve then replaces the replica.

        An outage of Temporal is no failure, and a single crash of the worker is repaired in place.

        Raises:
            RuntimeError: the worker or the supervisor does not run.
        """
        self._worker.check()
        self._supervisor.check()

    async def __del__(self) -> None:
        # Waiting renders would delay the end; the next replica takes them.
        self._pool.close()
        await self._worker.stop()
        await self._supervisor.remove_idle()
        await self._closing.aclose()


class PoolTelemetry:
    """Publishes one pool's gauges; each is set again every second, because Ray drops stale ones."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._waiting = metrics.Gauge(
            "moyin_render_waiting",
            "Renders in a pool that no ComfyUI has taken yet.",
            tag_keys=("pool",),
        )
        self._actors = metrics.Gauge(
            "moyin_render_actors",
            "ComfyUI actors of a pool by state; those that are placing wait for a node with room.",
            tag_keys=("pool", "state"),
        )

    def record(self, counts: ActorCounts) -> None:
        """Set the gauges."""
        self._waiting.set(self._pool.waiting, {"pool": self._pool.name})
        for state, count in asdict(counts).items():
            self._actors.set(count, {"pool": self._pool.name, "state": state})


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
    """Return a digest of the configuration, which decides the pool's nodes and models."""
    return hashlib.sha256(to_json([read_comfyui_version(settings), args.model_dump()])).hexdigest()


def _models_folder(args: RenderArgs, settings: Settings) -> Path:
    """Return the folder of models as seen from here; `actors.comfyui` finds it on its own node."""
    if args.comfyui.models is not None:
        return Path(args.comfyui.models)
    return (settings.comfyui_home or settings.data / "comfyui") / "models"


def _cache_rules(args: RenderArgs, settings: Settings) -> CacheRules:
    """Return the pool's cache rules; pools whose ComfyUIs run alike share the same ``kind``."""
    kind = [
        read_comfyui_version(settings),
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


def _scale(args: RenderArgs) -> ScalingPolicy:
    return ScalingPolicy(
        minimum=args.actors if args.min_actors is None else args.min_actors,
        maximum=args.actors,
        patience=args.queue_patience,
        idle=args.idle_timeout,
    )
