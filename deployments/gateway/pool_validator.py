"""Asks the renderers of a pool, one after the other, whether ComfyUI would accept a graph."""

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
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from actors.detached import NAMESPACE
from moyin.comfy_api.validation_cache import ValidationCache
from moyin.errors import InvalidGraph, ServiceUnavailable

__all__ = ["PoolValidator"]

# KeyError is what Serve says of an app that is not deployed, ValueError what Ray says of an actor
# that is gone, ServiceUnavailable that a pool has no renderer up.
_NOBODY_THERE = (
    RayError, RayServeException, KeyError, ValueError, TimeoutError, ServiceUnavailable
)  # fmt: skip
# For so long the answer to who is up is taken for true.
_KNOWN_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """The actors of a pool that were up a moment ago, in turn."""

    until: float
    actors: Iterator[Any]


class PoolValidator:
    """Validates graphs where a pool is up; lets them through unseen where none is.

    The pool is asked who is up, and they are asked about graphs: to ask them through the pool would
    cost twice as much, which is a tenth of what a small picture costs.

    Args:
        timeout: seconds that a submission may wait for a pool.
        pause: seconds without asking after a pool did not answer.
    """

    def __init__(self, *, timeout: float = 2.0, pause: float = 2.0) -> None:
        self._timeout = timeout
        self._pause = pause
        self._pools: dict[str, Any] = {}
        self._actors: dict[str, Any] = {}
        self._known: dict[str, _Known] = {}
        self._paused_until: dict[str, float] = {}
        self._verdicts = ValidationCache()

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """See `moyin.jobs.ports.GraphValidator`.

        Raises:
            InvalidGraph: with ComfyUI's own body in ``details``.
        """
        if (known := self._verdicts.find(pool, graph, targets)) is not None:
            return known
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            return {}
        try:
            async with asyncio.timeout(self._timeout):
                actor = await self._next(pool)
                verdict: dict[str, Any] = await actor.validate.remote(dict(graph), targets)
        except _NOBODY_THERE as error:
            _log.info("pool %s could not validate a graph: %s", pool, type(error).__name__)
            self._pools.pop(pool, None)
            self._known.pop(pool, None)
            self._actors.clear()
            self._paused_until[pool] = time.monotonic() + self._pause
            return {}
        free = verdict.pop("free", None)
        if verdict.get("error"):
            message = verdict["error"].get("message") or "ComfyUI refuses this graph"
            raise InvalidGraph(message, details=verdict)
        if free is not None:
            self._verdicts.keep(pool, graph, targets, verdict, free)
        return verdict

    async def _next(self, pool: str) -> Any:
        """
        Raises:
            ServiceUnavailable: none is up.
        """
        known = self._known.get(pool)
        if known is None or time.monotonic() > known.until:
            names = await (await self._pool(pool)).renderers.remote()
            if not names:
                raise ServiceUnavailable(f"no renderer of pool {pool!r} is up")
            actors = [await self._actor(name) for name in names]
            known = _Known(time.monotonic() + _KNOWN_SECONDS, itertools.cycle(actors))
            self._known[pool] = known
        return next(known.actors)

    async def _pool(self, pool: str) -> Any:
        if pool not in self._pools:
            # It asks Serve's controller and waits for the answer: not in the event loop.
            self._pools[pool] = await asyncio.to_thread(
                serve.get_deployment_handle, "RenderPool", app_name=f"render-{pool}"
            )
        return self._pools[pool]

    async def _actor(self, name: str) -> Any:
        if name not in self._actors:
            # So does this.
            self._actors[name] = await asyncio.to_thread(ray.get_actor, name, NAMESPACE)
        return self._actors[name]
