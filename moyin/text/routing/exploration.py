"""Chooses little-known models for trials, on a share of requests that the operator sets.

The router ranks by the lower bound of quality, so a model with a low prior estimate gets no requests
and is never observed. A trial ranks by the upper bound instead. A trial may give a bad answer, so
there is none if the client demands a quality, if bad answers cost nothing, or if an earlier answer
did not help. The functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from moyin.text.quality.estimator import Estimate
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.decision import Candidate
from moyin.text.routing.request_quality import RequestQuality

TRIAL_REASON = "trying"


def compute_trial_share(route: CompiledRoute, quality: RequestQuality | None) -> float:
    """Return the share of requests like this one on which a trial takes place."""
    if quality is None or quality.floor or not quality.usd_per_bad_answer:
        return 0.0
    # There is no trial if answers are cached, because the answer would be served repeatedly.
    return route.explore if route.cache is None else 0.0


def choose_trial(candidates: Sequence[Candidate], quality: RequestQuality) -> Candidate | None:
    """Return the candidate that a trial would call.

    None if the candidates have no estimates, or if the trial would call the first candidate.
    """
    available_candidates = [
        candidate for candidate in candidates if candidate.target.model_breaker.ready
    ] or candidates
    options = []
    for candidate in available_candidates:
        forecast = candidate.forecast
        if forecast is None or forecast.estimate is None:
            return None
        options.append((forecast.score - forecast.risk, forecast.estimate))
    if not options:
        return None
    best_candidate = available_candidates[
        choose_at_upper_bound(options, quality.usd_per_bad_answer)
    ]
    return None if best_candidate is candidates[0] else best_candidate


def choose_at_upper_bound(
    options: Sequence[tuple[float, Estimate]], usd_per_bad_answer: float
) -> int:
    """Return the index of the option with the lowest score, assuming the upper bound of quality.

    An option is a pair: its score in US dollars without the risk of a bad answer, and its quality
    estimate, whose upper bound determines the risk.
    """
    scores = [usd + (1.0 - estimate.high) * usd_per_bad_answer for usd, estimate in options]
    return scores.index(min(scores))


def put_trial_first(candidates: list[Candidate], quality: RequestQuality) -> list[Candidate]:
    """Return the candidates after moving the one chosen for a trial, if any, to the front.

    The others keep their order, so that a failed trial falls back to the normal choice.
    """
    trial = choose_trial(candidates, quality)
    if trial is None:
        return candidates
    trial_candidate = Candidate(target=trial.target, reason=TRIAL_REASON, forecast=trial.forecast)
    return [trial_candidate, *(candidate for candidate in candidates if candidate is not trial)]
