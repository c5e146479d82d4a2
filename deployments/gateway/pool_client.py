"""Calls the render pools through their Serve handles."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from moyin.errors import MoyinError, ServiceUnavailable
from moyin.render.comfyui.pool_client import PoolResponse

__all__ = ["ServePoolClient", "render_pool"]

# Serve raises KeyError for an app that is not deployed. A pool raises MoyinError if its renderers
# are down or fail during the request.
_UNAVAILABLE = (RayError, RayServeException, KeyError, TimeoutError, MoyinError)
_log = logging.getLogger(__name__)
_EXECUTED_SECONDS = 1.0


class ServePoolClient:
    """Implements `moyin.render.comfyui.pool_client.PoolClient`.

    Args:
        timeout: the limit of a call in seconds.
        pause: seconds without calls after a pool did not respond. An error that the pool itself
            raises causes no pause, as it may concern one request only.
    """

    def __init__(self, pools: Sequence[str], *, timeout: float = 10.0, pause: float = 2.0) -> None:
        self._pools = tuple(pools)
        self._timeout = timeout
        self._pause = pause
        self._handles: dict[str, Any] = {}
        self._paused_until: dict[str, float] = {}

    @property
    def pools(self) -> Sequence[str]:
        """The names of all pools."""
        return self._pools

    async def get(self, pool: str, path: str) -> PoolResponse:
        """See `moyin.render.comfyui.pool_client.PoolClient`."""
        answer: PoolResponse = await self._call(pool, "get", path)
        return answer

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """See `moyin.render.comfyui.pool_client.PoolClient`."""
        try:
            answers: Mapping[str, bytes] = await self._call(pool, "get_all", path)
        except ServiceUnavailable:
            return {}
        return answers

    async def find_executed(self, prompt_ids: Sequence[str]) -> set[str]:
        """Return the prompts whose nodes have all been executed, as far as the pools respond."""
        calls = (self._find_executed(pool, prompt_ids) for pool in self._pools)
        return set().union(*await asyncio.gather(*calls))

    async def _find_executed(self, pool: str, prompt_ids: Sequence[str]) -> Sequence[str]:
        try:
            # An interruption must not wait long for a pool that may be down.
            async with asyncio.timeout(_EXECUTED_SECONDS):
                executed: Sequence[str] = await self._call(pool, "executed", list(prompt_ids))
        except (ServiceUnavailable, TimeoutError):
            return ()
        return executed

    async def _call(self, pool: str, method: str, argument: Any) -> Any:
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            raise ServiceUnavailable(f"pool {pool!r} does not respond", retry_after=self._pause)
        try:
            async with asyncio.timeout(self._timeout):
                handle = await self._handle(pool)
                return await getattr(handle, method).remote(argument)
        except _UNAVAILABLE as error:
            _log.info("pool %s did not respond to %s: %s", pool, argument, type(error).__name__)
            if not isinstance(error, MoyinError):
                self._handles.pop(pool, None)
                self._paused_until[pool] = time.monotonic() + self._pause
            raise ServiceUnavailable(
                f"pool {pool!r} does not respond", retry_after=self._pause
            ) from error

    async def _handle(self, pool: str) -> Any:
        if pool not in self._handles:
            self._handles[pool] = await render_pool(pool)
        return self._handles[pool]


async def render_pool(pool: str) -> Any:
    """Return the pool's Serve handle, in a thread because Serve waits for its controller."""
    return await asyncio.to_thread(
        serve.get_deployment_handle, "RenderPool", app_name=f"render-{pool}"
    )
