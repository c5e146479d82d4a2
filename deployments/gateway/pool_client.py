"""Reaches the render pools over their Serve handles."""

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

__all__ = ["ServePoolClient"]

# KeyError is what Serve says of an app that is not deployed, a MoyinError what a pool says whose
# renderers are not up, or die over it.
_NOBODY_THERE = (RayError, RayServeException, KeyError, TimeoutError, MoyinError)
_log = logging.getLogger(__name__)
_EXECUTED_SECONDS = 1.0


class ServePoolClient:
    """`moyin.render.comfyui.pool_client.Asker`.

    Args:
        timeout: seconds that a question may take.
        pause: seconds without asking after a pool did not answer. One that said no has answered:
            else a question that ComfyUI chokes on would silence it for everybody.
    """

    def __init__(self, pools: Sequence[str], *, timeout: float = 10.0, pause: float = 2.0) -> None:
        self._pools = tuple(pools)
        self._timeout = timeout
        self._pause = pause
        self._handles: dict[str, Any] = {}
        self._paused_until: dict[str, float] = {}

    @property
    def pools(self) -> Sequence[str]:
        return self._pools

    async def ask(self, pool: str, path: str) -> PoolAnswer:
        """See `moyin.render.comfyui.pool_client.Asker`."""
        answer: PoolAnswer = await self._call(pool, "ask", path)
        return answer

    async def ask_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        """See `moyin.render.comfyui.pool_client.Asker`."""
        try:
            answers: Mapping[str, bytes] = await self._call(pool, "ask_all", path)
        except ServiceUnavailable:
            return {}
        return answers

    async def executed(self, prompt_ids: Sequence[str]) -> set[str]:
        """Those of the prompts that a pool says to have rendered, if only their files are missing."""
        found = await asyncio.gather(*(self._executed(pool, prompt_ids) for pool in self._pools))
        return set().union(*found)

    async def _executed(self, pool: str, prompt_ids: Sequence[str]) -> Sequence[str]:
        try:
            # Whoever interrupts a prompt does not wait for a pool that may not be there.
            async with asyncio.timeout(_EXECUTED_SECONDS):
                executed: Sequence[str] = await self._call(pool, "executed", list(prompt_ids))
        except (ServiceUnavailable, TimeoutError):
            return ()
        return executed

    async def _call(self, pool: str, method: str, asked: Any) -> Any:
        if time.monotonic() < self._paused_until.get(pool, 0.0):
            raise ServiceUnavailable(f"pool {pool!r} does not answer", retry_after=self._pause)
        try:
            async with asyncio.timeout(self._timeout):
                handle = await self._handle(pool)
                return await getattr(handle, method).remote(asked)
        except _NOBODY_THERE as error:
            _log.info("pool %s did not answer %s: %s", pool, asked, type(error).__name__)
            if not isinstance(error, MoyinError):
                self._handles.pop(pool, None)
                self._paused_until[pool] = time.monotonic() + self._pause
            raise ServiceUnavailable(
                f"pool {pool!r} does not answer", retry_after=self._pause
            ) from error

    async def _handle(self, pool: str) -> Any:
        if pool not in self._handles:
            # It asks Serve's controller and waits for the answer: not in the event loop.
            self._handles[pool] = await asyncio.to_thread(
                serve.get_deployment_handle, "RenderPool", app_name=f"render-{pool}"
            )
        return self._handles[pool]
