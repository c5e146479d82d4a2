"""Serves the routes with which Ollama's clients list models and show which models are loaded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from moyin.access.gatekeeper import context
from moyin.domain.model_file import ModelFile
from moyin.domain.needs import Model
from moyin.errors import InvalidRequest, ModelNotFound
from moyin.http.validation import parse_object, validate
from moyin.text.protocol.ollama import wire
from moyin.text.routing.catalog import LATEST_TAG, ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.loaded_models import ModelState
from moyin.text.routing.router import Router

# The version of Ollama whose API we implement. Clients derive the supported features from it.
_OLLAMA_VERSION = "0.17.4"
# The protocol requires a modification date, which models of other servers and aliases do not have.
_MODIFIED_AT = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
_LOADED_FOR = timedelta(minutes=5)
# Capabilities of Ollama that are attributes of `moyin.domain.needs.Model`.
_CAPABILITIES = ("tools", "vision", "thinking")
_UNKNOWN_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "moyin",
    "families": ["moyin"],
    "parameter_size": "",
    "quantization_level": "",
}


def new_ollama_routes(text_router: Router) -> APIRouter:
    """Return the routes of Ollama's API that describe models."""
    router = APIRouter(prefix="/ollama", tags=["ollama"])

    @router.head("/", include_in_schema=False)
    @router.get("/", summary="Check that the server responds", response_class=PlainTextResponse)
    async def alive() -> PlainTextResponse:
        return PlainTextResponse("Ollama is running")

    @router.head("/api/version", include_in_schema=False)
    @router.get("/api/version", summary="Show the implemented version of Ollama's API")
    async def version() -> dict[str, str]:
        return {"version": _OLLAMA_VERSION}

    @router.head("/api/tags", include_in_schema=False)
    @router.get(
        "/api/tags", operation_id="tags_ollama_api_tags_get", summary="List models and aliases"
    )
    async def list_models(request: Request) -> dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        entries = [
            _describe_list_entry(name, fleet.find_allowed_deployments(name, owner))
            for name in fleet.list_names(owner)
        ]
        # Clients assume that the first model has files, so names without files come last.
        return {"models": sorted(entries, key=lambda entry: not entry["size"])}

    @router.get(
        "/api/ps", operation_id="ps_ollama_api_ps_get", summary="List models that are loaded"
    )
    async def list_loaded_models(request: Request) -> dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        # The periodic check may have missed a load or unload in the last seconds.
        await asyncio.gather(
            *(
                runtime.loaded.refresh()
                for runtime in fleet.runtimes.values()
                if runtime.loaded is not None and runtime.is_ready
            )
        )
        names = dict.fromkeys(fleet.list_names(owner))
        deployments = (
            deployment
            for name in names
            for deployment in fleet.find_allowed_deployments(name, owner)
        )
        # The list omits models that the tenant can use only through an alias.
        loaded_deployments: dict[str, ModelDeployment] = {}
        for deployment in deployments:
            if deployment.model.name in names and _is_loaded(fleet, deployment):
                loaded_deployments.setdefault(deployment.model.name, deployment)
        return {
            "models": [
                _describe_list_entry(name, (deployment,)) | _describe_memory_use(fleet, deployment)
                for name, deployment in loaded_deployments.items()
            ]
        }

    @router.post(
        "/api/show",
        operation_id="show_ollama_api_show_post",
        summary="Show the features of a model or alias",
        description="Of an alias, only what models of reachable back ends can do.",
    )
    async def show_model(request: Request) -> dict[str, Any]:
        body = validate(wire.ShowBody, parse_object(await request.body()))
        name = body.model or body.name
        if not name:
            raise InvalidRequest("model: must be the name of a model", field="model")
        deployments = text_router.fleet.find_callable_deployments(
            name, context(request.scope).owner
        )
        if not deployments:
            raise ModelNotFound(
                f"there is no model or alias {name!r}; GET /api/tags lists all", field="model"
            )
        return _describe_features(deployments)

    return router


