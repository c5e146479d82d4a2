"""Serves the list of models at ``GET /v1/models`` to OpenAI's and Anthropic's clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from deployments.ingress import to_response
from deployments.models.errors import choose_renderer, is_anthropic_client
from moyin.access.gatekeeper import context
from moyin.domain.identity import OPERATOR
from moyin.domain.operation import UnitRates
from moyin.errors import InvalidRequest, ModelNotFound, MoyinError
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router

# The protocols require a creation date, which our models and aliases do not have.
_CREATED = datetime(2026, 1, 1, tzinfo=UTC)
_ABILITIES = ("tools", "vision", "schema", "thinking", "embeddings")
# Anthropic's largest page size, and the default here.
_MAX_PAGE = 1_000
_MAX_SEARCH = 200
_PARAMETERS = [
    {"name": name, "in": "query", "description": description, "schema": schema}
    for name, description, schema in (
        (
            "search",
            "Only names that contain this text, in any case.",
            {"type": "string", "maxLength": _MAX_SEARCH},
        ),
        (
            "limit",
            "Return so many at most.",
            {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE},
        ),
        ("after_id", "Only those after this name, the `last_id` of a page.", {"type": "string"}),
        ("before_id", "Only those before this name, the `first_id` of a page.", {"type": "string"}),
    )
]


def new_model_routes(text_router: Router) -> APIRouter:
    """Return the routes that list models and aliases."""
    router = APIRouter(tags=["models"])

    @router.get(
        "/models",
        summary="List the models and aliases that the caller may use, with their status",
        description="Anthropic's clients (header `anthropic-version`) get pages of 1000, others all "
        "unless they set `limit`. Callers with the scope `operator` also see the back ends and their "
        "prices.",
        response_model=None,
        openapi_extra={"parameters": _PARAMETERS},
    )
    async def list_models(request: Request) -> Response | dict[str, Any]:
        try:
            return _list_page(text_router.fleet, request)
        except MoyinError as error:
            return _new_error_response(error, request)

    @router.get("/models/{name:path}", summary="Show a model or alias", response_model=None)
    async def show_model(name: str, request: Request) -> Response | dict[str, Any]:
        fleet, owner = text_router.fleet, context(request.scope).owner
        if name not in fleet.list_names(owner):
            error = ModelNotFound(
                f"there is no model or alias {name!r}; GET /v1/models lists all", field="model"
            )
            return _new_error_response(error, request)
        return _describe_model(fleet, owner, name, with_prices=_is_operator(request))

    return router


def _new_error_response(error: MoyinError, request: Request) -> Response:
    render = choose_renderer(request.scope)
    return to_response(render(error, context(request.scope).request_id, request.url.path))


def _is_operator(request: Request) -> bool:
    identity = context(request.scope).identity
    return identity is not None and identity.has_scope(OPERATOR)


def _list_page(fleet: Fleet, request: Request) -> dict[str, Any]:
    owner, with_prices = context(request.scope).owner, _is_operator(request)
    default_limit = _MAX_PAGE if is_anthropic_client(request.scope) else None
    names, has_more = _select_page(
        fleet.list_names(owner), request.query_params, default_limit=default_limit
    )
    return _describe_page(fleet, owner, names, has_more=has_more, with_prices=with_prices)


def list_models(fleet: Fleet, owner: str, *, prices: bool) -> dict[str, Any]:
    """Return all models and aliases that a tenant may use.

    Args:
        prices: True to include the prices, which only operators see.
    """
    return _describe_page(fleet, owner, fleet.list_names(owner), has_more=False, with_prices=prices)


def _describe_page(
    fleet: Fleet, owner: str, names: Sequence[str], *, has_more: bool, with_prices: bool
) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [_describe_model(fleet, owner, name, with_prices=with_prices) for name in names],
        "has_more": has_more,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }


def _select_page(
    names: Sequence[str], query: Mapping[str, str], *, default_limit: int | None
) -> tuple[Sequence[str], bool]:
    """Return the names on the page that the parameters ``query`` request.

    Args:
        default_limit: the number of names on a page without ``limit``; None for all.

    Returns:
        The names, and True if more names follow: with ``before_id`` in front of the page, else
        behind it.
    """
    names = _search_names(names, query.get("search", ""))
    limit = _parse_limit(query.get("limit"), default_limit or len(names))
    after, before = query.get("after_id"), query.get("before_id")
    if after is not None and before is not None:
        raise InvalidRequest(
            "before_id: must not be used together with after_id", field="before_id"
        )
    if before is not None:
        end = _find_position(names, before, "before_id")
        start = max(end - limit, 0)
        return names[start:end], start > 0
    start = 0 if after is None else _find_position(names, after, "after_id") + 1
    return names[start : start + limit], start + limit < len(names)


def _search_names(names: Sequence[str], text: str) -> Sequence[str]:
    if len(text) > _MAX_SEARCH:
        raise InvalidRequest(f"search: must have at most {_MAX_SEARCH} characters", field="search")
    search_text = text.strip().casefold()
    return [name for name in names if search_text in name.casefold()]


def _parse_limit(limit_text: str | None, default: int) -> int:
    if limit_text is None:
        return default
    # ASCII digits only: int() also accepts underscores, signs and digits of other scripts.
    limit = (
        int(limit_text)
        if limit_text.isascii() and limit_text.isdigit() and len(limit_text) <= 4
        else 0
    )
    if not 1 <= limit <= _MAX_PAGE:
        raise InvalidRequest(f"limit: must be a number from 1 to {_MAX_PAGE}", field="limit")
    return limit


def _find_position(names: Sequence[str], name: str, field: str) -> int:
    if name not in names:
        raise InvalidRequest(
            f"{field}: there is no model or alias {name!r}; GET /v1/models lists all", field=field
        )
    return names.index(name)


def _describe_model(fleet: Fleet, owner: str, name: str, *, with_prices: bool) -> dict[str, Any]:
    deployments = fleet.find_allowed_deployments(name, owner)
    states = {_describe_status(fleet, deployment) for deployment in deployments}
    # An alias has the abilities of the models that can answer, not of models whose API key is
    # missing.
    models = [deployment.model for deployment in fleet.find_callable_deployments(name, owner)]
    body: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(_CREATED.timestamp()),
        "owned_by": "moyin",
        "type": "model",
        "display_name": name,
        "created_at": _CREATED.isoformat(),
        "lifecycle": "active",
        "max_input_tokens": max(
            (model.context for model in models if model.takes_prompts), default=None
        ),
        "status": next(status for status in ("up", "down", "not_configured") if status in states),
        **{ability: any(getattr(model, ability) for model in models) for ability in _ABILITIES},
        "abilities": sorted({call for model in models for call in model.calls}),
    }
    if with_prices:
        body["backends"] = [_describe_backend(fleet, deployment) for deployment in deployments]
    return body


def _describe_backend(fleet: Fleet, deployment: ModelDeployment) -> dict[str, Any]:
    model = deployment.model
    rates = fleet.get_price(deployment).select_rates(0)
    return {
        "name": deployment.backend,
        "model": model.name,
        "status": _describe_status(fleet, deployment),
        "context": model.context,
        **{ability: getattr(model, ability) for ability in _ABILITIES},
        "abilities": sorted(model.calls),
        "quality": model.quality,
        "usd_per_million_tokens": {"input": str(rates.input), "output": str(rates.output)},
        **_describe_unit_prices(model.unit_rates),
    }


def _describe_unit_prices(rates: UnitRates) -> dict[str, str]:
    prices = {
        "usd_per_million_characters": rates.characters,
        "usd_per_minute": rates.minutes,
        "usd_per_image": rates.images,
        "usd_per_thousand_searches": rates.searches,
    }
    return {name: str(price) for name, price in prices.items() if price}


def _describe_status(fleet: Fleet, deployment: ModelDeployment) -> str:
    if not deployment.configured:
        return "not_configured"
    return "up" if fleet.get_health(deployment.backend).is_up else "down"
