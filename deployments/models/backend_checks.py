"""Checks the health of every back end without using tokens, and serves the results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from fastapi import APIRouter

from moyin.errors import ServiceUnavailable
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.router import Router

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 5.0


async def check_backends_forever(
    text_router: Router, on_models_changed: Callable[[], None] | None = None
) -> None:
    """Check the back ends of the current fleet every five seconds until the task is cancelled.

    Args:
        on_models_changed: called after a check in which a server's models have changed.
    """
    while True:
        if await check_backends(text_router.fleet.runtimes.values()) and on_models_changed:
            on_models_changed()
        await asyncio.sleep(_INTERVAL_SECONDS)


async def check_backends(runtimes: Iterable[BackendRuntime]) -> bool:
    """Check all ``runtimes`` once; return True if the models of at least one changed."""
    runtimes = list(runtimes)
    results = await asyncio.gather(
        *(runtime.check_health(_log_health_change) for runtime in runtimes),
        return_exceptions=True,
    )
    for runtime, result in zip(runtimes, results, strict=True):
        if isinstance(result, Exception):
            _log.error(
                "the health check of back end %s failed with an unexpected error",
                runtime.name,
                exc_info=result,
            )
    return any(result is True for result in results)


def _log_health_change(name: str, is_up: bool) -> None:
    level, state = (logging.INFO, "up") if is_up else (logging.WARNING, "down")
    _log.log(level, "back end %s is %s", name, state)


def new_health_routes(text_router: Router) -> APIRouter:
    """Return the routes ``/healthz`` for the process and ``/readyz`` for its back ends."""
    router = APIRouter(tags=["health"])

    # Tools for vLLM and similar servers use the path /health.
    @router.get("/health", include_in_schema=False)
    @router.get("/healthz", summary="Check that the process responds")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Check that at least one back end is available")
    async def readyz() -> dict[str, str | dict[str, str]]:
        fleet = text_router.fleet
        states = {
            name: "up" if runtime.health.is_up else "down"
            for name, runtime in fleet.runtimes.items()
        }
        if not fleet.is_usable:
            raise ServiceUnavailable(
                "no back end is available; try again when one of `backends` is up",
                details={"backends": states},
            )
        return {"status": "ok", "backends": states}

    return router
