"""``/healthz`` and ``/readyz``: no key needed, nothing told that a stranger may not know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter, Response

__all__ = ["Check", "health_routes"]

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 2.0

# Raises when the service does not answer.
Check = Callable[[], Awaitable[None]]


def health_routes(checks: Mapping[str, Check]) -> APIRouter:
    """Health of the process, and of the services it needs, by name."""
    router = APIRouter(tags=["health"])

    # Tools for vLLM and the like look for it under this name.
    @router.get("/health", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {}})
    async def readyz(response: Response) -> dict[str, str | dict[str, str]]:
        """Everything that jobs need answers; 503 names what does not."""
        answers = await asyncio.gather(*(_ask(name, check) for name, check in checks.items()))
        ready = all(answers)
        response.status_code = 200 if ready else 503
        states = {name: "ok" if up else "down" for name, up in zip(checks, answers, strict=True)}
        return {"status": "ready" if ready else "not ready", "checks": states}

    return router


async def _ask(name: str, check: Check) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await check()
    except Exception as error:
        # Whatever a driver raises here means the same: not ready.
        _log.warning("%s is not ready: %s", name, error)
        return False
    return True
