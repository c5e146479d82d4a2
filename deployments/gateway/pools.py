"""Calls the render pools: their Ray Serve deployments, and the actors of their renderers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from actors.placement import NAMESPACE
from moyin.comfy_api.validation_cache import ValidationCache
from moyin.domain.cluster import PoolSummary
from moyin.domain.queue_place import QueuePlace
from moyin.errors import BackendError, InvalidGraph, MoyinError, ServiceUnavailable
from moyin.render.comfyui.pool_client import PoolResponse
from moyin.render.comfyui.tenant import make_tenant_id
from moyin.system.bounded import BoundedDict
from moyin.system.heavy_work import run_aside

# Serve raises KeyError for an app that is not deployed. A pool raises MoyinError if no renderer is
# up or a renderer fails during the request.
_POOL_ERRORS = (RayError, RayServeException, KeyError, TimeoutError, MoyinError)
# Ray raises ValueError for an actor that has ended, and TypeError for one of an earlier version, whose
# methods have fewer parameters. `_get_next_renderer` raises ServiceUnavailable.
_VALIDATION_ERRORS = (
    RayError, RayServeException, KeyError, TypeError, ValueError, TimeoutError, ServiceUnavailable
)  # fmt: skip
_log = logging.getLogger(__name__)
_EXECUTED_SECONDS = 1.0
_PLACES_SECONDS = 2.0
_SUMMARY_SECONDS = 2.5
# Seconds for which a pool's list of running renderers is cached.
_RENDERERS_SECONDS = 5.0
_MAX_CYCLES = 1024
# A graph with more nodes may take ComfyUI longer than the time limit, although its process is well.
_LARGE_GRAPH = 500


class _PoolHandles(dict[str, Any]):
    """The Serve handles of render pools by the pools' names."""

    async def fetch(self, pool: str) -> Any:
        """Return the handle of a pool. It is looked up in a thread, because the lookup blocks."""
        if pool not in self:
            self[pool] = await asyncio.to_thread(
                serve.get_deployment_handle, "RenderPool", app_name=f"render-{pool}"
            )
        return self[pool]


class ServePoolClient:
    """Sends GET requests to the ComfyUIs of render pools; implements the protocol `PoolClient`.

    Args:
        timeout_seconds: the time limit of a call.
        pause_seconds: the time for which a pool that did not respond is not called. An error that
            the pool itself raises causes no pause, because it may concern only one request.
    """

    def __init__(
        self, pools: Sequence[str], *, timeout_seconds: float = 10.0, pause_seconds: float = 2.0
    ) -> None:
        self._pools = tuple(pools)
        self._timeout_seconds = timeout_seconds
        self._pause_seconds = pause_seconds
        self._handles = _PoolHandles()
        self._paused_until: dict[str, float] = {}

    @property
    def pools(self) -> Sequence[str]:
        """The names of all pools."""
        return self._pools

    async def get(self, pool: str, path: str) -> PoolResponse:
        """Return the response of a renderer of the pool to GET ``path``.

        Raises:
            BackendError: ComfyUI's response is too large.
            ServiceUnavailable: the pool does not respond.
        """
        response: PoolResponse = await self._call_pool(pool, "get", path)
        return response

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """Return the responses of all renderers of the pool to GET ``path``, by renderer name."""
        try:
            responses: Mapping[str, bytes] = await self._call_pool(pool, "get_all", path)
        except ServiceUnavailable:
            return {}
        return responses

    async def find_executed(self, prompt_ids: Sequence[str]) -> set[str]:
        """Return those of ``prompt_ids`` that were executed, from the pools that respond."""
        calls = (self._find_executed(pool, prompt_ids) for pool in self._pools)
        return set().union(*await asyncio.gather(*calls))

    async def _find_executed(self, pool: str, prompt_ids: Sequence[str]) -> Sequence[str]:
        try:
            # An interruption by the client must not wait long for a pool that may be down.
            async with asyncio.timeout(_EXECUTED_SECONDS):
                executed_ids: Sequence[str] = await self._call_pool(
                    pool, "find_executed", list(prompt_ids)
                )
        except (ServiceUnavailable, TimeoutError):
            return ()
        return executed_ids

    async def list_places(self, pool: str) -> Mapping[str, QueuePlace]:
        """Return the queue places of the pool's jobs by job id, or raise ServiceUnavailable.

        A failure of this call does not stop other calls to the pool for ``pause_seconds``, because
        they matter more.
        """
        try:
            async with asyncio.timeout(_PLACES_SECONDS):
                handle = await self._handles.fetch(pool)
                places: Mapping[str, QueuePlace] = await handle.list_places.remote()
        except _POOL_ERRORS as error:
            _log.info("render pool %s sent no places: %s", pool, type(error).__name__)
            raise ServiceUnavailable(f"render pool {pool!r} does not respond; try again") from error
        return places

    async def read_summary(self, pool: str) -> PoolSummary:
        """Return the state of the pool and its renderers, or raise ServiceUnavailable.

        A failure of this call does not stop other calls to the pool for ``pause_seconds``, because
        they matter more.
        """
        try:
            async with asyncio.timeout(_SUMMARY_SECONDS):
                handle = await self._handles.fetch(pool)
                summary: PoolSummary = await handle.read_summary.remote()
        except _POOL_ERRORS as error:
            _log.info("render pool %s sent no summary: %s", pool, type(error).__name__)
            # The pool may have been redeployed with another handle.
            self._handles.pop(pool, None)
            raise ServiceUnavailable(f"render pool {pool!r} does not respond; try again") from error
        return summary

    async def _call_pool(self, pool: str, method: str, argument: Any) -> Any:
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            raise ServiceUnavailable(
                f"render pool {pool!r} does not respond; try again", retry_after=self._pause_seconds
            )
        try:
            async with asyncio.timeout(self._timeout_seconds):
                handle = await self._handles.fetch(pool)
                return await getattr(handle, method).remote(argument)
        except _POOL_ERRORS as error:
            _log.info(
                "render pool %s did not respond to the call %s(%s): %s",
                pool,
                method,
                argument,
                type(error).__name__,
            )
            if not isinstance(error, MoyinError):
                self._handles.pop(pool, None)
                self._paused_until[pool] = time.monotonic() + self._pause_seconds
            elif isinstance(error, BackendError):
                # Serve raises an error of its own that is an instance of both classes.
                raise (error.cause if isinstance(error, RayTaskError) else error) from None
            raise ServiceUnavailable(
                f"render pool {pool!r} does not respond; try again", retry_after=self._pause_seconds
            ) from error


