"""Compares the router's costs for a day of requests with the costs of an all-knowing router."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from decimal import Decimal

import pytest

from moyin.domain.chat import ChatRequest, ChatResponse, StopReason, Text
from moyin.domain.money import Usage, create_flat_tariff, pico_to_usd
from moyin.http.breaker import Breaker
from moyin.testing.backends import FakeBackend
from moyin.text.protocol.anthropic.codec import AnthropicCodec
from moyin.text.protocol.codec import ProtocolCodec
from moyin.text.protocol.openai.codec import OpenAICodec
from moyin.text.routing.answer import RoutingContext
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import Alias, Catalog, ModelDeployment, TenantPolicy
from moyin.text.routing.claude_prices import CLAUDE_TARIFFS
from moyin.text.routing.fleet import Fleet
from moyin.text.routing.router import Router
from tests.stack import RecordMeasurement
from tests.unit.text.routing.factories import ALL_SCOPES, make_deployment
from tests.unit.text.routing.request_trace import TraceRequest, generate_requests
from tests.unit.text.routing.router_rig import RecordedLedger

DAY = date(2026, 11, 25)
HOME = "on-premises"
_PICTURE = "data:image/png;base64,iVBORw0KGgo="
_TOOL = {"type": "function", "function": {"name": "grep", "parameters": {"type": "object"}}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "label", "schema": {"type": "object"}}}

# What the hours of two cards come to per million tokens: the small one reads fast and writes slowly.
AMORTISED = (("0.02", "0.90"), ("0.06", "0.60"))
PAID_FOR = (("0", "0"), ("0", "0"))


def build_deployments(
    small_prices: tuple[str, str], large_prices: tuple[str, str]
) -> tuple[ModelDeployment, ...]:
    """Return a fleet's deployments: a small and a large local model at these prices, and Claude."""
    return (
        make_deployment(
            "small",
            create_flat_tariff(*map(Decimal, small_prices)),
            context=16_384,
            abilities=("schema",),
            residency=HOME,
            quality=1,
        ),
        make_deployment(
            "large",
            create_flat_tariff(*map(Decimal, large_prices)),
            context=131_072,
            abilities=("schema", "tools"),
            residency=HOME,
            quality=2,
        ),
        *CLOUD,
    )


CLOUD = tuple(
    make_deployment(
        model,
        CLAUDE_TARIFFS[model],
        model=model,
        context=200_000,
        abilities=ALL_SCOPES,
        quality=quality,
    )
    for quality, model in (
        (2, "claude-haiku-5-5"),
        (3, "claude-sonnet-5-5"),
        (4, "claude-opus-5-5"),
    )
)
ALIASES = {"smart": Alias(quality=3)}
POLICIES = {"ada": TenantPolicy(residency=frozenset({HOME}))}


class BillingBackend(FakeBackend):
    """A fake back end that counts tokens like its provider and records its own bill."""

    def __init__(self, deployment: ModelDeployment, trace: Mapping[str, TraceRequest]) -> None:
        super().__init__()
        self._deployment = deployment
        self._trace = trace
        self.billed_usage: dict[str, Usage] = {}

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        traced_request = self._trace[request.user or ""]
        usage = self.billed_usage[traced_request.id] = compute_true_usage(
            traced_request, self._deployment
        )
        return ChatResponse(
            id=traced_request.id,
            model="m",
            parts=(Text(text="."),),
            stop=StopReason.END,
            usage=usage,
        )


def compute_true_usage(request: TraceRequest, deployment: ModelDeployment) -> Usage:
    cached_tokens = (
        round(request.prompt * request.kind.cached) if deployment.residency == "cloud" else 0
    )
    return Usage(
        input_tokens=request.prompt - cached_tokens,
        cached_tokens=cached_tokens,
        output_tokens=request.output,
    )


def compute_cost(request: TraceRequest, deployment: ModelDeployment) -> int:
    return deployment.model.tariff.get_price_on(DAY).compute_pico_cost(
        compute_true_usage(request, deployment)
    )


def meets_constraints(request: TraceRequest, deployment: ModelDeployment) -> bool:
    """Return True if a model meets the constraints of a request, computed without the router."""
    kind, model = request.kind, deployment.model
    must_stay_on_premises = request.at_home or request.owner == "ada"
    return (
        (deployment.residency == HOME or not must_stay_on_premises)
        and model.quality >= (3 if kind.alias == "smart" else 0)
        and (model.tools or not kind.tools)
        and (model.vision or not kind.vision)
        and (model.schema or not kind.schema)
        and estimate_body_tokens(request) + (kind.limit or 0) <= model.context
    )


def estimate_body_tokens(request: TraceRequest) -> int:
    """Return the router's estimate of a request's tokens before the call."""
    return choose_codec(request).parse(build_body(request)).derive_needs().prompt_tokens


def choose_codec(request: TraceRequest) -> ProtocolCodec:
    return AnthropicCodec() if request.kind.cached else OpenAICodec()


