"""Serves the state of the back ends at ``GET /v1/backends``, for operators and administrators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from deployments.models.recent_calls import WINDOW_SECONDS, CallSummary, RecentCalls
from moyin.access.gatekeeper import context
from moyin.domain.identity import OPERATOR, ORG_ADMIN
from moyin.errors import InsufficientScope
from moyin.http.breaker import BreakerState
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.loaded_models import ModelState
from moyin.text.routing.router import Router

_SHORT_PROMPT_TOKENS = 100


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True)


class PriceBody(_Body):
    """The price of a model in US dollars per million tokens, as strings such as `0.25`."""

    input: str
    output: str


class QualityBody(_Body):
    """The estimated ability of a model before any rating."""

    tier: int = Field(description="The quality tier of the configuration.")
    mean: float | None = Field(description="The expected ability in logits; null if unknown.")
    source: str | None = Field(description="The source of the number.")


class BackendModelBody(_Body):
    """A model of a back end, with its prices, abilities and state."""

    name: str
    state: ModelState = Field(
        description="Whether it is in the server's memory; unknown if the server does not say."
    )
    first_token_seconds: float | None = Field(
        description="The expected time to the first token of a prompt with 100 tokens."
    )
    output_tokens_per_second: float | None
    quality: QualityBody
    usd_per_million_tokens: PriceBody | None = Field(description="For operators only.")


class LoadBody(_Body):
    """The number of this replica's running and waiting calls at the back end."""

    in_flight: int
    waiting: int
    limit: int | None = Field(description="The most calls at once; null without a limit.")


class RecentBody(_Body):
    """Statistics of this replica's calls in the last five minutes, without cancelled calls."""

    seconds: int = int(WINDOW_SECONDS)
    calls: int
    errors: int
    p50_seconds: float | None
    p90_seconds: float | None
    output_tokens_per_second: float | None = Field(
        description="Output tokens by the seconds of the successful calls."
    )


class BackendBody(_Body):
    """The state of a back end; a back end with several hosts has one entry per host."""

    name: str
    kind: str | None = Field(description="The kind of server; null if it is not configured.")
    residency: str
    status: Literal["up", "down", "not_configured"]
    breaker: BreakerState | None = Field(description="The state of its circuit breaker.")
    retry_after_seconds: float = Field(description="The time until an open breaker admits a call.")
    models: list[BackendModelBody]
    load: LoadBody | None = Field(description="For operators only.")
    recent: RecentBody | None = Field(description="For operators only.")


class BackendsBody(_Body):
    """The body of ``GET /v1/backends``: the back ends, in the configured order."""

    backends: list[BackendBody]


def new_backend_routes(text_router: Router, recent_calls: RecentCalls) -> APIRouter:
    """Return the route that shows the state of the back ends."""
    router = APIRouter(tags=["models"])

    @router.get(
        "/backends",
        summary="Show the health, load, speed and prices of the back ends",
        description="Needs the scope `operator` or `org:admin`. Administrators see the back ends "
        "and models that their tenant may use, without prices and without the load, which is that "
        "of all tenants. Health, load and speed are as the replica that responds sees them.",
    )
    async def list_backends(request: Request) -> BackendsBody:
        caller = context(request.scope).caller
        is_operator = caller.has_scope(OPERATOR)
        if not is_operator and not caller.has_scope(ORG_ADMIN):
            raise InsufficientScope(
                f"the caller lacks the required scope {OPERATOR} or {ORG_ADMIN}: use a key that has one",
                details={"scope": OPERATOR},
            )
        return describe_backends(
            text_router.fleet, recent_calls, None if is_operator else caller.owner
        )

    return router


def describe_backends(fleet: Fleet, recent_calls: RecentCalls, tenant: str | None) -> BackendsBody:
    """Return the back ends that a tenant's administrators see, or all if ``tenant`` is None."""
    summaries = recent_calls.summarize() if tenant is None else None
    return BackendsBody(
        backends=[
            _describe_backend(fleet, name, members, summaries)
            for name, members in _group_deployments(fleet, tenant).items()
        ]
    )


def _group_deployments(fleet: Fleet, owner: str | None) -> Mapping[str, list[ModelDeployment]]:
    """Return the deployments that ``owner`` may use, by back end; None means all deployments."""
    allowed_ids = None
    if owner is not None:
        names = fleet.list_names(owner)
        allowed_ids = {
            id(deployment)
            for name in names
            for deployment in fleet.find_allowed_deployments(name, owner)
        }
    groups: dict[str, list[ModelDeployment]] = {}
    for deployment in fleet.catalog.deployments:
        if allowed_ids is None or id(deployment) in allowed_ids:
            groups.setdefault(deployment.backend, []).append(deployment)
    return groups


def _describe_backend(
    fleet: Fleet,
    name: str,
    deployments: list[ModelDeployment],
    summaries: Mapping[str, CallSummary] | None,
) -> BackendBody:
    runtime = fleet.runtimes.get(name)
    is_operator = summaries is not None
    load_body = recent_body = None
    if summaries is not None:
        recent_body = _describe_calls(summaries.get(name, CallSummary()))
        if runtime is not None:
            load_body = LoadBody(
                in_flight=runtime.slots.taken,
                waiting=runtime.slots.waiting,
                limit=runtime.slots.limit,
            )
    return BackendBody(
        name=name,
        kind=None if runtime is None else runtime.provider,
        residency=deployments[0].residency,
        status=_describe_status(runtime, deployments[0]),
        breaker=None if runtime is None else runtime.breaker.state,
        retry_after_seconds=0.0 if runtime is None else round(runtime.breaker.retry_after, 1),
        models=[
            _describe_model(fleet, runtime, deployment, with_prices=is_operator)
            for deployment in deployments
        ],
        load=load_body,
        recent=recent_body,
    )


def _describe_status(
    runtime: BackendRuntime | None, deployment: ModelDeployment
) -> Literal["up", "down", "not_configured"]:
    if runtime is None or not deployment.configured:
        return "not_configured"
    return "up" if runtime.is_ready else "down"


def _describe_model(
    fleet: Fleet, runtime: BackendRuntime | None, deployment: ModelDeployment, *, with_prices: bool
) -> BackendModelBody:
    model, ability = deployment.model, deployment.ability
    latency = None if runtime is None else runtime.get_latency_estimator(model.name)
    state = ModelState.UNKNOWN
    if runtime is not None and runtime.loaded is not None:
        state = runtime.loaded.get_state(model.upstream)
    price = None
    if with_prices:
        rates = fleet.get_price(deployment).select_rates(0)
        price = PriceBody(input=str(rates.input), output=str(rates.output))
    return BackendModelBody(
        name=model.name,
        state=state,
        first_token_seconds=None
        if latency is None
        else latency.estimate_first_token_seconds(_SHORT_PROMPT_TOKENS),
        output_tokens_per_second=None
        if latency is None
        else 1 / max(latency.estimate_seconds_per_token(), 1e-6),
        quality=QualityBody(
            tier=model.quality,
            mean=None if ability is None else ability.mean,
            source=None if ability is None else ability.source,
        ),
        usd_per_million_tokens=price,
    )


def _describe_calls(summary: CallSummary) -> RecentBody:
    return RecentBody(
        calls=summary.calls,
        errors=summary.errors,
        p50_seconds=summary.p50_seconds,
        p90_seconds=summary.p90_seconds,
        output_tokens_per_second=summary.output_tokens_per_second,
    )
