"""Ranks the targets that are able, allowed and available; the lowest score comes first. Pure.

A score is in US dollars. It adds the expected money of a call, its expected seconds at the price of
a second, and the risk of a useless answer at the price of one. docs/routing.md has an example.
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
from moyin.text.routing.compiled_route import CompiledRoute, EligibleDeployment, Exclusion
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.usage_history import Shape, UsageHistory, shape_of

__all__ = [
    "Candidate",
    "Forecast",
    "decide",
    "list_exclusions",
    "no_candidate_error",
    "unavailable_error",
]

# The request member that needs an ability, as OpenAI names it. Other protocols' error renderers
# translate the name.
_FIELDS = {
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
    """Predicts what a call costs, how long it takes and how good its answer is.

    Attributes:
        cost_pico: cost in picodollars.
        waiting_seconds: time in the queue of the back end.
        loading_seconds: time until the model is in memory.
        first_token_seconds: time to the first token, once the call has started.
        writing_seconds: time from the first token to the end.
        score: money, time and risk together, in US dollars.
        risk: cost of a useless answer times its probability, in US dollars; part of ``score``.
        estimate: how well the model would answer; None: quality is not weighed.
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
        """The time that the whole call takes."""
        return (
            self.waiting_seconds
            + self.loading_seconds
            + self.first_token_seconds
            + self.writing_seconds
        )


@dataclass(kw_only=True, slots=True)
class Candidate:
    """Holds a target that may answer, and why it is ranked where it is.

    Attributes:
        reason: one word: ``only``, ``free``, ``cheapest``, ``soonest``, ``better`` (wins only
            because its answer is less of a risk) or ``trying`` (little is known of the model).
        forecast: None for the only candidate, because nothing had to be compared.
    """

    target: EligibleDeployment
    reason: str
    forecast: Forecast | None = None

    @property
    def deployment(self) -> ModelDeployment:
        return self.target.deployment


def decide(
    route: CompiledRoute,
    needs: Needs,
    history: UsageHistory,
    *,
    always_weigh: bool = False,
    quality: RequestQuality | None = None,
) -> list[Candidate]:
    """Return the able and available targets in the order in which they are to be tried.

    Equal scores prefer requests that need no translation, then the lower load, then the order of
    the configuration. Targets whose back end keeps reporting the model as missing come last.

    Args:
        always_weigh: make a forecast even for a single candidate.
    """
    able = [
        target
        for target in route.targets
        if target.runtime.ready and target.deployment.model.supports(needs)
    ]
    if quality is not None and quality.floor:
        able = [target for target in able if quality.suffices(target.deployment)]
    if len(able) < 2 and not always_weigh:
        return [
            Candidate(target=target, reason="free" if target.is_free else "only") for target in able
        ]
    shape = shape_of(needs)
    forecasts = [
        (_forecast(target, needs, shape, history, route.usd_per_second), target) for target in able
    ]
    if quality is not None:
        _add_risk(forecasts, quality)
    forecasts.sort(key=_sort_key)
    present = [pair for pair in forecasts if pair[1].model_breaker.ready] or forecasts
    cheapest = min((forecast.cost_pico for forecast, _ in present), default=0)
    score_without_risk = min(
        (forecast.score - forecast.risk for forecast, _ in present), default=0.0
    )
    return [
        Candidate(
            target=target, reason=_reason(forecast, cheapest, score_without_risk), forecast=forecast
        )
        for forecast, target in forecasts
    ]


def _add_risk(
    forecasts: Sequence[tuple[Forecast, EligibleDeployment]], quality: RequestQuality
) -> None:
    cost = quality.usd_per_bad_answer
    for forecast, target in forecasts:
        estimate = forecast.estimate = quality.estimate(target.deployment)
        # The lower bound keeps a guess without data from sending hard work to a weak model.
        forecast.risk = (1.0 - estimate.low) * cost
        forecast.score += forecast.risk


