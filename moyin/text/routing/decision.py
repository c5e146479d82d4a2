"""Ranks the targets that can answer a request by score, and explains why others cannot.

A score is a sum in US dollars: the expected cost of the call, its expected seconds times the price
of a second, and the probability of a useless answer times the cost of a useless answer. The target
with the lowest score is called first. docs/routing.md has an example. The functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from moyin.domain.backend import ApiFormat
from moyin.domain.money import PICO_PER_USD, Usage
from moyin.domain.needs import Needs
from moyin.errors import (
    ContextTooLong,
    ModelNotAllowed,
    MoyinError,
    QualityUnreachable,
    ServiceUnavailable,
    UnsupportedFeature,
)
from moyin.text.quality.estimator import Estimate
from moyin.text.routing.catalog import ModelDeployment
from moyin.text.routing.compiled_route import CompiledRoute, Exclusion, RouteTarget
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.usage_history import RequestShape, UsageHistory, compute_request_shape

# The request member that requires an ability, by OpenAI's name. The other protocols translate the
# name when they write the error.
_FIELD_BY_ABILITY = {
    "tools": "tools",
    "vision": "messages",
    "schema": "response_format",
    "thinking": "reasoning_effort",
    "embeddings": "model",
    "chat": "model",
}


# Neither this class nor Candidate is frozen: freezing doubles the cost of creating one per request.
@dataclass(kw_only=True, slots=True)
class Forecast:
    """Predicted cost, duration and quality of a call.

    Attributes:
        usage: expected tokens.
        cost_pico: cost in picodollars.
        waiting_seconds: time in this replica's queue for the back end.
        loading_seconds: time until the model is in memory.
        first_token_seconds: time from the start of the call to the first token.
        writing_seconds: time from the first token to the end.
        score: sum of cost, price of the time, and risk, in US dollars.
        risk: cost of a useless answer times its probability, in US dollars.
        estimate: probability of a good answer; None if quality is not weighed.
    """

    usage: Usage
    cost_pico: int
    waiting_seconds: float
    loading_seconds: float
    first_token_seconds: float
    writing_seconds: float
    score: float
    risk: float = 0.0
    estimate: Estimate | None = None

    @property
    def seconds(self) -> float:
        """The duration of the whole call in seconds."""
        return (
            self.waiting_seconds
            + self.loading_seconds
            + self.first_token_seconds
            + self.writing_seconds
        )


@dataclass(kw_only=True, slots=True)
class Candidate:
    """Target that can answer a request, with its forecast and the reason for its rank.

    Attributes:
        reason: ``only``, ``free``, ``cheapest``, ``soonest``, ``better`` (ranked first because of
            its lower risk) or ``trying`` (a trial of a little-known model).
        forecast: None if there was no other target to compare with.
    """

    target: RouteTarget
    reason: str
    forecast: Forecast | None = None

    @property
    def deployment(self) -> ModelDeployment:
        return self.target.deployment


def rank_candidates(
    route: CompiledRoute,
    needs: Needs,
    history: UsageHistory,
    *,
    always_weigh: bool = False,
    quality: RequestQuality | None = None,
) -> list[Candidate]:
    """Return the targets that can answer now, sorted by the order in which they are called.

    Of targets with equal scores, those without translation come first, then those with lower load,
    then those that are configured earlier. Targets whose back end reports that it lacks the model
    come last.

    Args:
        always_weigh: True makes a forecast even if there is only one candidate.
        quality: quality estimates of the request; None if quality is not weighed.
    """
    capable_targets = [
        target
        for target in route.targets
        if target.runtime.is_ready and target.deployment.model.supports(needs)
    ]
    if quality is not None and quality.floor:
        capable_targets = [
            target for target in capable_targets if quality.meets_floor(target.deployment)
        ]
    if len(capable_targets) < 2 and not always_weigh:
        return [
            Candidate(target=target, reason="free" if target.is_free else "only")
            for target in capable_targets
        ]
    shape = compute_request_shape(needs)
    forecasts = [
        (_build_forecast(target, needs, shape, history, route.usd_per_second), target)
        for target in capable_targets
    ]
    if quality is not None:
        _add_risk(forecasts, quality)
    forecasts.sort(key=_get_sort_key)
    preferred_forecasts = [pair for pair in forecasts if pair[1].model_breaker.ready] or forecasts
    lowest_cost_pico = min((forecast.cost_pico for forecast, _ in preferred_forecasts), default=0)
    score_without_risk = min(
        (forecast.score - forecast.risk for forecast, _ in preferred_forecasts), default=0.0
    )
    return [
        Candidate(
            target=target,
            reason=_describe_rank(forecast, lowest_cost_pico, score_without_risk),
            forecast=forecast,
        )
        for forecast, target in forecasts
    ]


def _add_risk(forecasts: Sequence[tuple[Forecast, RouteTarget]], quality: RequestQuality) -> None:
    usd_per_bad_answer = quality.usd_per_bad_answer
    for forecast, target in forecasts:
        estimate = forecast.estimate = quality.estimate(target.deployment)
        # With the lower bound, a model that is little known does not get difficult requests.
        forecast.risk = (1.0 - estimate.low) * usd_per_bad_answer
        forecast.score += forecast.risk


def _build_forecast(
    target: RouteTarget,
    needs: Needs,
    shape: RequestShape,
    history: UsageHistory,
    usd_per_second: float,
) -> Forecast:
    model, runtime, latency = target.deployment.model, target.runtime, target.latency
    usage = history.predict_usage(model.name, needs, shape)
    cost_pico = target.get_price().compute_pico_cost(usage)
    first_token_seconds = latency.estimate_first_token_seconds(usage.prompt_tokens)
    writing_seconds = usage.output_tokens * latency.estimate_seconds_per_token()
    loading_seconds = (
        runtime.loaded.estimate_wait(model.upstream) if runtime.loaded is not None else 0.0
    )
    waiting_seconds = 0.0
    if runtime.slots.is_full:
        waiting_seconds = runtime.slots.estimate_wait_seconds(
            runtime.estimate_service_time(first_token_seconds + writing_seconds)
        )
    return Forecast(
        usage=usage,
        cost_pico=cost_pico,
        waiting_seconds=waiting_seconds,
        loading_seconds=loading_seconds,
        first_token_seconds=first_token_seconds,
        writing_seconds=writing_seconds,
        score=cost_pico / PICO_PER_USD
        + (waiting_seconds + loading_seconds + first_token_seconds + writing_seconds)
        * usd_per_second,
    )


def _get_sort_key(pair: tuple[Forecast, RouteTarget]) -> tuple[bool, float, bool, int, int]:
    forecast, target = pair
    lacks_model = not target.model_breaker.ready
    return (
        lacks_model,
        forecast.score,
        target.needs_translation,
        target.runtime.load,
        target.position,
    )


def _describe_rank(forecast: Forecast, lowest_cost_pico: int, score_without_risk: float) -> str:
    if forecast.cost_pico <= lowest_cost_pico:
        return "free" if forecast.cost_pico == 0 else "cheapest"
    return (
        "better"
        if forecast.risk and forecast.score - forecast.risk > score_without_risk
        else "soonest"
    )


def list_exclusions(
    route: CompiledRoute, needs: Needs, quality: RequestQuality | None = None
) -> list[Exclusion]:
    """Return the deployments that cannot answer the request now, each with the reason."""
    exclusions = list(route.exclusions)
    for target in route.targets:
        deployment, health = target.deployment, target.runtime.health
        if unmet_needs := deployment.model.list_unmet_needs(needs):
            exclusions.append(
                Exclusion(
                    deployment=deployment,
                    reason=", ".join(unmet_needs),
                    code="unmet_needs",
                    parameters={
                        "missing": deployment.model.list_missing_features(needs),
                        "context": deployment.model.context,
                    },
                    missing=unmet_needs,
                )
            )
        elif not health.is_up:
            code, reason = (
                ("health_check_fails", "its health check fails")
                if target.runtime.is_up is False
                else ("breaker_open", "its breaker is open")
            )
            exclusions.append(
                Exclusion(
                    deployment=deployment, reason=reason, code=code, retry_after=health.retry_after
                )
            )
        elif quality is not None and not quality.meets_floor(deployment):
            p_good = quality.estimate(deployment).low
            exclusions.append(
                Exclusion(
                    deployment=deployment,
                    reason=f"p_good {p_good:.2f} is below {quality.floor:g}",
                    code="quality_below_floor",
                    parameters={"p_good": p_good, "floor": quality.floor},
                )
            )
    return exclusions


def build_no_candidate_error(
    route: CompiledRoute, needs: Needs, quality: RequestQuality | None = None
) -> MoyinError:
    """Return the error for a request that no target can answer.

    The error states whether the request needs too much, is not allowed, or whether every suitable
    back end is unavailable.
    """
    if quality is not None and (error := _build_quality_error(route, needs, quality)) is not None:
        return error
    exclusions = list_exclusions(route, needs)
    allowed_exclusions = [exclusion for exclusion in exclusions if exclusion.is_allowed]
    if exclusions and not allowed_exclusions:
        return ModelNotAllowed(
            "data-residency rules exclude every back end for this model: choose another model",
            field="model",
        )
    configured_exclusions = [
        exclusion for exclusion in allowed_exclusions if exclusion.deployment.configured
    ]
    if not configured_exclusions and not route.targets:
        return _build_not_configured_error(
            [exclusion.deployment for exclusion in allowed_exclusions]
        )
    retry_seconds = [
        exclusion.retry_after for exclusion in configured_exclusions if not exclusion.missing
    ]
    # If there are no exclusions, a breaker rejected the call after the ranking.
    if retry_seconds or not exclusions:
        return _build_retryable_error(retry_seconds)
    return _build_unsupported_error(needs, configured_exclusions)


def _build_quality_error(
    route: CompiledRoute, needs: Needs, quality: RequestQuality
) -> QualityUnreachable | None:
    """Return the error if models can answer a request, but none with the quality that it demands.

    Return None if a model of sufficient quality is only unavailable, so that a retry may succeed.
    """
    capable_targets = [
        target for target in route.targets if target.deployment.model.supports(needs)
    ]
    if (
        not quality.floor
        or not capable_targets
        or any(quality.meets_floor(target.deployment) for target in capable_targets)
    ):
        return None
    p_good_by_model = {
        target.model.name: quality.estimate(target.deployment).low for target in capable_targets
    }
    best_model = max(p_good_by_model, key=lambda name: p_good_by_model[name])
    # Rounded down, so that a request that demands exactly this number succeeds.
    best_p_good = math.floor(p_good_by_model[best_model] * 100) / 100
    return QualityUnreachable(
        f"no model under this name reaches p_good {quality.floor:g} for this request; the best is "
        f"{best_model!r} with {best_p_good:.2f}: lower x-moyin-quality",
        field="x-moyin-quality",
        details={"best": best_model, "p_good": best_p_good, "kind": quality.question.kind},
    )


def _build_not_configured_error(deployments: Sequence[ModelDeployment]) -> ServiceUnavailable:
    missing_keys = {
        f"{deployment.key_env} for {deployment.family or deployment.backend!r}"
        for deployment in deployments
    }
    return ServiceUnavailable(
        f"no back end for this model has its API key: set {', '.join(sorted(missing_keys))}"
        if missing_keys
        else "no back end for this model is configured; choose another model"
    )


def build_unavailable_error(
    route: CompiledRoute, needs: Needs, unsupported_formats: AbstractSet[ApiFormat | None]
) -> ServiceUnavailable | None:
    """Return a retryable error if a target that was not called may be able to answer later.

    Used after all candidates have rejected the request as unsupported.

    Args:
        unsupported_formats: API formats of the back ends that rejected the request.

    Returns:
        None if every target that supports the request was called.
    """
    retry_seconds = [
        target.runtime.health.retry_after
        for target in route.targets
        if target.deployment.api_format not in unsupported_formats
        and target.model.supports(needs)
        and not target.runtime.is_ready
    ]
    return _build_retryable_error(retry_seconds) if retry_seconds else None


def _build_retryable_error(retry_seconds: Sequence[float]) -> ServiceUnavailable:
    return ServiceUnavailable(
        "every back end that can answer this request is unavailable; retry later",
        retry_after=max(1.0, min(retry_seconds, default=1.0)),
    )


def _build_unsupported_error(needs: Needs, exclusions: Sequence[Exclusion]) -> MoyinError:
    """Return the error that names the first ability that every deployment lacks."""
    for ability, field in _FIELD_BY_ABILITY.items():
        if all(f"no {ability}" in exclusion.missing for exclusion in exclusions):
            return UnsupportedFeature(
                f"no model under this name supports {ability}: choose another model", field=field
            )
    if all(
        any(need.startswith("context") for need in exclusion.missing) for exclusion in exclusions
    ):
        return _build_context_error(needs, exclusions)
    unmet_needs = sorted({need for exclusion in exclusions for need in exclusion.missing})
    return UnsupportedFeature(
        f"no model under this name meets every need of the request ({', '.join(unmet_needs)}): "
        "choose another model",
        field="model",
    )


def _build_context_error(needs: Needs, exclusions: Sequence[Exclusion]) -> ContextTooLong:
    largest_context = max(exclusion.deployment.model.context for exclusion in exclusions)
    max_tokens = needs.max_tokens or 0
    return ContextTooLong(
        f"the prompt (about {needs.prompt_tokens} tokens) and the answer (up to {max_tokens}) exceed "
        f"the largest context of this model name, {largest_context} tokens: shorten them or choose another model",
        field=_name_longest_field(needs, largest_context),
        details={
            "prompt_tokens": needs.prompt_tokens,
            "max_tokens": max_tokens,
            "context": largest_context,
        },
    )


def _name_longest_field(needs: Needs, largest_context: int) -> str:
    if needs.embeddings:
        return "input"
    return "messages" if needs.prompt_tokens > largest_context else "max_tokens"
