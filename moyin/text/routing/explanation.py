"""Explains a routing decision: the forecast of each deployment and why it was not chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moyin.domain.money import format_usd
from moyin.domain.needs import Needs
from moyin.errors import MoyinError, RequestError
from moyin.text.quality.wording import format_probability
from moyin.text.routing.compiled_route import CompiledRoute, Exclusion, RouteTarget
from moyin.text.routing.decision import (
    Candidate,
    build_no_candidate_error,
    list_exclusions,
    rank_candidates,
)
from moyin.text.routing.exploration import TRIAL_REASON, choose_trial, compute_trial_share
from moyin.text.routing.loaded_models import ModelState
from moyin.text.routing.request_gaps import build_gap_error, describe_gaps
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.usage_history import UsageHistory


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Outcome of a routing decision that was computed without calling a back end.

    Attributes:
        requested_model: the model name in the request.
        usd_per_second: price of a second of waiting.
        candidates: the candidates with forecasts, in the order in which they would be called.
        error: the error that the client would get; None if there is a candidate.
        quality: quality estimates of the request; None if quality is not weighed.
        explore: share of such requests on which ``trial`` is called first.
        trial: the candidate of a trial; None if it equals the first candidate.
        omitted: abilities, such as ``tools``, whose fields would be removed from the request.
    """

    requested_model: str
    needs: Needs
    usd_per_second: float
    candidates: tuple[Candidate, ...]
    exclusions: tuple[Exclusion, ...]
    error: MoyinError | None
    quality: RequestQuality | None = None
    explore: float = 0.0
    trial: Candidate | None = None
    omitted: tuple[str, ...] = ()


def explain_decision(
    requested_model: str,
    route: CompiledRoute,
    needs: Needs,
    history: UsageHistory,
    quality: RequestQuality | None = None,
    *,
    find_gap: Callable[[RouteTarget], RequestError | None],
) -> Explanation:
    """Compute the routing decision for a request and explain it.

    Args:
        find_gap: returns the error for a target whose API cannot express the request; else None.
    """
    all_candidates = rank_candidates(route, needs, history, always_weigh=True, quality=quality)
    target_gaps = ((candidate.target, find_gap(candidate.target)) for candidate in all_candidates)
    gaps = {target: gap for target, gap in target_gaps if gap is not None}
    callable_route = replace(route, targets=tuple(t for t in route.targets if t not in gaps))
    # Reasons compare only targets that can be called.
    candidates = (
        rank_candidates(callable_route, needs, history, always_weigh=True, quality=quality)
        if gaps
        else all_candidates
    )
    error: MoyinError | None = None
    if not all_candidates:
        error = build_no_candidate_error(route, needs, quality)
    elif not candidates:
        error = build_gap_error(route, needs, gaps)
    trial_share = compute_trial_share(route, quality)
    return Explanation(
        requested_model=requested_model,
        needs=needs,
        usd_per_second=route.usd_per_second,
        candidates=tuple(candidates),
        exclusions=(*list_exclusions(callable_route, needs, quality), *describe_gaps(gaps)),
        error=error,
        quality=quality,
        explore=trial_share,
        trial=choose_trial(candidates, quality) if trial_share and quality is not None else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """A reason, as text for people and as a code with parameters for programs."""

    text: str
    code: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)


def explain_loss(loser: Candidate, winner: Candidate, usd_per_second: float) -> str:
    """Return a short text that explains why ``loser`` ranks behind ``winner``."""
    return " and ".join(reason.text for reason in list_losses(loser, winner, usd_per_second))


