"""Compiles a model name to the deployments that may answer, and bounds the cost of a request.

A route is compiled once per day, because prices change with the date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

from moyin.domain.backend import ApiFormat
from moyin.domain.money import Price, pico_to_usd
from moyin.domain.needs import Model, Needs
from moyin.http.breaker import Breaker
from moyin.text.routing.backend_runtime import BackendRuntime
from moyin.text.routing.catalog import (
    Alias,
    CachingPolicy,
    HedgingPolicy,
    ModelDeployment,
    RescuePolicy,
)
from moyin.text.routing.latency import LatencyEstimator

# `Needs` estimates one token per four bytes, and a token has at least one byte.
_MAX_TOKENS_PER_ESTIMATED_TOKEN = 4
# Tokens that providers add to a prompt, for example for tools.
_ADDED_PROVIDER_TOKENS = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """Deployment that cannot answer a request, with the reason.

    Attributes:
        code, parameters: the reason as a code, from which programs build their own text.
        missing: needs of the request that the model does not meet; empty if it is only unavailable.
        is_allowed: False if the tenant, the alias or the client forbids the deployment.
        retry_after: seconds until its back end's breaker accepts a request again.
    """

    deployment: ModelDeployment
    reason: str
    code: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    missing: tuple[str, ...] = ()
    is_allowed: bool = True
    retry_after: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RouteTarget:
    """Allowed deployment of a compiled route, with the runtime of its back end.

    Attributes:
        model_breaker: open while the back end reports that it lacks the model.
        position: index in the order of the configuration.
        needs_translation: True if the back end does not accept the client's API format.
        fixed_price: price on the route's day; None if it depends on the measured speed of the GPU.
        headers: response headers that name the back end and the model.
    """

    deployment: ModelDeployment
    runtime: BackendRuntime
    latency: LatencyEstimator
    model_breaker: Breaker
    position: int
    needs_translation: bool
    fixed_price: Price | None
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def model(self) -> Model:
        return self.deployment.model

    @property
    def is_free(self) -> bool:
        """True if the target charges nothing for tokens."""
        return self.fixed_price is not None and self.fixed_price.is_free

    def get_price(self) -> Price:
        """Return the current price per token, which may depend on the measured speed."""
        if self.fixed_price is not None:
            return self.fixed_price
        assert self.model.gpu is not None, (
            f"model {self.model.name!r} must have a tariff or a GPU rate"
        )
        return self.latency.estimate_price(self.model.gpu)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CompiledRoute:
    """Targets and rules for one model name, tenant, API format and day.

    Attributes:
        day: the day of the prices, in days since 1970-01-01.
        exclusions: deployments that are excluded for every request.
        usd_per_second: price of a second of waiting.
        usd_per_bad_answer: cost of a useless answer. With 0, quality is not weighed.
        hold_streams: True if streams in JSON or with tools are held back until they are checked.
        explore: share of requests on which a little-known model may be tried.
        chooses_model: False if the name selects a single model.
        timeout: maximum seconds of a request, including fallbacks.
        omitted_abilities: abilities, such as ``tools``, that no target has; the fields that need
            them are removed from requests (`omission`).
    """

    day: int
    targets: tuple[RouteTarget, ...]
    exclusions: tuple[Exclusion, ...]
    usd_per_second: float
    timeout: float
    usd_per_bad_answer: float = 0.0
    chooses_model: bool = True
    rescue: RescuePolicy = RescuePolicy.OFF
    hold_streams: bool = False
    explore: float = 0.0
    hedging: HedgingPolicy | None = None
    cache: CachingPolicy | None = None
    omitted_abilities: frozenset[str] = frozenset()


def compile_target(
    deployment: ModelDeployment,
    runtime: BackendRuntime,
    *,
    position: int,
    api_format: ApiFormat | None,
    day: date,
) -> RouteTarget:
    """Build the route target of a deployment, with its price on ``day``.

    Args:
        position: the index of the deployment in the order of the configuration.
        api_format: the API format of the client.
    """
    model = deployment.model
    return RouteTarget(
        deployment=deployment,
        runtime=runtime,
        latency=runtime.get_latency_estimator(model.name),
        model_breaker=runtime.get_model_breaker(model.upstream),
        position=position,
        needs_translation=deployment.api_format is not api_format,
        fixed_price=model.tariff.get_price_on(day) if model.gpu is None else None,
        headers=(
            (b"x-moyin-backend", runtime.name.encode()),
            (b"x-moyin-model", model.name.encode()),
        ),
    )


def find_exclusion(
    deployment: ModelDeployment, alias: Alias, residencies: frozenset[str] | None
) -> Exclusion | None:
    """Return the reason that excludes a deployment from all requests for an alias, or None.

    ``residencies`` are the places that tenant and client allow; None stands for all places.
    """
    if not (
        alias.allows_residency_of(deployment)
        and (residencies is None or deployment.residency in residencies)
    ):
        return Exclusion(
            deployment=deployment,
            reason=f"not allowed: data would go to {deployment.residency}",
            code="residency_not_allowed",
            parameters={"residency": deployment.residency},
            is_allowed=False,
        )
    return (
        None
        if deployment.configured
        else Exclusion(
            deployment=deployment, reason="its API key is not set", code="not_configured"
        )
    )


def compute_max_request_cost(route: CompiledRoute, needs: Needs, *, streams: bool) -> Decimal:
    """Return the maximum cost of a request in US dollars, at the most expensive target.

    The maximum assumes the longest possible prompt, the longest allowed answer and the highest
    rates, and two calls if the request may be hedged.

    Args:
        streams: True if the client requested a stream, because only streams are hedged.
    """
    capable_targets = [target for target in route.targets if target.model.supports(needs)]
    max_pico = max(
        (
            _compute_max_pico(target.get_price(), target.model.context, needs)
            for target in capable_targets
        ),
        default=0,
    )
    return pico_to_usd(2 * max_pico if streams and route.hedging is not None else max_pico)


def compute_max_call_cost(target: RouteTarget, needs: Needs) -> Decimal:
    """Return the maximum cost of one call at this target, in US dollars."""
    return pico_to_usd(_compute_max_pico(target.get_price(), target.model.context, needs))


def _compute_max_pico(price: Price, context: int, needs: Needs) -> int:
    prompt_tokens = (
        _MAX_TOKENS_PER_ESTIMATED_TOKEN * needs.prompt_tokens
        + needs.attachment_bytes
        + _ADDED_PROVIDER_TOKENS
    )
    if needs.longest_input is None:
        prompt_tokens = context if needs.has_external_content else min(prompt_tokens, context)
    output_tokens = (
        0 if needs.embeddings else needs.choices * min(needs.max_tokens or context, context)
    )
    return price.compute_max_pico_cost(prompt_tokens, output_tokens)
