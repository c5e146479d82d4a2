"""Trying models that little is known of, on a share of requests. Pure.

The router decides on the careful bound, so it never learns that a model is better than the table says:
nothing is asked of it. On the share of requests that an operator allows, the choice is made on the
hopeful bound instead. A trial can lose an answer, so there is none where a client asked for a quality,
where bad answers cost nothing, or where somebody comes back to an answer that did not help.
"""

from __future__ import annotations

from collections.abc import Sequence

from moyin.text.quality.estimator import Estimate
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.decision import Candidate
from moyin.text.routing.request_quality import RequestQuality

__all__ = ["TRYING", "best_at_upper_bound", "exploration_share", "trial_candidate", "with_trial"]

TRYING = "trying"


def exploration_share(route: CompiledRoute, quality: RequestQuality | None) -> float:
    """Return the share of requests like this one on which a model is tried."""
    if quality is None or quality.floor or not quality.usd_per_bad_answer:
        return 0.0
    # A kept answer would be given again to others.
    return route.explore if route.cache is None else 0.0


def trial_candidate(candidates: Sequence[Candidate], quality: RequestQuality) -> Candidate | None:
    """Return the candidate that a trial would ask; None where it is asked in any case."""
    weighed = [one for one in candidates if one.target.model_breaker.ready] or candidates
    options = []
    for one in weighed:
        forecast = one.forecast
        if forecast is None or forecast.estimate is None:
            return None
        options.append((forecast.score - forecast.risk, forecast.estimate))
    if not options:
        return None
    found = weighed[best_at_upper_bound(options, quality.usd_per_bad_answer)]
    return None if found is candidates[0] else found


def best_at_upper_bound(
    options: Sequence[tuple[float, Estimate]], usd_per_bad_answer: float
) -> int:
    """Return the place of the option whose score is lowest on the hopeful bound.

    Args:
        options: of each, its money and time in US dollars, and how well it would answer.
    """
    scores = [usd + (1.0 - estimate.high) * usd_per_bad_answer for usd, estimate in options]
    return scores.index(min(scores))


def with_trial(candidates: list[Candidate], quality: RequestQuality) -> list[Candidate]:
    """Return the candidates with the one to try in front. Those behind it keep their order, so that
    whatever comes after a failed trial is chosen carefully."""
    tried = trial_candidate(candidates, quality)
    if tried is None:
        return candidates
    first = Candidate(target=tried.target, reason=TRYING, forecast=tried.forecast)
    return [first, *(one for one in candidates if one is not tried)]