def _forecast(
    target: EligibleDeployment,
    needs: Needs,
    shape: Shape,
    history: UsageHistory,
    usd_per_second: float,
) -> Forecast:
    model, runtime, latency = target.deployment.model, target.runtime, target.latency
    usage = history.expect(model.name, needs, shape)
    cost_pico = target.price().compute_pico_cost(usage)
    first_token_seconds = latency.expected_first_token(usage.prompt_tokens)
    writing_seconds = usage.output_tokens * latency.seconds_per_token()
    loading_seconds = (
        runtime.loaded.expected_wait(model.upstream) if runtime.loaded is not None else 0.0
    )
    waiting_seconds = 0.0
    if runtime.slots.is_full:
        waiting_seconds = runtime.slots.expected_wait(
            runtime.service_time(first_token_seconds + writing_seconds)
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


def _sort_key(pair: tuple[Forecast, EligibleDeployment]) -> tuple[bool, float, bool, int, int]:
    forecast, target = pair
    is_missing = not target.model_breaker.ready
    return (
        is_missing,
        forecast.score,
        target.needs_translation,
        target.runtime.load,
        target.position,
    )


def _reason(forecast: Forecast, cheapest: int, score_without_risk: float) -> str:
    if forecast.cost_pico <= cheapest:
        return "free" if forecast.cost_pico == 0 else "cheapest"
    return (
        "better"
        if forecast.risk and forecast.score - forecast.risk > score_without_risk
        else "soonest"
    )


def list_exclusions(
    route: CompiledRoute, needs: Needs, quality: RequestQuality | None = None
) -> list[Exclusion]:
    """Return the deployments that `decide` leaves out, each with its reason."""
    exclusions = list(route.exclusions)
    for target in route.targets:
        deployment, health = target.deployment, target.runtime.health
        if missing := deployment.model.list_unmet_needs(needs):
            exclusions.append(
                Exclusion(deployment=deployment, reason=", ".join(missing), missing=missing)
            )
        elif not health.is_up:
            reason = (
                "its health check fails" if target.runtime.is_up is False else "its breaker is open"
            )
            exclusions.append(
                Exclusion(deployment=deployment, reason=reason, retry_after=health.retry_after)
            )
        elif quality is not None and not quality.suffices(deployment):
            reason = f"p_good {quality.estimate(deployment).low:.2f} is below {quality.floor:g}"
            exclusions.append(Exclusion(deployment=deployment, reason=reason))
    return exclusions


def no_candidate_error(
    route: CompiledRoute, needs: Needs, quality: RequestQuality | None = None
) -> MoyinError:
    """Return the error for a request without candidates.

    It says that the request needs too much, is not allowed, or that every back end is unavailable.
    """
    if quality is not None and (error := _quality_unreachable(route, needs, quality)) is not None:
        return error
    exclusions = list_exclusions(route, needs)
    allowed = [exclusion for exclusion in exclusions if exclusion.is_allowed]
    if exclusions and not allowed:
        return ModelNotAllowed(
            "data-residency rules exclude every back end for this model", field="model"
        )
    configured = [exclusion for exclusion in allowed if exclusion.deployment.configured]
    if not configured and not route.targets:
        return _not_configured_error([exclusion.deployment for exclusion in allowed])
    waits = [exclusion.retry_after for exclusion in configured if not exclusion.missing]
    # Without exclusions, another request took the breaker's only probe after the decision.
    if waits or not exclusions:
        return _unavailable_error(waits)
    return _unsupported_error(needs, configured)


def _quality_unreachable(
    route: CompiledRoute, needs: Needs, quality: RequestQuality
) -> QualityUnreachable | None:
    """Return the error where models are able to answer, but none well enough.

    Return None if a model that is good enough is only unavailable: it is worth waiting for.
    """
    able = [target for target in route.targets if target.deployment.model.supports(needs)]
    if not quality.floor or not able or any(quality.suffices(target.deployment) for target in able):
        return None
    bounds = {target.model.name: quality.estimate(target.deployment).low for target in able}
    best = max(bounds, key=lambda name: bounds[name])
    # Rounded down, so that the client can ask for exactly this number.
    reach = math.floor(bounds[best] * 100) / 100
    return QualityUnreachable(
        f"no model under this name reaches p_good {quality.floor:g} for this request; the best is "
        f"{best!r} with {reach:.2f}",
        field="x-moyin-quality",
        details={"best": best, "p_good": reach, "kind": quality.question.kind},
    )


def _not_configured_error(deployments: Sequence[ModelDeployment]) -> ServiceUnavailable:
    missing_keys = {
        f"{deployment.family or deployment.backend} lacks its key ({deployment.key_env})"
        for deployment in deployments
    }
    message = "no back end for this model is configured"
    return ServiceUnavailable(
        f"{message}: {', '.join(sorted(missing_keys))}" if missing_keys else message
    )


def unavailable_error(
    route: CompiledRoute, needs: Needs, unsupported_formats: AbstractSet[ApiFormat | None]
) -> ServiceUnavailable | None:
    """Return a retryable error where a target that may be able to answer is unavailable.

    Called after every candidate turned out to be unable. None: there is no such target.

    Args:
        unsupported_formats: API formats whose back ends cannot carry the request.
    """
    waits = [
        target.runtime.health.retry_after
        for target in route.targets
        if target.deployment.api_format not in unsupported_formats
        and target.model.supports(needs)
        and not target.runtime.ready
    ]
    return _unavailable_error(waits) if waits else None


def _unavailable_error(waits: Sequence[float]) -> ServiceUnavailable:
    return ServiceUnavailable(
        "every back end that could answer is unavailable",
        retry_after=max(1.0, min(waits, default=1.0)),
    )


def _unsupported_error(needs: Needs, exclusions: Sequence[Exclusion]) -> MoyinError:
    """Return the error for the first ability that every deployment lacks."""
    for ability, field in _FIELDS.items():
        if all(f"no {ability}" in exclusion.missing for exclusion in exclusions):
            return UnsupportedFeature(f"no model under this name supports {ability}", field=field)
    if all(
        any(lack.startswith("context") for lack in exclusion.missing) for exclusion in exclusions
    ):
        return _context_too_long(needs, exclusions)
    missing = sorted({lack for exclusion in exclusions for lack in exclusion.missing})
    return UnsupportedFeature(
        f"no model under this name meets every need of the request: {', '.join(missing)}",
        field="model",
    )


def _context_too_long(needs: Needs, exclusions: Sequence[Exclusion]) -> ContextTooLong:
    largest = max(exclusion.deployment.model.context for exclusion in exclusions)
    max_tokens = needs.max_tokens or 0
    return ContextTooLong(
        f"about {needs.prompt_tokens} tokens of prompt and {max_tokens} of answer do not fit into "
        f"{largest}, the largest context under this name",
        field=_longest_field(needs, largest),
        details={
            "prompt_tokens": needs.prompt_tokens,
            "max_tokens": max_tokens,
            "context": largest,
        },
    )


def _longest_field(needs: Needs, largest: int) -> str:
    if needs.embeddings:
        return "input"
    return "messages" if needs.prompt_tokens > largest else "max_tokens"
