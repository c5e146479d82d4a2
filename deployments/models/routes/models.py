"""``GET /v1/models``: one body that OpenAI's and Anthropic's clients both read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter

from moyin.errors import ModelNotFound
from moyin.routing.catalog import Offer
from moyin.routing.dispatch import Dispatcher
from moyin.routing.fleet import Fleet

__all__ = ["model_routes"]

# The protocols want a date of creation, which a name that we give has not.
_CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def model_routes(dispatcher: Dispatcher) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/models", summary="Models, aliases, and which of them can be asked now")
    async def list_models() -> dict[str, Any]:
        fleet = dispatcher.fleet
        models = [_model(fleet, name) for name in fleet.catalog.names]
        return {
            "object": "list",
            "data": models,
            "has_more": False,
            "first_id": models[0]["id"],
            "last_id": models[-1]["id"],
        }

    @router.get("/models/{name:path}", summary="One model or alias")
    async def show_model(name: str) -> dict[str, Any]:
        fleet = dispatcher.fleet
        if name not in fleet.catalog.names:
            raise ModelNotFound(f"there is no model {name!r}", field="model")
        return _model(fleet, name)

    return router


def _model(fleet: Fleet, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(_CREATED.timestamp()),
        "owned_by": "moyin",
        "type": "model",
        "display_name": name,
        "created_at": _CREATED.isoformat(),
        "backends": [_backend(fleet, offer) for offer in fleet.catalog.find(name)],
    }


def _backend(fleet: Fleet, offer: Offer) -> dict[str, Any]:
    model = offer.model
    rates = model.tariff.on(datetime.now(UTC).date()).rates(0)
    return {
        "name": offer.backend,
        "model": model.name,
        "status": _status(fleet, offer),
        "context": model.context,
        "tools": model.tools,
        "vision": model.vision,
        "schema": model.schema,
        "thinking": model.thinking,
        "embeddings": model.embeddings,
        "quality": model.quality,
        "usd_per_million_tokens": {"input": str(rates.input), "output": str(rates.output)},
    }


def _status(fleet: Fleet, offer: Offer) -> str:
    if not offer.configured:
        return "not_configured"
    return "up" if fleet.standing(offer.backend).up else "down"
