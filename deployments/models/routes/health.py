"""Serves ``GET /v1/healthz`` and ``/v1/readyz``, the health of the process and its back ends."""

from __future__ import annotations

from fastapi import APIRouter

from moyin.errors import ServiceUnavailable
from moyin.text.routing.router import Router

__all__ = ["health_routes"]


def health_routes(text_router: Router) -> APIRouter:
    router = APIRouter(tags=["health"])

    # Tools for vLLM and similar servers expect this name.
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
            raise ServiceUnavailable("no back end is up", details={"backends": states})
        return {"status": "ok", "backends": states}

    return router
