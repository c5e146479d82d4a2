"""Validates graphs in the ComfyUIs of a render pool."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from actors.placement import NAMESPACE
from deployments.gateway.pool_client import render_pool
from moyin.comfy_api.validation_cache import ValidationCache
from moyin.errors import InvalidGraph, ServiceUnavailable

__all__ = ["PoolValidator"]

# Serve raises KeyError for an app that is not deployed, and Ray ValueError for an actor that is
# gone. ServiceUnavailable: no renderer of the pool is up.
_UNAVAILABLE = (
    RayError, RayServeException, KeyError, ValueError, TimeoutError, ServiceUnavailable
)  # fmt: skip
# Seconds for which a pool's list of running renderers is cached.
_RENDERERS_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Renderers:
    """Cycles through the actors of a pool's running renderers, until the list expires."""

    expires_at: float
    actors: Iterator[Any]


class PoolValidator:
    """Validates graphs in a pool that is up, and accepts them unchecked otherwise.

    Validations go directly to the pool's renderer actors, in turns. Through the pool they would
    cost twice as much, a tenth of what a small picture costs.

    Args:
        timeout: seconds that a submission may wait for a pool.
        pause: seconds without calls after a pool did not respond.
    """

    def __init__(self, *, timeout: float = 2.0, pause: float = 2.0) -> None:
        self._timeout = timeout
        self._pause = pause
        self._pools: dict[str, Any] = {}
        self._actors: dict[str, Any] = {}
        self._renderers: dict[str, _Renderers] = {}
        self._paused_until: dict[str, float] = {}
        self._cache = ValidationCache()

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """See `moyin.jobs.ports.GraphValidator`.

        Raises:
            InvalidGraph: ComfyUI rejects the graph; ``details`` hold its response.
        """
        if (known := self._cache.find(pool, graph, targets)) is not None:
            return known
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            return {}
        try:
            async with asyncio.timeout(self._timeout):
                actor = await self._next_renderer(pool)
                result: dict[str, Any] = await actor.validate.remote(dict(graph), targets)
        except _UNAVAILABLE as error:
            _log.info("pool %s could not validate a graph: %s", pool, type(error).__name__)
            self._pools.pop(pool, None)
            self._renderers.pop(pool, None)
            self._actors.clear()
            self._paused_until[pool] = time.monotonic() + self._pause
            return {}
        unchecked = result.pop("free", None)
        if result.get("error"):
            message = result["error"].get("message") or "ComfyUI rejects this graph"
            raise InvalidGraph(message, details=result)
        if unchecked is not None:
            self._cache.keep(pool, graph, targets, result, unchecked)
        return result

    async def _next_renderer(self, pool: str) -> Any:
        """Return the actor of the pool's next running renderer.

        Raises:
            ServiceUnavailable: no renderer is up.
        """
        known = self._renderers.get(pool)
        if known is None or time.monotonic() > known.expires_at:
            names = await (await self._pool(pool)).list_renderers.remote()
            if not names:
                raise ServiceUnavailable(f"no renderer of pool {pool!r} is up")
            actors = [await self._actor(name) for name in names]
            known = _Renderers(time.monotonic() + _RENDERERS_SECONDS, itertools.cycle(actors))
            self._renderers[pool] = known
        return next(known.actors)

    async def _pool(self, pool: str) -> Any:
        if pool not in self._pools:
            self._pools[pool] = await render_pool(pool)
        return self._pools[pool]

    async def _actor(self, name: str) -> Any:
        if name not in self._actors:
            # In a thread, as the call blocks.
            self._actors[name] = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        return self._actors[name]
