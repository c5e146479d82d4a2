"""Serves ratings of answers (``/v1/feedback``) and the learned quality (``/v1/quality``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from deployments.models.routes.judge_summary import JudgeStatus, summarize_verdicts
from moyin.access.gatekeeper import context
from moyin.http.validation import parse_object, validate
from moyin.store.quality import QualityStore, SignalRow
from moyin.text.protocol.ratings import FeedbackBody, FreezeBody
from moyin.text.quality.abilities import TABLE_DATE, look_up_ability
from moyin.text.routing.feedback import FeedbackService
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.price_scenarios import simulate_prices
from moyin.text.routing.router import Router

# Paths, without the app's prefix, that change or export the learned quality of a whole tenant.
ADMIN_PATHS = frozenset({"/quality/reset", "/quality/freeze", "/quality/export"})
_MAX_SIGNALS = 1_000
_SIGNAL_MEMBERS = ("request_id", "source", "model", "score", "weight", "p_good", "comment")
# Number of latest decisions (at most thirty days old) simulated with other costs of a bad answer.
_MAX_DECISIONS = 2_000


def new_feedback_routes(
    text_router: Router,
    feedback: FeedbackService,
    learning: QualityLearner,
    quality_store: QualityStore,
    judge: JudgeStatus | None = None,
) -> APIRouter:
    """Return the routes that rate answers and that show, export or reset the learned quality."""
    router = APIRouter(tags=["quality"])

    @router.post(
        "/feedback",
        summary="Rate an answer",
        description="Rate the answer with this `x-request-id` by a `score` from 0 (useless) to 1 "
        "(good), or by the `better_request_id` of a better answer to the same question. The router "
        "learns from ratings for your tenant. Repeating a rating has no effect; a different score by "
        "the same key is refused with 409. The response is 404 if your tenant has no such request. If "
        "a request named its model, or if the router was too busy to analyse it, its rating counts "
        "for the model in general. `learned` is false while learning is frozen for your tenant.",
        openapi_extra=_describe_body(FeedbackBody),
    )
    async def give_feedback(request: Request) -> dict[str, Any]:
        body = validate(FeedbackBody, parse_object(await request.body()))
        caller = context(request.scope).caller
        scores = await feedback.submit(
            caller.owner,
            caller.key_id,
            body.request_id,
            score=body.score,
            better_request_id=body.better_request_id,
            comment=body.comment,
        )
        is_frozen = (await learning.get_tenant_state(caller.owner)).frozen
        return {"request_id": body.request_id, "learned": not is_frozen, "scores": scores}

    @router.get("/quality", summary="Show the learned quality by model and kind of request")
    async def show_quality(request: Request) -> dict[str, Any]:
        caller = context(request.scope).caller
        owner = caller.owner
        state = await learning.get_tenant_state(owner)
        signals = await quality_store.list_latest_signals(owner, _MAX_SIGNALS)
        return {
            "owner": owner,
            "frozen": state.frozen,
            "table_date": TABLE_DATE,
            "models": [
                {
                    **_describe_ability(text_router, name),
                    "signals": {
                        kind: round(count, 1)
                        for kind, count in (
                            state.models[name].counts.items() if name in state.models else ()
                        )
                    },
                    "shared": {
                        kind: round(level, 2)
                        for kind, level in learning.get_levels_from_others(owner, name).items()
                    },
                }
                for name in sorted(_list_chat_models(text_router) | state.models.keys())
            ],
            "calibration": _group_by_expected_quality(signals),
            "judge": await summarize_verdicts(quality_store, judge, caller),
            "prices": [
                {
                    "usd_per_bad_answer": outcome.usd_per_bad_answer,
                    "cost_usd": outcome.cost_usd,
                    "bad_answers": outcome.bad_answers,
                    "models": dict(outcome.models),
                }
                for outcome in simulate_prices(
                    await quality_store.list_options(owner, _MAX_DECISIONS)
                )
            ],
        }

    @router.get("/quality/export", summary="Export the stored signals of your tenant")
    async def export_quality(request: Request) -> dict[str, Any]:
        owner = context(request.scope).owner
        state = await learning.get_tenant_state(owner)
        signals = await quality_store.list_latest_signals(owner, _MAX_SIGNALS)
        return {
            "owner": owner,
            "state": state.to_json(),
            "signals": [_describe_signal(row) for row in signals],
        }

    @router.post("/quality/reset", summary="Delete all signals of your tenant", status_code=204)
    async def reset_quality(request: Request) -> None:
        await learning.apply_owner_action(context(request.scope).owner, "reset")

    @router.post(
        "/quality/freeze",
        summary="Stop or resume learning for your tenant",
        status_code=204,
        openapi_extra=_describe_body(FreezeBody),
    )
    async def freeze_quality(request: Request) -> None:
        body = validate(FreezeBody, parse_object(await request.body()))
        await learning.apply_owner_action(
            context(request.scope).owner, "freeze" if body.frozen else "thaw"
        )

    return router


def _describe_body(body: type[FeedbackBody] | type[FreezeBody]) -> dict[str, Any]:
    schema = body.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _list_chat_models(text_router: Router) -> set[str]:
    deployments = text_router.fleet.catalog.deployments
    return {deployment.model.name for deployment in deployments if deployment.model.chat}


def _describe_ability(text_router: Router, name: str) -> dict[str, Any]:
    known_ability = text_router.fleet.catalog.abilities.get(name) or look_up_ability(name)
    if known_ability is None:
        unknown_members: dict[str, Any] = {"ability": None, "spread": None, "kinds": {}}
        return {"model": name, "source": "nothing is known", **unknown_members}
    return {
        "model": name,
        "ability": known_ability.mean,
        "spread": known_ability.spread,
        "source": known_ability.source,
        "kinds": {
            kind: {"ability": ability.mean, "spread": ability.spread, "source": ability.source}
            for kind, ability in known_ability.kinds.items()
        },
    }


def _describe_signal(row: SignalRow) -> Mapping[str, Any]:
    question = row.question or {}
    return {
        **{name: getattr(row, name) for name in _SIGNAL_MEMBERS},
        "kind": question.get("kind"),
        "language": question.get("language"),
        "at": row.created_at.isoformat(),
    }


def _group_by_expected_quality(signals: list[SignalRow]) -> list[dict[str, Any]]:
    """Return the mean expected and mean rated quality for each tenth of the expected quality."""
    rows_by_tenth: dict[int, list[SignalRow]] = {}
    for row in signals:
        if row.p_good is not None:
            rows_by_tenth.setdefault(min(int(row.p_good * 10), 9), []).append(row)
    return [
        {
            "from": tenth / 10,
            "to": (tenth + 1) / 10,
            "signals": len(rows),
            "expected": sum(row.p_good or 0.0 for row in rows) / len(rows),
            "good": sum(row.score for row in rows) / len(rows),
        }
        for tenth, rows in sorted(rows_by_tenth.items())
    ]