@dataclass(frozen=True, slots=True)
class _RendererCycle:
    """The actors of a pool's running renderers, to call one after the other.

    After ``expires_at``, in monotonic seconds, the actors must be looked up again.
    """

    expires_at: float
    actors: Iterator[Any]


class PoolValidator:
    """Validates graphs in the ComfyUIs of a pool; implements the protocol `GraphValidator`.

    Graphs for a pool that is down are accepted without validation. The pool's renderer actors are
    called directly, in rotation, because a call through the pool would take twice as long.

    Args:
        timeout_seconds: the time after which a submission no longer waits for the pool.
        pause_seconds: the time for which a pool that did not respond is not called.
    """

    def __init__(self, *, timeout_seconds: float = 2.0, pause_seconds: float = 2.0) -> None:
        self._timeout_seconds = timeout_seconds
        self._pause_seconds = pause_seconds
        self._handles = _PoolHandles()
        self._actors: dict[str, Any] = {}
        self._renderers: BoundedDict[tuple[str, str], _RendererCycle] = BoundedDict(_MAX_CYCLES)
        self._paused_until: dict[str, float] = {}
        self._cache = ValidationCache()

    async def validate(
        self,
        pool: str,
        graph: Mapping[str, Any],
        targets: Sequence[str] | None = None,
        *,
        owner: str,
    ) -> Mapping[str, Any]:
        """Return ComfyUI's response to a valid graph, or an empty mapping if no renderer is up.

        If each process serves one tenant, only those of the owner are asked.

        Args:
            targets: the ids of the output nodes to execute; None means all.
            owner: the tenant that submits the graph.

        Raises:
            InvalidGraph: ComfyUI rejects the graph; ``details`` hold its response.
        """
        tenant = make_tenant_id(owner)
        # Nobody must find out by the time what others have submitted.
        scope = f"{pool}/{tenant}"
        cached_result = await run_aside(self._cache.find, scope, graph, targets)
        if cached_result is not None:
            return cached_result
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            return {}
        try:
            async with asyncio.timeout(self._timeout_seconds):
                actor = await self._get_next_renderer(pool, tenant)
            if actor is None:
                return {}
            # Ray serialises the arguments in the thread that calls.
            reference = await run_aside(actor.validate.remote, dict(graph), targets, tenant)
            async with asyncio.timeout(self._timeout_seconds):
                result: dict[str, Any] = await reference
        except _VALIDATION_ERRORS as error:
            _log.info(
                "render pool %s could not validate a graph, which is accepted unchecked: %s",
                pool,
                type(error).__name__,
            )
            if isinstance(error, TimeoutError) and len(graph) > _LARGE_GRAPH:
                # The graph is the likely cause, so the graphs of other tenants are still validated.
                return {}
            self._handles.pop(pool, None)
            self._renderers.pop((pool, tenant), None)
            self._actors.clear()
            self._paused_until[pool] = time.monotonic() + self._pause_seconds
            return {}
        unchecked_inputs = result.pop("free", None)
        if result.get("error"):
            message = result["error"].get("message") or "ComfyUI rejects this graph; see details"
            raise InvalidGraph(message, details=result)
        if unchecked_inputs is not None:
            await run_aside(self._cache.store, scope, graph, targets, result, unchecked_inputs)
        return result

    async def _get_next_renderer(self, pool: str, tenant: str) -> Any:
        """Return the actor of the tenant's next running renderer, or None if none is up."""
        cycle = self._renderers.get((pool, tenant))
        if cycle is None or time.monotonic() > cycle.expires_at:
            names = await (await self._handles.fetch(pool)).list_renderers.remote(tenant)
            actors = [await self._get_renderer_actor(name) for name in names]
            seconds = _RENDERERS_SECONDS if actors else self._pause_seconds
            cycle = _RendererCycle(time.monotonic() + seconds, itertools.cycle(actors))
            self._renderers[pool, tenant] = cycle
        return next(cycle.actors, None)

    async def _get_renderer_actor(self, name: str) -> Any:
        if name not in self._actors:
            self._actors[name] = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        return self._actors[name]
