"""A decision laid open: what each offer would cost and take, and why it lost."""

from __future__ import annotations

from dataclasses import dataclass

from moyin.domain.money import usd_text
from moyin.domain.needs import Needs
from moyin.errors import MoyinError
from moyin.routing.choice import Candidate, decide, refusals, why_nobody
from moyin.routing.history import UsageHistory
from moyin.routing.loading import ModelState
from moyin.routing.shortlist import Refusal, Shortlist

__all__ = ["Explanation", "explain", "state_of", "why_lost"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What `decide` would do now.

    Attributes:
        asked: the name in the request.
        candidates: all that could answer, weighed, in the order in which they would be asked.
        error: why nobody answers, when nobody does.
    """

    asked: str
    needs: Needs
    usd_per_second: float
    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    error: MoyinError | None


def explain(asked: str, shortlist: Shortlist, needs: Needs, history: UsageHistory) -> Explanation:
    candidates = decide(shortlist, needs, history, weigh=True)
    return Explanation(
        asked=asked,
        needs=needs,
        usd_per_second=shortlist.usd_per_second,
        candidates=tuple(candidates),
        refusals=tuple(refusals(shortlist, needs)),
        error=None if candidates else why_nobody(shortlist, needs),
    )


def why_lost(loser: Candidate, winner: Candidate, usd_per_second: float) -> str:
    """What puts ``loser`` behind ``winner``, in a few words."""
    if winner.contender.presence.ready and not loser.contender.presence.ready:
        return "its back end says that it has no such model"
    its, best = loser.forecast, winner.forecast
    assert its is not None and best is not None, "an explanation weighs every candidate"
    reasons = []
    if its.pico > best.pico:
        reasons.append(f"costs {usd_text(its.pico - best.pico)} USD more")
    if usd_per_second > 0 and its.seconds > best.seconds:
        reasons.append(f"takes {its.seconds - best.seconds:.2f} s longer")
    if reasons:
        return " and ".join(reasons)
    if loser.contender.translated and not winner.contender.translated:
        return "would have to be translated"
    if loser.contender.lane.load > winner.contender.lane.load:
        return "has more to do"
    return "comes later in the configuration"


def state_of(candidate: Candidate) -> str:
    """The model's state on its back end: ``busy`` when it is there, and so are others."""
    lane, model = candidate.contender.lane, candidate.offer.model
    state = ModelState.UNKNOWN if lane.loaded is None else lane.loaded.state(model.upstream)
    if state in (ModelState.RESIDENT, ModelState.UNKNOWN) and lane.slots.full:
        return "busy"
    return state.value
