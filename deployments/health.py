"""Serves ``/healthz`` and ``/readyz`` without a key; they reveal nothing confidential."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Response

__all__ = ["Check", "health_routes"]

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 2.0

# Raises an exception if the service does not respond.
Check = Callable[[], Awaitable[None]]


def health_routes(checks: Mapping[str, Check]) -> APIRouter:
    """Return the routes for the health of the process and of the services that it needs."""
    router = APIRouter(tags=["health"])

    # Tools for vLLM and similar servers expect this name.
    @router.get("/health", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Return 200 if the process responds."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {}})
    async def readyz(response: Response) -> dict[str, str | dict[str, str]]:
        """Return 200 if every service that jobs need responds; 503 names those that do not."""
        results = await asyncio.gather(*(_passes(name, check) for name, check in checks.items()))
        ready = all(results)
        response.status_code = 200 if ready else 503
        states = {name: "ok" if up else "down" for name, up in zip(checks, results, strict=True)}
        return {"status": "ready" if ready else "not ready", "checks": states}

    return router


async def _passes(name: str, check: Check) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await check()
    except Exception as error:
        # Any exception of a driver means the same: not ready.
        _log.warning("%s is not ready: %s", name, error)
        return False
    return True
