"""Explains a decision: what each deployment would cost and take, and why it lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moyin.domain.money import format_usd
from moyin.domain.needs import Needs
from moyin.errors import MoyinError
from moyin.text.quality.wording import chance_text
from moyin.text.routing.compiled_route import CompiledRoute, Exclusion
from moyin.text.routing.decision import Candidate, decide, list_exclusions, no_candidate_error
from moyin.text.routing.exploration import TRYING, exploration_share, trial_candidate
from moyin.text.routing.loaded_models import ModelState
from moyin.text.routing.request_quality import RequestQuality
from moyin.text.routing.usage_history import UsageHistory

__all__ = ["Explanation", "describe_choice", "explain", "explain_loss", "model_state"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Describes what `decide` would do now.

    Attributes:
        requested_model: the name in the request.
        candidates: all that could answer, with forecasts, in the order in which they are tried.
        error: why there is no candidate; None if there is one.
        quality: quality estimates of the request; None: quality is not weighed.
        explore: share of such requests on which another candidate is tried.
        trial: that candidate; None: it is the chosen one.
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


def explain(
    requested_model: str,
    route: CompiledRoute,
    needs: Needs,
    history: UsageHistory,
    quality: RequestQuality | None = None,
) -> Explanation:
    """Return the explanation of a decision on this request."""
    candidates = decide(route, needs, history, always_weigh=True, quality=quality)
    share = exploration_share(route, quality)
    return Explanation(
        requested_model=requested_model,
        needs=needs,
        usd_per_second=route.usd_per_second,
        candidates=tuple(candidates),
        exclusions=tuple(list_exclusions(route, needs, quality)),
        error=None if candidates else no_candidate_error(route, needs, quality),
        quality=quality,
        explore=share,
        trial=trial_candidate(candidates, quality) if share and quality is not None else None,
    )


def explain_loss(loser: Candidate, winner: Candidate, usd_per_second: float) -> str:
    """Return in a few words why ``loser`` ranks behind ``winner``."""
    if winner.target.model_breaker.ready and not loser.target.model_breaker.ready:
        return "its back end reports that it lacks the model"
    forecast, best = loser.forecast, winner.forecast
    assert forecast is not None and best is not None, "an explanation weighs every candidate"
    reasons = []
    if forecast.cost_pico > best.cost_pico:
        reasons.append(f"costs {format_usd(forecast.cost_pico - best.cost_pico)} USD more")
    if usd_per_second > 0 and forecast.seconds > best.seconds:
        reasons.append(f"takes {forecast.seconds - best.seconds:.2f} s longer")
    if forecast.estimate is not None and best.estimate is not None and forecast.risk > best.risk:
        reasons.append(
            f"answers worse: p_good {chance_text(forecast.estimate.low)}"
            f" against {chance_text(best.estimate.low)}"
        )
    if reasons:
        return " and ".join(reasons)
    if loser.target.needs_translation and not winner.target.needs_translation:
        return "needs a translation of the request"
    if loser.target.runtime.load > winner.target.runtime.load:
        return "has more load"
    return "comes later in the configuration"


def describe_choice(candidates: Sequence[Candidate], quality: RequestQuality | None) -> str:
    """Return the value of ``x-moyin-route``: why the first candidate was chosen.

    It is one word. Where quality was weighed, the compared estimates follow, such as
    ``better; claude-haiku-5-5: code, p_good 0.91 against 0.22 of smollm2-135m``.
    """
    best = candidates[0]
    if quality is None or best.forecast is None or best.forecast.estimate is None:
        return best.reason
    name, low = best.deployment.model.name, best.forecast.estimate.low
    text = f"{best.reason}; {name}: {quality.question.kind}, p_good {chance_text(low)}"
    if best.reason == TRYING:
        text += f" to {chance_text(best.forecast.estimate.high)}"
    others = [
        other for other in candidates[1:] if other.deployment.model.name != name and other.forecast
    ]
    if not others:
        return text
    # Compare with the choice by money and time alone, or with the next candidate.
    rival = min(others, key=_without_risk) if best.reason == "better" else others[0]
    assert rival.forecast is not None and rival.forecast.estimate is not None
    lower_bound = chance_text(rival.forecast.estimate.low)
    return f"{text} against {lower_bound} of {rival.deployment.model.name}"


def _without_risk(candidate: Candidate) -> float:
    assert candidate.forecast is not None, "only weighed candidates are compared"
    return candidate.forecast.score - candidate.forecast.risk


def model_state(candidate: Candidate) -> str:
    """Return the state of the model; ``busy`` if it is loaded and every slot is taken."""
    runtime, model = candidate.target.runtime, candidate.deployment.model
    state = ModelState.UNKNOWN if runtime.loaded is None else runtime.loaded.state(model.upstream)
    if state in (ModelState.RESIDENT, ModelState.UNKNOWN) and runtime.slots.is_full:
        return "busy"
    return state.value