def build_body(request: TraceRequest) -> bytes:
    kind = request.kind
    if kind.cached:
        return build_marked_body(request)
    content: object = "x" * request.bytes_
    if kind.vision:
        picture = {"type": "image_url", "image_url": {"url": _PICTURE}}
        content = [{"type": "text", "text": content}, picture]
    body: dict[str, object] = {
        "model": kind.alias,
        "user": request.id,
        "messages": [{"role": "user", "content": content}],
    }
    if kind.limit is not None:
        body["max_tokens"] = kind.limit
    if kind.tools:
        body["tools"] = [_TOOL]
    if kind.schema:
        body["response_format"] = _SCHEMA
    return json.dumps(body).encode()


def build_marked_body(request: TraceRequest) -> bytes:
    """Return a body in Anthropic's format, which can mark a prompt for caching."""
    cache_marker = {"cache_control": {"type": "ephemeral"}}
    body = {
        "model": request.kind.alias,
        "max_tokens": 4_096,
        "metadata": {"user_id": request.id},
        "tools": [{"name": "grep", "input_schema": {"type": "object"}}],
        "system": [{"type": "text", "text": "x" * request.bytes_, **cache_marker}],
        "messages": [{"role": "user", "content": "go on"}],
    }
    return json.dumps(body).encode()


@pytest.mark.parametrize("card_prices", [AMORTISED, PAID_FOR], ids=["amortised", "paid for"])
async def test_total_cost_is_within_a_twentieth_of_an_oracle(
    card_prices: tuple[tuple[str, str], tuple[str, str]], record_measurement: RecordMeasurement
) -> None:
    all_deployments = build_deployments(*card_prices)
    trace = {request.id: request for request in generate_requests()}
    assert len(trace) >= 2_000
    billing_backends = {
        model_deployment.backend: BillingBackend(model_deployment, trace)
        for model_deployment in all_deployments
    }
    runtimes = {
        name: BackendRuntime(
            name=name, backend=server, pass_through=None, timeout=60, breaker=Breaker(lambda: 0.0)
        )
        for name, server in billing_backends.items()
    }
    fleet = Fleet(
        catalog=Catalog(deployments=all_deployments, aliases=ALIASES),
        runtimes=runtimes,
        policies=POLICIES,
    )
    ledger = RecordedLedger()
    router = Router(fleet, ledger)
    deployments_by_backend = {
        model_deployment.backend: model_deployment for model_deployment in all_deployments
    }
    spent_pico = oracle_pico = mixed_pico = mixed_oracle_pico = unrestricted_pico = (
        cheapest_claude_pico
    ) = sonnet_pico = 0
    for request in trace.values():
        context = RoutingContext(
            request_id=request.id, owner=request.owner, headers=request.headers
        )
        codec = choose_codec(request)
        await router.answer(codec, codec.parse(build_body(request)), context)
        entry = ledger[-1]
        chosen_deployment = deployments_by_backend[entry.backend]
        assert meets_constraints(request, chosen_deployment), (
            f"{request.kind.name} went to {chosen_deployment.backend}"
        )
        able_deployments = [
            model_deployment
            for model_deployment in all_deployments
            if meets_constraints(request, model_deployment)
        ]
        spent_pico += compute_cost(request, chosen_deployment)
        oracle_pico += min(
            compute_cost(request, model_deployment) for model_deployment in able_deployments
        )
        if cloud_deployments := [
            model_deployment
            for model_deployment in able_deployments
            if model_deployment.residency == "cloud"
        ]:
            unrestricted_pico += compute_cost(request, chosen_deployment)
            cheapest_claude_pico += min(
                compute_cost(request, model_deployment) for model_deployment in cloud_deployments
            )
            sonnet_pico += compute_cost(request, deployments_by_backend["claude-sonnet-5-5"])
            if len(cloud_deployments) < len(able_deployments):
                mixed_pico += compute_cost(request, chosen_deployment)
                mixed_oracle_pico += min(
                    compute_cost(request, model_deployment) for model_deployment in able_deployments
                )

    # The ledger, the providers' bills and the money agree, to the token.
    assert [entry.request_id for entry in ledger] == list(trace)
    for entry in ledger:
        billed_usage = billing_backends[entry.backend].billed_usage[entry.request_id]
        assert (entry.input_tokens, entry.cached_tokens, entry.output_tokens) == (
            billed_usage.prompt_tokens,
            billed_usage.cached_tokens,
            billed_usage.output_tokens,
        )
    assert sum((entry.cost_usd for entry in ledger), Decimal(0)) == pico_to_usd(spent_pico)

    excess_share = spent_pico / oracle_pico - 1
    record_measurement(
        f"money, cards at {'/'.join(card_prices[0])} and {'/'.join(card_prices[1])} USD per million: "
        f"{len(trace)} requests for {pico_to_usd(spent_pico):.4f} USD, {excess_share:.2%} above an oracle that knows "
        f"every length ({mixed_pico / mixed_oracle_pico - 1 if mixed_oracle_pico else 0:.2%} where house and cloud "
        f"could both answer); where data may leave the house {1 - unrestricted_pico / cheapest_claude_pico:.0%} below "
        f"the cheapest able Claude model, {1 - unrestricted_pico / sonnet_pico:.0%} below Sonnet for all"
    )
    assert oracle_pico <= spent_pico <= oracle_pico * 1.05
    assert mixed_pico <= mixed_oracle_pico * 1.05
    assert unrestricted_pico < cheapest_claude_pico
