"""Asking a better model where an answer fails what can be checked."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal

from pydantic_core import from_json

from moyin.domain.money import usd
from moyin.errors import MoyinError
from moyin.quality.estimator import Signal
from moyin.routing.answer import Answer
from moyin.routing.catalog import Rescue
from moyin.routing.checks import fault_of
from moyin.routing.choice import Candidate
from moyin.routing.reservation import worst_case
from moyin.routing.shortlist import Shortlist
from moyin.routing.task import Task

__all__ = ["can_afford", "fault_in", "is_better", "rescues", "signal_of"]

# What a fault says of an answer: that it was useless is certain, that the model was to blame is not.
_SCORE, _WEIGHT = 0.0, 0.5


def fault_in(task: Task, answer: Answer) -> str | None:
    """Return what is wrong with a whole answer, in a word; None where nothing is found, or nothing
    can be checked: streams, answers by voice, several at once, and those that a provider's own tools
    took part in."""
    if answer.stream is not None or task.needs.elsewhere or task.needs.embeddings:
        return None
    form = task.call.form()
    if not form.plain:
        return None
    try:
        return fault_of(task.dialect.answer_of(from_json(answer.body)), form)
    except (MoyinError, ValueError):
        # A part that the domain has no words for, which is no fault.
        return None


def rescues(policy: Rescue, task: Task, fault: str) -> bool:
    """Return whether a fault is reason enough to ask another model."""
    if policy is Rescue.OFF or fault == "refused":
        return False
    form = task.call.form()
    return policy is Rescue.CHECKED or form.json or bool(form.tools)


def is_better(candidate: Candidate, than: Candidate) -> bool:
    """Return whether the careful bound of one candidate is higher than that of another."""
    its, other = candidate.forecast, than.forecast
    if its is None or other is None or its.estimate is None or other.estimate is None:
        return False
    return its.estimate.low > other.estimate.low


def can_afford(
    task: Task,
    shortlist: Shortlist,
    candidate: Candidate,
    spent: tuple[Candidate, Answer],
    *,
    reserved: Decimal | None,
    left: float,
) -> bool:
    """Return whether a second call fits into what was reserved for the first and the time left.

    Args:
        spent: who answered, and what.
        reserved: US dollars set aside for the whole call; None: nobody counts.
        left: seconds.
    """
    if candidate.forecast is None or candidate.forecast.seconds >= left:
        return False
    if reserved is None:
        return True
    alone = replace(shortlist, contenders=(candidate.contender,), hedging=None)
    first, answer = spent
    cost = usd(first.contender.price().pico(answer.usage))
    return cost + worst_case(alone, task.needs, choices=1, streams=False) <= reserved


def signal_of(task: Task, candidate: Candidate) -> Signal:
    """Return what a fault says of the model that answered."""
    assert task.quality is not None, "only requests that were weighed are checked"
    return Signal(
        model=candidate.offer.model.name,
        question=task.quality.question,
        score=_SCORE,
        weight=_WEIGHT,
        source="checked",
        key="",
        at=time.time(),
    )
