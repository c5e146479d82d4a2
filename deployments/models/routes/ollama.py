"""Serves the routes by which Ollama's clients list models and see which are loaded."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from moyin.access.gatekeeper import context
from moyin.domain.needs import Model
from moyin.errors import InvalidRequest, ModelNotFound
from moyin.http.validation import parse_object, validate
from moyin.text.protocol.ollama import wire
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.loaded_models import ModelState
from moyin.text.routing.router import Router

__all__ = ["OLLAMA_VERSION", "ollama_routes"]

# The version of Ollama whose API we implement; clients derive the supported features from it.
OLLAMA_VERSION = "0.13.0"
# The protocol requires a date, which our models and aliases do not have.
_MODIFIED = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
_RESIDENT_FOR = timedelta(minutes=5)
# Features with the same name in Ollama and here.
_CAPABILITIES = ("tools", "vision", "thinking")


def ollama_routes(text_router: Router) -> APIRouter:
    """Return the routes of Ollama's API other than model calls."""
    router = APIRouter(prefix="/ollama", tags=["ollama"])

    @router.head("/", include_in_schema=False)
    @router.get("/", summary="Check that the server responds", response_class=PlainTextResponse)
    async def alive() -> PlainTextResponse:
        return PlainTextResponse("Ollama is running")

    @router.get("/api/version", summary="Show the implemented version of Ollama's API")
    async def version() -> dict[str, str]:
        return {"version": OLLAMA_VERSION}

    @router.get("/api/tags", summary="List models and aliases")
    async def tags(request: Request) -> dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        return {
            "models": [
                _tag(name, fleet.find_allowed_deployments(name, owner))
                for name in fleet.list_names(owner)
            ]
        }

    @router.get("/api/ps", summary="List models that are loaded")
    async def ps(request: Request) -> dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        expires = (datetime.now(UTC) + _RESIDENT_FOR).isoformat()
        names = dict.fromkeys(fleet.list_names(owner))
        deployments = (
            deployment
            for name in names
            for deployment in fleet.find_allowed_deployments(name, owner)
        )
        # Models that the tenant may use by an alias only are left out, as it cannot name them.
        resident = {
            deployment.model.name: deployment
            for deployment in deployments
            if deployment.model.name in names and _in(fleet, deployment)
        }
        return {
            "models": [
                {
                    **_tag(name, (deployment,)),
                    "expires_at": expires,
                    "size_vram": 0,
                    "context_length": deployment.model.context,
                }
                for name, deployment in resident.items()
            ]
        }

    @router.post("/api/show", summary="Show the features of a model or alias")
    async def show(request: Request) -> dict[str, Any]:
        body = validate(wire.ShowBody, parse_object(await request.body()))
        name = body.model or body.name
        if not name:
            raise InvalidRequest("model: Field required", field="model")
        deployments = text_router.fleet.find_allowed_deployments(name, context(request.scope).owner)
        if not deployments:
            raise ModelNotFound(f"there is no model or alias {name!r}", field="model")
        return _shown(deployments)

    return router


def _in(fleet: Fleet, deployment: ModelDeployment) -> bool:
    """Tell whether the model is loaded; servers that do not report it keep their models loaded."""
    runtime = fleet.runtimes.get(deployment.backend)
    if runtime is None or not runtime.health.is_up:
        return False
    return (
        runtime.loaded is None
        or runtime.loaded.get_state(deployment.model.upstream) is ModelState.RESIDENT
    )


def _tag(name: str, deployments: tuple[ModelDeployment, ...]) -> dict[str, Any]:
    upstream = " ".join(
        sorted(f"{deployment.backend}/{deployment.model.upstream}" for deployment in deployments)
    )
    return {
        "name": name,
        "model": name,
        "modified_at": _MODIFIED,
        "size": 0,
        "digest": hashlib.sha256(upstream.encode()).hexdigest(),
        "details": _details(),
    }


def _shown(deployments: tuple[ModelDeployment, ...]) -> dict[str, Any]:
    models = [deployment.model for deployment in deployments]
    context = max((model.context for model in models), default=0)
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": _MODIFIED,
        "details": _details(),
        "model_info": {"general.architecture": "moyin", "moyin.context_length": context},
        "capabilities": _capabilities(models),
    }


def _capabilities(models: list[Model]) -> list[str]:
    """Return the capabilities that at least one of the models has."""
    capabilities = ["completion"] if any(not model.embeddings for model in models) else []
    capabilities += ["embedding"] if any(model.embeddings for model in models) else []
    return capabilities + [name for name in _CAPABILITIES if any(getattr(m, name) for m in models)]


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "",
        "family": "moyin",
        "families": ["moyin"],
        "parameter_size": "",
        "quantization_level": "",
    }
