"""The policy: of the offers that are able, allowed and up, the lowest score first. Pure.

A score is in US dollars: the money that a call will probably cost, the seconds until its answer is
complete, at what a second is worth, and the risk that the answer is of no use, at what that costs.
docs/routing.md explains it with numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from moyin.domain.backend import ApiFormat
from moyin.domain.money import PICO, Usage
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

# The request's member that asks for an ability, in OpenAI's words, which other protocols' error
# renderers turn into their own.
_FIELDS = {
    "tools": "tools",
    "vision": "messages",
    "schema": "response_format",
    "thinking": "reasoning_effort",
    "embeddings": "model",
    "chat": "model",
}


# Not frozen, nor is Candidate: they are made per request, and freezing doubles what that costs.
@dataclass(kw_only=True, slots=True)
class Forecast:
    """What a call will probably take.

    Attributes:
        cost_pico: its cost in picodollars.
        waiting_seconds: seconds in the queue in front of the back end.
        loading_seconds: seconds until the model is in memory.
        expected_first_token: seconds to the first token, once it has begun.
        writing_seconds: seconds from there to the end.
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
        return (
            self.waiting_seconds
            + self.loading_seconds
            + self.first_token_seconds
            + self.writing_seconds
        )


@dataclass(kw_only=True, slots=True)
class Candidate:
    """Who may answer.

    Attributes:
        reason: in a word: ``only``, ``free``, ``cheapest``, ``soonest``, ``better`` where it wins
            only since its answer is less of a risk, or ``trying`` where little is known of it.
        forecast: None when it is the only one, so that nothing had to be weighed.
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
    """The able ones that are up, in the order in which they are to be asked.

    Among equal scores: bytes that pass untouched before translation, then the least load, then
    the order of the configuration. Last those whose back end keeps saying that it has no such model.

    Args:
        always_weigh: weigh even the only candidate.
        quality: how well each would answer; None: quality is not weighed.
    """
    able = [
        target
        for target in route.targets
        if target.runtime.ready and target.deployment.model.supports(needs)
    ]
    if quality is not None and quality.floor:
        able = [target for target in able if quality.suffices(target.deployment)]
    if len(able) < 2 and not always_weigh:
        return [Candidate(target=one, reason="free" if one.is_free else "only") for one in able]
    shape = shape_of(needs)
    forecasts = [
        (_forecast(target, needs, shape, history, route.usd_per_second), target) for target in able
    ]
    if quality is not None:
        _add_risks(forecasts, quality)
    forecasts.sort(key=_rank)
    present = [one for one in forecasts if one[1].model_breaker.ready] or forecasts
    cheapest = min((forecast.cost_pico for forecast, _ in present), default=0)
    riskless = min((forecast.score - forecast.risk for forecast, _ in present), default=0.0)
    return [
        Candidate(target=target, reason=_reason(forecast, cheapest, riskless), forecast=forecast)
        for forecast, target in forecasts
    ]


def _add_risks(
    forecasts: Sequence[tuple[Forecast, EligibleDeployment]], quality: RequestQuality
) -> None:
    cost = quality.usd_per_bad_answer
    for forecast, target in forecasts:
        estimate = forecast.estimate = quality.estimate(target.deployment)
        # The careful bound, so that no guess without data sends hard work to a weak model.
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
    cost_pico = target.price().pico_cost(usage)
    first_token_seconds = latency.expected_first_token(usage.prompt_tokens)
    writing_seconds = usage.output_tokens * latency.seconds_per_token()
    loading_seconds = (
        runtime.loaded.expected_wait(model.upstream) if runtime.loaded is not None else 0.0
    )
    waiting_seconds = 0.0
    if runtime.slots.full:
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
        score=cost_pico / PICO
        + (waiting_seconds + loading_seconds + first_token_seconds + writing_seconds)
        * usd_per_second,
    )


def _rank(forecasts: tuple[Forecast, EligibleDeployment]) -> tuple[bool, float, bool, int, int]:
    forecast, one = forecasts
    absent = not one.model_breaker.ready
    return (absent, forecast.score, one.needs_translation, one.runtime.load, one.position)


def _reason(forecast: Forecast, cheapest: int, riskless: float) -> str:
    if forecast.cost_pico <= cheapest:
        return "free" if forecast.cost_pico == 0 else "cheapest"
    return "better" if forecast.risk and forecast.score - forecast.risk > riskless else "soonest"


def list_exclusions(
    route: CompiledRoute, needs: Needs, quality: RequestQuality | None = None
) -> list[Exclusion]:
    """The offers that `decide` leaves out, and why."""
    found = list(route.exclusions)
    for target in route.targets:
        deployment, health = target.deployment, target.runtime.health
        if missing := deployment.model.unmet_needs(needs):
            found.append(
                Exclusion(deployment=deployment, reason=", ".join(missing), missing=missing)
            )
        elif not health.is_up:
            reason = (
                "its health check fails" if target.runtime.is_up is False else "its breaker is open"
            )
            found.append(
                Exclusion(deployment=deployment, reason=reason, retry_after=health.retry_after)
            )
        elif quality is not None and not quality.suffices(deployment):
            reason = f"p_good {quality.estimate(deployment).low:.2f} is below {quality.floor:g}"
            found.append(Exclusion(deployment=deployment, reason=reason))
    return found


def no_candidate_error(
    route: CompiledRoute, needs: Needs, quality: RequestQuality | None = None
) -> MoyinError:
    """Why nobody answers: what the client asked too much of, what is not allowed, or that nobody
    is up."""
    if quality is not None and (error := _floor_missed(route, needs, quality)) is not None:
        return error
    out = list_exclusions(route, needs)
    allowed = [exclusion for exclusion in out if exclusion.is_allowed]
    if out and not allowed:
        return ModelNotAllowed(
            "no back end under this name is where this data may go", field="model"
        )
    asked = [exclusion for exclusion in allowed if exclusion.deployment.configured]
    if not asked and not route.targets:
        return _not_configured([exclusion.deployment for exclusion in allowed])
    waits = [exclusion.retry_after for exclusion in asked if not exclusion.missing]
    # With nobody out, the last probe's place was taken between the choice and now.
    if waits or not out:
        return _unavailable(waits)
    return _inability(needs, asked)


def _floor_missed(
    route: CompiledRoute, needs: Needs, quality: RequestQuality
) -> QualityUnreachable | None:
    """Return the error where models could answer, and none of them well enough. One that would, and
    is not up, is worth waiting for."""
    able = [one for one in route.targets if one.deployment.model.supports(needs)]
    if not quality.floor or not able or any(quality.suffices(one.deployment) for one in able):
        return None
    bounds = {one.model.name: quality.estimate(one.deployment).low for one in able}
    best = max(bounds, key=lambda name: bounds[name])
    # Rounded down, so that the number that is named can be asked for.
    reach = math.floor(bounds[best] * 100) / 100
    return QualityUnreachable(
        f"no model under this name reaches {quality.floor:g} for this request; the best is "
        f"{best!r} with {reach:.2f}",
        field="x-moyin-quality",
        details={"best": best, "p_good": reach, "kind": quality.question.kind},
    )


def _not_configured(deployments: Sequence[ModelDeployment]) -> ServiceUnavailable:
    lacking = {f"{one.family or one.backend} lacks its key ({one.key_env})" for one in deployments}
    told = "no back end under this name is configured"
    return ServiceUnavailable(f"{told}: {', '.join(sorted(lacking))}" if lacking else told)


def unavailable_error(
    route: CompiledRoute, needs: Needs, unable: AbstractSet[ApiFormat | None]
) -> ServiceUnavailable | None:
    """What to tell where every candidate found that it can't take the request, or has not what it
    names: to come back, where one that may be able is not up; None where there is none.

    Args:
        unable: formats whose back ends can't take it.
    """
    waits = [
        target.runtime.health.retry_after
        for target in route.targets
        if target.deployment.api_format not in unable
        and target.model.supports(needs)
        and not target.runtime.ready
    ]
    return _unavailable(waits) if waits else None


def _unavailable(waits: Sequence[float]) -> ServiceUnavailable:
    return ServiceUnavailable(
        "no back end that could answer is available",
        retry_after=max(1.0, min(waits, default=1.0)),
    )


def _inability(needs: Needs, exclusions: Sequence[Exclusion]) -> MoyinError:
    """The field that no offer can take; of several, the one that most offers lack."""
    for ability, field in _FIELDS.items():
        if all(f"no {ability}" in exclusion.missing for exclusion in exclusions):
            return UnsupportedFeature(f"no model under this name can do {ability}", field=field)
    if all(
        any(lack.startswith("context") for lack in exclusion.missing) for exclusion in exclusions
    ):
        return _too_long(needs, exclusions)
    missing = sorted({lack for exclusion in exclusions for lack in exclusion.missing})
    return UnsupportedFeature(f"every model lacks something: {', '.join(missing)}", field="model")


def _too_long(needs: Needs, exclusions: Sequence[Exclusion]) -> ContextTooLong:
    largest = max(exclusion.deployment.model.context for exclusion in exclusions)
    asked = needs.max_tokens or 0
    return ContextTooLong(
        f"about {needs.prompt_tokens} tokens of prompt and {asked} of answer do not fit into "
        f"{largest}, the largest context under this name",
        field=_too_long_field(needs, largest),
        details={
            "prompt_tokens": needs.prompt_tokens,
            "max_tokens": asked,
            "context": largest,
        },
    )


def _too_long_field(needs: Needs, largest: int) -> str:
    if needs.embeddings:
        return "input"
    return "messages" if needs.prompt_tokens > largest else "max_tokens"