def _is_loaded(fleet: Fleet, deployment: ModelDeployment) -> bool:
    """Return True if the model is loaded, or if its server does not report loaded models.

    Return False if the server is down.
    """
    runtime = fleet.runtimes.get(deployment.backend)
    if runtime is None or not runtime.health.is_up:
        return False
    return (
        runtime.loaded is None
        or runtime.loaded.get_state(deployment.model.upstream) is ModelState.RESIDENT
    )


def _describe_memory_use(fleet: Fleet, deployment: ModelDeployment) -> dict[str, Any]:
    """Return the memory use and the expiry time of a loaded model, as `/api/ps` shows them."""
    loaded_models = fleet.runtimes[deployment.backend].loaded
    report = (
        loaded_models.get_report(deployment.model.upstream) if loaded_models is not None else {}
    )
    return {
        "size_vram": 0,
        "context_length": deployment.model.context,
        "expires_at": (datetime.now(UTC) + _LOADED_FOR).isoformat(),
        **{
            name: report[name]
            for name in ("size", "size_vram", "context_length", "expires_at")
            if name in report
        },
    }


def _add_tag(name: str) -> str:
    """Return the name of a model with the tag ``:latest`` if it has no tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}{LATEST_TAG}"


def _describe_list_entry(name: str, deployments: Sequence[ModelDeployment]) -> dict[str, Any]:
    upstream = " ".join(
        sorted(f"{deployment.backend}/{deployment.model.upstream}" for deployment in deployments)
    )
    entry = {
        "name": _add_tag(name),
        "model": _add_tag(name),
        "modified_at": _MODIFIED_AT,
        "size": 0,
        "digest": hashlib.sha256(upstream.encode()).hexdigest(),
        "details": _UNKNOWN_DETAILS,
    }
    # A group of several models has no single size.
    file = _find_single_file(deployments)
    if file is None:
        return entry
    return entry | {
        "modified_at": file.modified_at or _MODIFIED_AT,
        "size": file.size,
        "digest": file.digest,
        "details": {**_UNKNOWN_DETAILS, **file.details},
    }


def _find_single_file(deployments: Iterable[ModelDeployment]) -> ModelFile | None:
    """Return the file of the deployments' model, as the first server that has the file reports it.

    Returns:
        None if the deployments have different models, or if no server reports a file.
    """
    deployments = list(deployments)
    if len({deployment.model.name for deployment in deployments}) != 1:
        return None
    return next(
        (deployment.file for deployment in deployments if deployment.file is not None), None
    )


def _describe_features(deployments: Sequence[ModelDeployment]) -> dict[str, Any]:
    models = [deployment.model for deployment in deployments]
    context = max((model.context for model in models), default=0)
    features = {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "modified_at": _MODIFIED_AT,
        "details": _UNKNOWN_DETAILS,
        "model_info": {"general.architecture": "moyin", "moyin.context_length": context},
        "capabilities": _find_capabilities(deployments),
    }
    file = _find_single_file(deployments)
    if file is None:
        return features
    return features | {
        **file.description,
        "modified_at": file.modified_at or _MODIFIED_AT,
        "details": {**_UNKNOWN_DETAILS, **file.details},
    }


def _find_capabilities(deployments: Sequence[ModelDeployment]) -> list[str]:
    """Return Ollama's names of the capabilities that at least one of the models has."""
    models = [deployment.model for deployment in deployments]
    capabilities = ["completion"] if any(model.chat for model in models) else []
    # Ollama computes embeddings with every model, but reports the capability only for embedding
    # models.
    capabilities += ["embedding"] if any(_is_embedding_model(model) for model in models) else []
    capabilities += [name for name in _CAPABILITIES if any(getattr(m, name) for m in models)]
    has_insert = any(
        deployment.file and "insert" in deployment.file.capabilities for deployment in deployments
    )
    return [*capabilities, *(["insert"] if has_insert else ())]


def _is_embedding_model(model: Model) -> bool:
    return model.embeddings and not model.chat
