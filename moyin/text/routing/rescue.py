"""Decides whether a fault of an answer is reason to call a better model."""

from __future__ import annotations

import time
from decimal import Decimal

from pydantic_core import from_json

from moyin.domain.money import pico_to_usd
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
# A faulty answer is certainly useless, but the model may not be the cause: hence half the weight.
_FAULT_SCORE, _FAULT_WEIGHT = 0.0, 0.5
# An answer that was cut off may still be useful.
_CUT_SCORE, _CUT_WEIGHT = 0.3, 0.2


def answer_fault(call: RoutedCall, answer: Answer) -> str | None:
    """Return the fault of an answer in one word; None if none is found or nothing can be checked.

    Audio, several answers at once and answers that used a provider's own tools cannot be checked.
    Of a stream, the fault is what was found while it was held back.
    """
    if isinstance(answer.stream, MeteredStream):
        return answer.stream.fault or None
    if answer.stream is not None or not can_check(call):
        return None
    try:
        data = from_json(answer.body) if answer.data is None else answer.data
        response = call.codec.read_response(data)
        truncation = CUT if is_truncated(response, call.needs.max_tokens) else None
        return find_fault(response, call.constraints) or truncation
    except (MoyinError, ValueError):
        # A part that the domain model cannot express is no fault.
        return None


def can_check(call: RoutedCall) -> bool:
    """Return whether the answers to a call can be checked."""
    return not (call.needs.has_external_content or call.needs.embeddings) and call.constraints.plain


def stream_fault(call: RoutedCall, transcript: Transcript) -> str | None:
    """Return the fault of a stream that has ended, as `answer_fault` does."""
    constraints = call.constraints
    if not transcript.is_complete:
        # Only the end of a long text is kept: it can be checked for repetition only.
        if transcript.tools or not transcript.is_readable:
            return None
        constraints = ResponseConstraints()
    answer = transcript.to_response()
    truncation = CUT if is_truncated(answer, call.needs.max_tokens) else None
    return find_fault(answer, constraints) or truncation


def should_rescue(policy: Rescue, call: RoutedCall, fault: str) -> bool:
    """Return whether the policy calls another model because of this fault."""
    return fault not in (REFUSED, CUT) and can_rescue(policy, call)


def can_rescue(policy: Rescue, call: RoutedCall) -> bool:
    """Return whether the policy may call another model after an answer to this call."""
    if policy is Rescue.OFF:
        return False
    return policy is Rescue.CHECKED or is_constrained(call)


def is_constrained(call: RoutedCall) -> bool:
    """Return whether a call demands a format: JSON, or tool calls."""
    constraints = call.constraints
    return constraints.json or bool(constraints.tools)


def is_better(candidate: Candidate, than: Candidate) -> bool:
    """Return whether a candidate's lower bound of quality is above that of ``than``."""
    forecast, other = candidate.forecast, than.forecast
    if forecast is None or other is None or forecast.estimate is None or other.estimate is None:
        return False
    return forecast.estimate.low > other.estimate.low


def can_afford(
    call: RoutedCall,
    candidate: Candidate,
    spent: tuple[Candidate, Answer],
    *,
    reserved: Decimal | None,
    remaining: float,
) -> bool:
    """Return whether a second call fits into the first one's reservation and the time left.

    Args:
        spent: the candidate that answered, and its answer.
        reserved: US dollars set aside for the whole call; None: spending is not limited.
        remaining: seconds.
    """
    if candidate.forecast is None or candidate.forecast.seconds >= remaining:
        return False
    if reserved is None:
        return True
    first, answer = spent
    stream = answer.stream
    usage = stream.usage if isinstance(stream, MeteredStream) else answer.usage
    cost = pico_to_usd(first.target.price().compute_pico_cost(usage))
    return cost + max_call_cost(candidate.target, call.needs) <= reserved


def fault_signal(call: RoutedCall, candidate: Candidate, fault: str, *, rescued: bool) -> Signal:
    """Return the quality signal that a fault gives about the model that answered.

    Args:
        rescued: the answer replaced another one.
    """
    assert call.quality is not None, "only weighed requests are checked"
    source = "cut" if fault == CUT else "checked"
    return Signal(
        model=candidate.deployment.model.name,
        question=call.quality.question,
        score=_CUT_SCORE if fault == CUT else _FAULT_SCORE,
        weight=_CUT_WEIGHT if fault == CUT else _FAULT_WEIGHT,
        # A request has one signal per source, and both answers may have a fault.
        source="rescue" if rescued else source,
        key="",
        at=time.time(),
    )
