"""Contains `RenderPool`, the Serve deployment that renders the jobs of one pool. It serves no HTTP.

What happens to the actors when a replica ends depends on the reason:

* If the app was deleted, its args changed, or Serve shuts down, Serve calls ``__del__``. Waiting
  renders return to the queue, and renders in progress continue until the drain timeout. Then the
  idle actors are removed. A later replica adopts the busy actors until they have finished.
* After a crash, SIGKILL or a failed health check, Serve does not call ``__del__``. The actors
  continue, and the next replica finds them by name and attaches to their prompts. Without a next
  replica, the leases of the actors expire (`actors.comfyui`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic_core import to_json
from sqlalchemy.exc import SQLAlchemyError

from actors.comfyui import ComfySpec
from deployments.job_services import open_job_services
from deployments.logs import configure_logs
from deployments.render.actor_supervisor import ActorSupervisor
from deployments.render.bookkeeper import RunBookkeeper
from deployments.render.config import RenderArgs
from deployments.render.guard import MemoryGuard, RenderGuard
from deployments.render.pool import Pool
from deployments.render.render_activities import RenderActivities
from deployments.render.result_cache import RenderResultCache
from deployments.render.summary import build_summary
from deployments.render.telemetry import PoolTelemetry
from deployments.render.worker import RenderWorker
from moyin.domain.cluster import PoolSummary
from moyin.domain.queue_place import QueuePlace
from moyin.domain.serialization import encode
from moyin.errors import ServiceUnavailable
from moyin.render.comfyui.install import read_comfyui_version
from moyin.render.comfyui.model_sizes import ModelSizes
from moyin.render.comfyui.pool_client import RULES_PATH, TARIFF_PATH, PoolResponse
from moyin.render.measurements import RenderMeasurements
from moyin.render.scheduling.rules import OwnerFairShare, ScalingPolicy
from moyin.render.scheduling.scheduler import RenderScheduler
from moyin.render.scheduling.window import Window
from moyin.settings import Settings
from moyin.store.measured_renders import list_measured_renders
from moyin.store.prompts import PromptStore
from moyin.store.render_cache import CacheRules, ValkeyRenderCache
from moyin.store.render_ledger import RenderLedger
from moyin.store.sql import Database
from moyin.system.processes import freeze_startup_objects
from moyin.system.ranks import Rank, take_rank

_PLACES_SECONDS = 1.0
_PRICE_ARGS = {"usd_per_gpu_hour", "usd_per_picture", "expected_seconds"}
_log = logging.getLogger(__name__)


class RenderPool:
    """Runs a Temporal worker that takes renders from a queue and runs them on the pool's actors."""

    # Serve awaits constructors.
    async def __init__(self, args: RenderArgs) -> None:  # type: ignore[misc]
        settings = Settings()
        take_rank(Rank.REPLICA)
        configure_logs(settings.log_level)
        self._resources = AsyncExitStack()
        services = await self._resources.enter_async_context(open_job_services(settings))
        cache = ValkeyRenderCache(settings.redis_url)
        self._resources.push_async_callback(cache.close)
        self._measured = await load_measurements(services.database, args.pool)
        window = Window(fair_share=OwnerFairShare(args.weights), measurements=self._measured)
        self._pool = Pool(args.pool, RenderScheduler(window), MemoryGuard(args.larger_pool))
        self._rules = args.to_rules()
        self._has_process_per_tenant = args.comfyui.process_per_tenant
        self._places: dict[str, QueuePlace] = {}
        self._places_at = -math.inf
        telemetry = PoolTelemetry(self._pool)
        cache_rules = await asyncio.to_thread(_new_cache_rules, args, settings)
        self._version = await asyncio.to_thread(_digest_configuration, args, settings)
        bookkeeper = RunBookkeeper(RenderLedger(services.database))
        self._price = args.to_price()
        self._expected_seconds = args.expected_seconds
        self._scale = _new_scale(args)
        self._comfyui_version = await asyncio.to_thread(read_comfyui_version, settings)
        self._supervisor = ActorSupervisor(
            self._pool, _new_comfy_spec(args), self._scale, bookkeeper, telemetry.export
        )
        self._worker = RenderWorker(
            temporal=services.temporal,
            activities=RenderActivities(
                pool=self._pool,
                services=services,
                prompts=PromptStore(services.database),
                model_sizes=ModelSizes(_find_models_folder(args, settings)),
                result_cache=RenderResultCache(cache, services.blobs, cache_rules),
                guard=RenderGuard(args.pool, self._rules, services.limits),
                bookkeeper=bookkeeper,
                price=self._price,
                has_process_per_tenant=self._has_process_per_tenant,
            ),
            pool=args.pool,
            concurrency=args.actors + args.window,
            grace_period=timedelta(seconds=args.drain_timeout),
            weights=args.weights,
        )
        self._supervisor.start()
        self._worker.start()
        freeze_startup_objects()

    async def list_renderers(self, tenant: str = "") -> list[str]:
        """Return the names of the running actors, so that callers can call the actors directly.

        Args:
            tenant: the anonymous id of a tenant. If each process serves one tenant, only the actors
                of its processes are returned.
        """
        if tenant and self._has_process_per_tenant:
            return self._pool.list_renderers_for(tenant)
        return self._pool.renderers

    async def get(self, path: str) -> PoolResponse:
        """Return the response of one of the pool's ComfyUI processes to a GET request.

        The pool itself answers requests for `RULES_PATH` and `TARIFF_PATH`, even when no ComfyUI is
        up.

        Raises:
            WorkerLost: ComfyUI failed to respond.
        """
        if path == RULES_PATH:
            return PoolResponse(version=self._version, state="up", content=encode(self._rules))
        if path == TARIFF_PATH:
            tariff = self._measured.build_tariff(self._price, self._expected_seconds)
            return PoolResponse(version=self._version, state="up", content=encode(tariff))
        try:
            content = await self._pool.get(path)
        except ServiceUnavailable:
            state: Literal["starting", "down"] = (
                "starting" if self._supervisor.is_starting else "down"
            )
            return PoolResponse(version=self._version, state=state)
        return PoolResponse(version=self._version, state="up", content=content)

    async def get_all(self, path: str) -> dict[str, bytes]:
        """Send a GET request to every ComfyUI process and return the response bodies by actor."""
        return await self._pool.get_all(path)

    async def find_executed(self, prompt_ids: Sequence[str]) -> list[str]:
        """Return those of ``prompt_ids`` that were executed; their files may not be stored yet."""
        return self._pool.find_executed(prompt_ids)

    async def list_places(self) -> dict[str, QueuePlace]:
        """Return the queue places of the jobs in the pool, by job id.

        The result is cached for a second, because sorting thousands of renders takes 0.1 s, and
        every gateway replica calls this.
        """
        now = time.monotonic()
        if now - self._places_at >= _PLACES_SECONDS:
            self._places, self._places_at = self._pool.list_places(), now
        return self._places

    async def status(self) -> dict[str, Any]:
        """Return the status of the pool and its actors.

        Returns:
            A dict with the members ``pool`` (its name), ``waiting`` (number of waiting renders),
            ``changes`` (number of renders for which models were loaded), ``placing`` (seconds for
            which unplaced actors have waited for a node, by name) and ``actors`` (`ActorStatus` of
            all other actors as a dict, by name). The list of runs in a status is emptied, because
            it names tenants.
        """
        actors = {
            name: asdict(replace(status, renderer=replace(status.renderer, runs=())))
            for name, status in self._supervisor.statuses.items()
        }
        return {
            "pool": self._pool.name,
            "waiting": self._pool.waiting_renders,
            "changes": self._pool.model_change_count,
            "actors": actors,
            "placing": self._supervisor.placing_seconds,
        }

    async def read_summary(self) -> PoolSummary:
        """Return the state of the pool and its actors for operators."""
        return await build_summary(self._pool, self._supervisor, self._scale, self._comfyui_version)

    async def check_health(self) -> None:
        """Raise RuntimeError if the worker or the supervisor does not run.

        Serve replaces the replica after three errors. A worker that crashes once is restarted
        before that, and an outage of Temporal does not count as an error.
        """
        self._worker.check_running()
        self._supervisor.check_running()

    async def __del__(self) -> None:
        # Waiting renders return to the queue, because they would delay the shutdown.
        self._pool.close()
        await self._worker.stop()
        await self._supervisor.remove_idle_actors()
        await self._resources.aclose()


