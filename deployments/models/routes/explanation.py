"""Serves ``POST /v1/route``, which explains the choice of a model without calling it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from deployments.models.routes.calls import CallRoute
from moyin.access.gatekeeper import context
from moyin.domain.money import format_usd
from moyin.errors import InvalidRequest
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.compiled_route import Exclusion
from moyin.text.routing.decision import Candidate, Forecast
from moyin.text.routing.explanation import (
    Explanation,
    Reason,
    describe_choice,
    describe_model_state,
    list_losses,
)
from moyin.text.routing.omission import describe_omission
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.router import Router

_PROTOCOL_HEADER = "x-moyin-protocol"
_DURATION_MEMBERS = (
    "seconds", "waiting_seconds", "loading_seconds", "first_token_seconds", "writing_seconds"
)  # fmt: skip


def new_explanation_routes(text_router: Router, calls: Mapping[str, CallRoute]) -> APIRouter:
    """Return the route that explains the choice of a model.

    Args:
        calls: the routes of model calls, by the protocol's name; the first is the default.
    """
    router = APIRouter(tags=["routing"])

    @router.post(
        "/route",
        operation_id="route_route_post",
        summary="Explain which back end would answer a request",
        description="Takes the body of a model call and explains the router's decision without "
        "calling a model: the expected cost, time and score of every candidate, and the reason why "
        "other back ends are excluded, such as a member of the body that their protocol lacks. "
        "`?protocol=` (or the header `x-moyin-protocol`) names the "
        "protocol of the body: "
        f"{', '.join(calls)}; by default the first. The headers `x-moyin-residency`, "
        "`x-moyin-quality` and `x-moyin-usd-per-bad-answer` count as in the call itself.",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"type": "object"}}},
            }
        },
    )
    async def explain_choice(request: Request, protocol: str | None = None) -> dict[str, Any]:
        protocol_name = protocol or request.headers.get(_PROTOCOL_HEADER) or next(iter(calls))
        route = calls.get(protocol_name)
        if route is None:
            raise InvalidRequest(
                f"protocol: must be one of {', '.join(calls)}, not {protocol_name[:64]!r}",
                field="protocol",
            )
        call = await route.parse(await request.body(), request.scope)
        call = await route.embed_files(call, request.scope)
        request_context = context(request.scope)
        routing_context = RoutingContext(
            request_id=request_context.request_id,
            owner=request_context.owner,
            headers=request.scope["headers"],
        )
        await text_router.load_learned_state(routing_context.owner)
        return _describe_explanation(text_router.explain(route.codec, call, routing_context))

    return router


def _describe_explanation(explanation: Explanation) -> dict[str, Any]:
    needs, error = explanation.needs, explanation.error
    best_candidate = explanation.candidates[0] if explanation.candidates else None
    return {
        "model": explanation.requested_model,
        "needs": {
            "prompt_tokens": needs.prompt_tokens,
            "max_tokens": needs.max_tokens,
            **{name: getattr(needs, name) for name in ("tools", "vision", "schema", "thinking")},
        },
        "usd_per_second": explanation.usd_per_second,
        "quality": _describe_quality(explanation.quality),
        "explore": {"share": explanation.explore, "tried": _name_candidate(explanation.trial)},
        "omitted": list(explanation.omitted),
        "route": describe_omission(
            describe_choice(explanation.candidates, explanation.quality), explanation.omitted
        )
        if explanation.candidates
        else None,
        "chosen": _name_candidate(best_candidate),
        "candidates": [
            _describe_candidate(candidate, explanation) for candidate in explanation.candidates
        ],
        "refused": [_describe_exclusion(exclusion) for exclusion in explanation.exclusions],
        "error": None if error is None else {"code": error.code, "message": error.message},
    }


def _name_candidate(candidate: Candidate | None) -> dict[str, str] | None:
    if candidate is None:
        return None
    return {"backend": candidate.deployment.backend, "model": candidate.deployment.model.name}


def _describe_candidate(candidate: Candidate, explanation: Explanation) -> dict[str, Any]:
    best_candidate, forecast = explanation.candidates[0], candidate.forecast
    assert forecast is not None, "Router.explain makes a forecast for every candidate"
    assert best_candidate.forecast is not None, (
        "Router.explain makes a forecast for every candidate"
    )
    reasons = (
        [Reason(text=candidate.reason, code=candidate.reason)]
        if candidate is best_candidate
        else list_losses(candidate, best_candidate, explanation.usd_per_second)
    )
    return {
        "backend": candidate.deployment.backend,
        "model": candidate.deployment.model.name,
        "reason": " and ".join(reason.text for reason in reasons),
        "reasons": [{"code": reason.code, **reason.parameters} for reason in reasons],
        "score_usd": forecast.score,
        "quality": _describe_estimate(forecast),
        "loses_by_usd": forecast.score - best_candidate.forecast.score,
        "state": describe_model_state(candidate),
        "expected": {
            "cost_usd": format_usd(forecast.cost_pico),
            "prompt_tokens": forecast.usage.prompt_tokens,
            "cached_tokens": forecast.usage.cached_tokens,
            "output_tokens": forecast.usage.output_tokens,
            **{name: getattr(forecast, name) for name in _DURATION_MEMBERS},
        },
    }


def _describe_quality(quality: RequestQuality | None) -> dict[str, Any] | None:
    """Return the request's difficulty and the cost of a useless answer, as members of JSON.

    Return None if quality has no influence on the choice.
    """
    if quality is None:
        return None
    question = quality.question
    return {
        **{name: getattr(question, name) for name in ("kind", "language", "difficulty", "spread")},
        "usd_per_bad_answer": quality.usd_per_bad_answer,
        "floor": quality.floor,
    }


def _describe_estimate(forecast: Forecast) -> dict[str, Any] | None:
    estimate = forecast.estimate
    if estimate is None:
        return None
    return {
        "p_good": estimate.p,
        "p_good_low": estimate.low,
        "p_good_high": estimate.high,
        "signals": estimate.signals,
        "basis": estimate.basis,
        "risk_usd": forecast.risk,
    }


def _describe_exclusion(exclusion: Exclusion) -> dict[str, Any]:
    return {
        "backend": exclusion.deployment.backend,
        "model": exclusion.deployment.model.name,
        "reason": exclusion.reason,
        "reasons": [{"code": exclusion.code, **exclusion.parameters}],
        "retry_after": exclusion.retry_after,
    }
