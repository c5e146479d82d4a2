"""Serves the health of an app and its services at ``/healthz`` and ``/readyz``, without a key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Response

_log = logging.getLogger(__name__)
_CHECK_TIMEOUT_SECONDS = 2.0

# A health check, which raises an exception if the service does not respond.
ServiceCheck = Callable[[], Awaitable[None]]


def new_health_routes(checks: Mapping[str, ServiceCheck]) -> APIRouter:
    """Return the health routes of an app that needs the services in ``checks``."""
    router = APIRouter(tags=["health"])

    # Tools for vLLM and similar servers expect the path `/health`.
    @router.get("/health", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Return 200 if the process responds."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {}})
    async def readyz(response: Response) -> dict[str, str | dict[str, str]]:
        """Return 200 if every service that jobs need responds, else 503 and the state of each."""
        results = await run_checks(checks)
        is_ready = all(results.values())
        response.status_code = 200 if is_ready else 503
        states = {name: "ok" if is_up else "down" for name, is_up in results.items()}
        return {"status": "ready" if is_ready else "not ready", "checks": states}

    return router


async def run_checks(checks: Mapping[str, ServiceCheck]) -> dict[str, bool]:
    """Run all checks at once; return for each name whether the service responds in two seconds."""
    results = await asyncio.gather(*(_is_responding(name, check) for name, check in checks.items()))
    return dict(zip(checks, results, strict=True))


async def _is_responding(name: str, check: ServiceCheck) -> bool:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS):
            await check()
    except Exception as error:
        # Drivers raise exceptions of many types.
        _log.warning("the service %s does not respond: %r", name, error)
        return False
    return True
