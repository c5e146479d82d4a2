"""Validates graphs by calling ComfyUI's validation in a render pool."""

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
from deployments.gateway.pool_client import get_pool_handle
from moyin.comfy_api.validation_cache import ValidationCache
from moyin.errors import InvalidGraph, ServiceUnavailable

__all__ = ["PoolValidator"]

# Serve raises KeyError for an app that is not deployed, and Ray raises ValueError for an actor that
# has ended. `_next_renderer` raises ServiceUnavailable.
_UNAVAILABLE = (
    RayError, RayServeException, KeyError, ValueError, TimeoutError, ServiceUnavailable
)  # fmt: skip
# Seconds for which a pool's list of running renderers is cached.
_RENDERERS_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _RendererCycle:
    """A rotation over the actors of a pool's running renderers, which expires."""

    expires_at: float
    actors: Iterator[Any]


class PoolValidator:
    """Validates graphs in the ComfyUIs of a pool; implements the protocol `GraphValidator`.

    Graphs for a pool that is down are accepted without validation. The pool's renderer actors are
    called directly, in rotation. A call through the pool would cost twice as much, which is a tenth
    of the cost of a small picture.

    Args:
        timeout: the seconds after which a submission no longer waits for the pool.
        pause: the seconds without calls after a pool did not respond.
    """

    def __init__(self, *, timeout: float = 2.0, pause: float = 2.0) -> None:
        self._timeout = timeout
        self._pause = pause
        self._pools: dict[str, Any] = {}
        self._actors: dict[str, Any] = {}
        self._renderers: dict[str, _RendererCycle] = {}
        self._paused_until: dict[str, float] = {}
        self._cache = ValidationCache()

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """Return ComfyUI's response to a valid graph, or an empty mapping if no renderer is up.

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
            _log.info(
                "render pool %s could not validate a graph, which is accepted unchecked: %s",
                pool,
                type(error).__name__,
            )
            self._pools.pop(pool, None)
            self._renderers.pop(pool, None)
            self._actors.clear()
            self._paused_until[pool] = time.monotonic() + self._pause
            return {}
        unchecked = result.pop("free", None)
        if result.get("error"):
            message = result["error"].get("message") or "ComfyUI rejects this graph; see details"
            raise InvalidGraph(message, details=result)
        if unchecked is not None:
            self._cache.store(pool, graph, targets, result, unchecked)
        return result

    async def _next_renderer(self, pool: str) -> Any:
        """Return the next running renderer's actor; raise ServiceUnavailable if none is up."""
        known = self._renderers.get(pool)
        if known is None or time.monotonic() > known.expires_at:
            names = await (await self._pool_handle(pool)).renderers.remote()
            if not names:
                raise ServiceUnavailable(f"no renderer of pool {pool!r} is up")
            actors = [await self._renderer_actor(name) for name in names]
            known = _RendererCycle(time.monotonic() + _RENDERERS_SECONDS, itertools.cycle(actors))
            self._renderers[pool] = known
        return next(known.actors)

    async def _pool_handle(self, pool: str) -> Any:
        if pool not in self._pools:
            self._pools[pool] = await get_pool_handle(pool)
        return self._pools[pool]

    async def _renderer_actor(self, name: str) -> Any:
        if name not in self._actors:
            self._actors[name] = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        return self._actors[name]