async def load_measurements(database: Database, pool: str) -> RenderMeasurements:
    """Return the measurements of the pool's latest renders; empty if the database fails."""
    try:
        return RenderMeasurements(await list_measured_renders(database, pool))
    except (SQLAlchemyError, OSError) as error:
        # The pool must start during an outage of the database.
        _log.warning("pool %s starts without measured renders: %s", pool, error)
        return RenderMeasurements()


def _new_comfy_spec(args: RenderArgs) -> ComfySpec:
    warm_up = args.comfyui.warm_up
    return ComfySpec(
        gpus=args.gpus,
        cpus=args.cpus,
        labels=tuple(sorted(args.labels.items())),
        accelerator=args.accelerator,
        warm_up=None if warm_up is None else to_json(warm_up).decode(),
        **args.comfyui.model_dump(exclude={"warm_up"}),
    )


def _digest_configuration(args: RenderArgs, settings: Settings) -> str:
    """Return a digest of the pool's configuration without its prices.

    The gateway reads the pool's nodes and models again when the digest changes.
    """
    relevant_args = args.model_dump(exclude=_PRICE_ARGS)
    return hashlib.sha256(to_json([read_comfyui_version(settings), relevant_args])).hexdigest()


def _find_models_folder(args: RenderArgs, settings: Settings) -> Path:
    """Return the folder of models on this node; `actors.comfyui` finds the folder on other nodes."""
    if args.comfyui.models is not None:
        return Path(args.comfyui.models)
    return (settings.comfyui_home or settings.data / "comfyui") / "models"


def _new_cache_rules(args: RenderArgs, settings: Settings) -> CacheRules:
    """Return the rules of the pool's result cache.

    Pools share their results if their `CacheRules.kind` is the same, because equal graphs then have
    equal results.
    """
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


def _new_scale(args: RenderArgs) -> ScalingPolicy:
    return ScalingPolicy(
        minimum=args.actors if args.min_actors is None else args.min_actors,
        maximum=args.actors,
        patience=args.queue_patience,
        idle=args.idle_timeout,
    )
