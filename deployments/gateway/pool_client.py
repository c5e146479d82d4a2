"""Calls the render pools through their Ray Serve handles."""

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
from moyin.render.comfyui.pool_client import PoolAnswer

__all__ = ["ServePoolClient", "get_pool_handle"]

# Serve raises KeyError for an app that is not deployed. A pool raises MoyinError if no renderer is
# up or a renderer fails during the request.
_UNAVAILABLE = (RayError, RayServeException, KeyError, TimeoutError, MoyinError)
_log = logging.getLogger(__name__)
_EXECUTED_SECONDS = 1.0


class ServePoolClient:
    """Sends GET requests to the ComfyUIs of render pools; implements the protocol `PoolClient`.

    Args:
        timeout: the limit of a call in seconds.
        pause: the seconds without calls after a pool did not respond. An error that the pool itself
            raises causes no pause, because it may concern only one request.
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

    async def get(self, pool: str, path: str) -> PoolAnswer:
        """Send GET ``path`` to a renderer of the pool, or raise ServiceUnavailable."""
        answer: PoolAnswer = await self._call(pool, "get", path)
        return answer

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """Return the responses of all renderers of the pool to GET ``path``, by renderer."""
        try:
            answers: Mapping[str, bytes] = await self._call(pool, "get_all", path)
        except ServiceUnavailable:
            return {}
        return answers

    async def find_executed(self, prompt_ids: Sequence[str]) -> set[str]:
        """Return the prompts whose nodes have all been executed, in pools that respond."""
        calls = (self._find_executed(pool, prompt_ids) for pool in self._pools)
        return set().union(*await asyncio.gather(*calls))

    async def _find_executed(self, pool: str, prompt_ids: Sequence[str]) -> Sequence[str]:
        try:
            # The client's interruption must not wait long for a pool that may be down.
            async with asyncio.timeout(_EXECUTED_SECONDS):
                executed: Sequence[str] = await self._call(pool, "executed", list(prompt_ids))
        except (ServiceUnavailable, TimeoutError):
            return ()
        return executed

    async def _call(self, pool: str, method: str, argument: Any) -> Any:
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            raise ServiceUnavailable(
                f"render pool {pool!r} does not respond; try again", retry_after=self._pause
            )
        try:
            async with asyncio.timeout(self._timeout):
                handle = await self._pool_handle(pool)
                return await getattr(handle, method).remote(argument)
        except _UNAVAILABLE as error:
            _log.info(
                "render pool %s did not respond to the call %s: %s",
                pool,
                argument,
                type(error).__name__,
            )
            if not isinstance(error, MoyinError):
                self._handles.pop(pool, None)
                self._paused_until[pool] = time.monotonic() + self._pause
            raise ServiceUnavailable(
                f"render pool {pool!r} does not respond; try again", retry_after=self._pause
            ) from error

    async def _pool_handle(self, pool: str) -> Any:
        if pool not in self._handles:
            self._handles[pool] = await get_pool_handle(pool)
        return self._handles[pool]


async def get_pool_handle(pool: str) -> Any:
    """Return the Serve handle of a render pool, from a thread because the lookup blocks."""
    return await asyncio.to_thread(
        serve.get_deployment_handle, "RenderPool", app_name=f"render-{pool}"
    )
