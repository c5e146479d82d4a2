"""Serves the routes with which Ollama's clients list models and show which models are loaded."""

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

# The version of Ollama whose API we implement. Clients derive the supported features from it.
_OLLAMA_VERSION = "0.13.0"
# The protocol requires a modification date, which our models and aliases do not have.
_MODIFIED_AT = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
_LOADED_FOR = timedelta(minutes=5)
# Capabilities of Ollama that are attributes of `moyin.domain.needs.Model`.
_CAPABILITIES = ("tools", "vision", "thinking")
_MODEL_DETAILS = {"family": "moyin", "families": ["moyin"]} | dict.fromkeys(
    ("parent_model", "format", "parameter_size", "quantization_level"), ""
)


def new_ollama_routes(text_router: Router) -> APIRouter:
    """Return the routes of Ollama's API other than model calls."""
    router = APIRouter(prefix="/ollama", tags=["ollama"])

    @router.head("/", include_in_schema=False)
    @router.get("/", summary="Check that the server responds", response_class=PlainTextResponse)
    async def alive() -> PlainTextResponse:
        return PlainTextResponse("Ollama is running")

    @router.get("/api/version", summary="Show the implemented version of Ollama's API")
    async def version() -> dict[str, str]:
        return {"version": _OLLAMA_VERSION}

    @router.get(
        "/api/tags", operation_id="tags_ollama_api_tags_get", summary="List models and aliases"
    )
    async def list_models(request: Request) -> dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        return {
            "models": [
                _describe_list_entry(name, fleet.find_allowed_deployments(name, owner))
                for name in fleet.list_names(owner)
            ]
        }

    @router.get(
        "/api/ps", operation_id="ps_ollama_api_ps_get", summary="List models that are loaded"
    )
    async def list_loaded_models(request: Request) -> dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        expires = (datetime.now(UTC) + _LOADED_FOR).isoformat()
        names = dict.fromkeys(fleet.list_names(owner))
        deployments = (
            deployment
            for name in names
            for deployment in fleet.find_allowed_deployments(name, owner)
        )
        # The list omits models that the tenant can use only through an alias.
        loaded = {
            deployment.model.name: deployment
            for deployment in deployments
            if deployment.model.name in names and _is_loaded(fleet, deployment)
        }
        return {
            "models": [
                {
                    **_describe_list_entry(name, (deployment,)),
                    "expires_at": expires,
                    "size_vram": 0,
                    "context_length": deployment.model.context,
                }
                for name, deployment in loaded.items()
            ]
        }

    @router.post(
        "/api/show",
        operation_id="show_ollama_api_show_post",
        summary="Show the features of a model or alias",
    )
    async def show_model(request: Request) -> dict[str, Any]:
        body = validate(wire.ShowBody, parse_object(await request.body()))
        name = body.model or body.name
        if not name:
            raise InvalidRequest("model: is missing; set it to the name of a model", field="model")
        deployments = text_router.fleet.find_allowed_deployments(name, context(request.scope).owner)
        if not deployments:
            raise ModelNotFound(
                f"there is no model or alias {name!r}; GET /api/tags lists all", field="model"
            )
        return _describe_features(deployments)

    return router


def _is_loaded(fleet: Fleet, deployment: ModelDeployment) -> bool:
    """Return whether the model is loaded. Servers that report no loaded models have loaded all."""
    runtime = fleet.runtimes.get(deployment.backend)
    if runtime is None or not runtime.health.is_up:
        return False
    return (
        runtime.loaded is None
        or runtime.loaded.get_state(deployment.model.upstream) is ModelState.RESIDENT
    )


def _describe_list_entry(name: str, deployments: tuple[ModelDeployment, ...]) -> dict[str, Any]:
    upstream = " ".join(
        sorted(f"{deployment.backend}/{deployment.model.upstream}" for deployment in deployments)
    )
    return {
        "name": name,
        "model": name,
        "modified_at": _MODIFIED_AT,
        "size": 0,
        "digest": hashlib.sha256(upstream.encode()).hexdigest(),
        "details": _MODEL_DETAILS,
    }


def _describe_features(deployments: tuple[ModelDeployment, ...]) -> dict[str, Any]:
    models = [deployment.model for deployment in deployments]
    context = max((model.context for model in models), default=0)
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": _MODIFIED_AT,
        "details": _MODEL_DETAILS,
        "model_info": {"general.architecture": "moyin", "moyin.context_length": context},
        "capabilities": _find_capabilities(models),
    }


def _find_capabilities(models: list[Model]) -> list[str]:
    """Return the capabilities of at least one of the models."""
    capabilities = ["completion"] if any(not model.embeddings for model in models) else []
    capabilities += ["embedding"] if any(model.embeddings for model in models) else []
    return capabilities + [name for name in _CAPABILITIES if any(getattr(m, name) for m in models)]