def list_losses(loser: Candidate, winner: Candidate, usd_per_second: float) -> list[Reason]:
    """Return the reasons why ``loser`` ranks behind ``winner``, at least one."""
    if winner.target.model_breaker.ready and not loser.target.model_breaker.ready:
        text = "its back end reports that it lacks the model"
        return [Reason(text=text, code="model_missing")]
    forecast, best_forecast = loser.forecast, winner.forecast
    assert forecast is not None and best_forecast is not None, (
        "list_losses: both candidates must have forecasts"
    )
    reasons = []
    if forecast.cost_pico > best_forecast.cost_pico:
        usd = format_usd(forecast.cost_pico - best_forecast.cost_pico)
        reasons.append(
            Reason(text=f"costs {usd} USD more", code="costs_more", parameters={"usd": usd})
        )
    if usd_per_second > 0 and forecast.seconds > best_forecast.seconds:
        seconds = forecast.seconds - best_forecast.seconds
        reasons.append(
            Reason(
                text=f"takes {seconds:.2f} s longer",
                code="takes_longer",
                parameters={"seconds": seconds},
            )
        )
    if (
        forecast.estimate is not None
        and best_forecast.estimate is not None
        and forecast.risk > best_forecast.risk
    ):
        lower_bound, best_lower_bound = forecast.estimate.low, best_forecast.estimate.low
        reasons.append(
            Reason(
                text=f"answers worse: p_good {format_probability(lower_bound)}"
                f" against {format_probability(best_lower_bound)}",
                code="answers_worse",
                parameters={"p_good": lower_bound, "best_p_good": best_lower_bound},
            )
        )
    return reasons or [_find_tie_break(loser, winner)]


def _find_tie_break(loser: Candidate, winner: Candidate) -> Reason:
    if loser.target.needs_translation and not winner.target.needs_translation:
        return Reason(text="needs a translation of the request", code="needs_translation")
    if loser.target.runtime.load > winner.target.runtime.load:
        return Reason(text="has more load", code="more_load")
    return Reason(text="comes later in the configuration", code="later_in_configuration")


def describe_choice(candidates: Sequence[Candidate], quality: RequestQuality | None) -> str:
    """Return the value of the header ``x-moyin-route``: why the first candidate was chosen.

    The value is one word. If quality was weighed, the compared estimates follow, for example
    ``better; claude-haiku-5-5: code, p_good 0.91 against 0.22 of smollm2-135m``.
    """
    best_candidate = candidates[0]
    if (
        quality is None
        or best_candidate.forecast is None
        or best_candidate.forecast.estimate is None
    ):
        return best_candidate.reason
    best_model, lower_bound_of_best = (
        best_candidate.deployment.model.name,
        best_candidate.forecast.estimate.low,
    )
    description = f"{best_candidate.reason}; {best_model}: {quality.question.kind}, p_good {format_probability(lower_bound_of_best)}"
    if best_candidate.reason == TRIAL_REASON:
        description += f" to {format_probability(best_candidate.forecast.estimate.high)}"
    other_candidates = [
        other
        for other in candidates[1:]
        if other.deployment.model.name != best_model and other.forecast
    ]
    if not other_candidates:
        return description
    # For `better`, the rival is the candidate that would win by cost and time alone.
    compared_candidate = (
        min(other_candidates, key=_get_score_without_risk)
        if best_candidate.reason == "better"
        else other_candidates[0]
    )
    assert (
        compared_candidate.forecast is not None and compared_candidate.forecast.estimate is not None
    )
    lower_bound = format_probability(compared_candidate.forecast.estimate.low)
    return f"{description} against {lower_bound} of {compared_candidate.deployment.model.name}"


def _get_score_without_risk(candidate: Candidate) -> float:
    assert candidate.forecast is not None, (
        "_get_score_without_risk: the candidate must have a forecast"
    )
    return candidate.forecast.score - candidate.forecast.risk


def describe_model_state(candidate: Candidate) -> str:
    """Return the state of the candidate's model in its server's memory.

    The result is ``busy`` if the model need not be loaded first, but its back end has no free slot.
    """
    runtime, model = candidate.target.runtime, candidate.deployment.model
    state = (
        ModelState.UNKNOWN if runtime.loaded is None else runtime.loaded.get_state(model.upstream)
    )
    if state in (ModelState.RESIDENT, ModelState.UNKNOWN) and runtime.slots.is_full:
        return "busy"
    return state.value
