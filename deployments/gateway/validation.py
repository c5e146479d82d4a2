"""Asks a render pool, over its Serve handle, whether ComfyUI would accept a graph."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from moyin.errors import InvalidGraph, ServiceUnavailable

__all__ = ["PoolValidator"]

# KeyError is what Serve says of an app that is not deployed, ServiceUnavailable what a pool says
# whose renderers are not up yet.
_NOBODY_THERE = (RayError, RayServeException, KeyError, TimeoutError, ServiceUnavailable)
_log = logging.getLogger(__name__)


class PoolValidator:
    """Validates graphs where a pool is up; lets them through unseen where none is.

    Args:
        timeout: seconds that a submission may wait for a pool.
        pause: seconds without asking after a pool did not answer.
    """

    def __init__(self, *, timeout: float = 2.0, pause: float = 2.0) -> None:
        self._timeout = timeout
        self._pause = pause
        self._handles: dict[str, Any] = {}
        self._paused_until: dict[str, float] = {}

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        """See `moyin.jobs.ports.GraphValidator`.

        Raises:
            InvalidGraph: with ComfyUI's own body in ``details``.
        """
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            return {}
        try:
            async with asyncio.timeout(self._timeout):
                handle = await self._handle(pool)
                verdict: dict[str, Any] = await handle.validate.remote(dict(graph), targets)
        except _NOBODY_THERE as error:
            _log.info("pool %s could not validate a graph: %s", pool, type(error).__name__)
            self._handles.pop(pool, None)
            self._paused_until[pool] = time.monotonic() + self._pause
            return {}
        if verdict.get("error"):
            message = verdict["error"].get("message") or "ComfyUI refuses this graph"
            raise InvalidGraph(message, details=verdict)
        return verdict

    async def _handle(self, pool: str) -> Any:
        if pool not in self._handles:
            # It asks Serve's controller and waits for the answer: not in the event loop.
            self._handles[pool] = await asyncio.to_thread(
                serve.get_deployment_handle, "RenderPool", app_name=f"render-{pool}"
            )
        return self._handles[pool]
