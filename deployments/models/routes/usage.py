"""Serves the usage and cost of a model call at ``GET /v1/requests/{request_id}``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from moyin.access.gatekeeper import context
from moyin.domain import serialization
from moyin.errors import RequestNotFound
from moyin.store.usage import UsageLedger


def new_usage_routes(ledger: UsageLedger) -> APIRouter:
    """Return the route that shows the ``ledger`` entry of a call."""
    router = APIRouter(tags=["usage"])

    @router.get(
        "/requests/{request_id}", summary="Show tokens and cost of a call by its x-request-id"
    )
    async def show_request(request_id: str, request: Request) -> dict[str, Any]:
        entry = await ledger.get(context(request.scope).owner, request_id)
        if entry is None:
            raise RequestNotFound(
                "there is no call with this x-request-id; calls are recorded a second after they end"
            )
        usage: dict[str, Any] = serialization.to_plain(entry)
        return usage

    return router
