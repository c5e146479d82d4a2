"""Asking a better model where an answer fails what can be checked."""

from __future__ import annotations

import time
from decimal import Decimal

from pydantic_core import from_json

from moyin.domain.money import usd
from moyin.domain.needs import ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import MoyinError
from moyin.text.quality.estimator import Signal
from moyin.text.routing.answer import Answer
from moyin.text.routing.answer_checks import REFUSED, find_fault, is_truncated
from moyin.text.routing.catalog import Rescue
from moyin.text.routing.decision import Candidate
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.reservation import max_call_cost
from moyin.text.routing.routed_call import RoutedCall

__all__ = [
    "answer_fault",
    "can_afford",
    "can_check",
    "can_rescue",
    "fault_signal",
    "is_better",
    "is_constrained",
    "should_rescue",
    "stream_fault",
]

CUT = "cut"
# What a fault says of an answer: that it was useless is certain, that the model was to blame is not.
_SCORE, _WEIGHT = 0.0, 0.5
# An answer without its end may still be of use.
_CUT_SCORE, _CUT_WEIGHT = 0.3, 0.2


def answer_fault(call: RoutedCall, answer: Answer) -> str | None:
    """Return what is wrong with an answer, in a word; None where nothing is found, or nothing can be
    checked: answers by voice, several at once, and those that a provider's own tools took part in. Of
    a stream it is what was seen while it was held back."""
    if isinstance(answer.stream, MeteredStream):
        return answer.stream.fault or None
    if answer.stream is not None or not can_check(call):
        return None
    try:
        data = from_json(answer.body) if answer.data is None else answer.data
        found = call.codec.read_response(data)
        cut = CUT if is_truncated(found, call.needs.max_tokens) else None
        return find_fault(found, call.constraints) or cut
    except (MoyinError, ValueError):
        # A part that the domain has no words for, which is no fault.
        return None


def can_check(call: RoutedCall) -> bool:
    """Return whether answers to a call can be checked."""
    return not (call.needs.has_external_content or call.needs.embeddings) and call.constraints.plain


def stream_fault(call: RoutedCall, seen: Transcript) -> str | None:
    """Return what is wrong with a stream that has ended, as `answer_fault` does."""
    constraints = call.constraints
    if not seen.is_complete:
        # What is left of a long text tells whether it repeats itself, and no more.
        if seen.tools or not seen.is_readable:
            return None
        constraints = ResponseConstraints()
    answer = seen.answer()
    cut = CUT if is_truncated(answer, call.needs.max_tokens) else None
    return find_fault(answer, constraints) or cut


def should_rescue(policy: Rescue, call: RoutedCall, fault: str) -> bool:
    """Return whether a fault is reason enough to ask another model."""
    return fault not in (REFUSED, CUT) and can_rescue(policy, call)


def can_rescue(policy: Rescue, call: RoutedCall) -> bool:
    """Return whether a fault of the answer to a call may be reason enough to ask another model."""
    if policy is Rescue.OFF:
        return False
    return policy is Rescue.CHECKED or is_constrained(call)


def is_constrained(call: RoutedCall) -> bool:
    """Return whether a call asks for an answer of a form: JSON, or calls of tools."""
    constraints = call.constraints
    return constraints.json or bool(constraints.tools)


def is_better(candidate: Candidate, than: Candidate) -> bool:
    """Return whether the careful bound of one candidate is higher than that of another."""
    its, other = candidate.forecast, than.forecast
    if its is None or other is None or its.estimate is None or other.estimate is None:
        return False
    return its.estimate.low > other.estimate.low


def can_afford(
    call: RoutedCall,
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
    first, answer = spent
    stream = answer.stream
    usage = stream.usage if isinstance(stream, MeteredStream) else answer.usage
    cost = usd(first.target.price().pico_cost(usage))
    return cost + max_call_cost(candidate.target, call.needs) <= reserved


def fault_signal(call: RoutedCall, candidate: Candidate, fault: str, *, rescued: bool) -> Signal:
    """Return what a fault says of the model that answered.

    Args:
        rescued: the answer was asked for in the place of another.
    """
    assert call.quality is not None, "only requests that were weighed are checked"
    source = "cut" if fault == CUT else "checked"
    return Signal(
        model=candidate.deployment.model.name,
        question=call.quality.question,
        score=_CUT_SCORE if fault == CUT else _SCORE,
        weight=_CUT_WEIGHT if fault == CUT else _WEIGHT,
        # Of one source a request has one signal, and both answers may have a fault.
        source="rescue" if rescued else source,
        key="",
        at=time.time(),
    )
