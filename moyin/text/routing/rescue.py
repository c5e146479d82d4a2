"""Decides whether a faulty answer is rescued, that is, replaced by a better model's answer."""

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
from moyin.text.routing.catalog import RescuePolicy
from moyin.text.routing.compiled_route import compute_max_call_cost
from moyin.text.routing.decision import Candidate
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.routed_call import RoutedCall

_CUT = "cut"
# A faulty answer is useless, but the model may not be the cause; hence the weight of a half.
_FAULT_SCORE, _FAULT_WEIGHT = 0.0, 0.5
# An answer that was cut off may still be useful.
_CUT_SCORE, _CUT_WEIGHT = 0.3, 0.2


def find_answer_fault(call: RoutedCall, answer: Answer) -> str | None:
    """Return the fault of an answer in one word; None if it has none or cannot be checked.

    Audio, several answers at once and answers that used a provider's own tools cannot be checked.
    For a stream, the result is the fault that was found while the stream was held back.
    """
    if isinstance(answer.stream, MeteredStream):
        return answer.stream.fault or None
    if answer.stream is not None or not is_checkable(call):
        return None
    try:
        data = from_json(answer.body) if answer.data is None else answer.data
        response = call.codec.read_response(data)
        truncation = _CUT if is_truncated(response, call.needs.max_tokens) else None
        return find_fault(response, call.constraints) or truncation
    except (MoyinError, ValueError):
        # An answer with a part that the domain types cannot express has no fault.
        return None


def is_checkable(call: RoutedCall) -> bool:
    """Return True if the answers to a call can be checked for faults."""
    return not (call.needs.has_external_content or call.needs.embeddings) and call.constraints.plain


def find_stream_fault(call: RoutedCall, transcript: Transcript) -> str | None:
    """Return the fault of a stream that has ended, in one word, or None."""
    constraints = call.constraints
    if not transcript.is_complete:
        # Of a long text only the end is kept, which can be checked only for repetition.
        if transcript.tools or not transcript.is_readable:
            return None
        constraints = ResponseConstraints()
    answer = transcript.to_response()
    truncation = _CUT if is_truncated(answer, call.needs.max_tokens) else None
    return find_fault(answer, constraints) or truncation


def should_rescue(policy: RescuePolicy, call: RoutedCall, fault: str) -> bool:
    """Return True if the policy allows a rescue because of this fault."""
    return fault not in (REFUSED, _CUT) and may_rescue(policy, call)


def may_rescue(policy: RescuePolicy, call: RoutedCall) -> bool:
    """Return True if the policy allows a rescue of faulty answers to this call."""
    if policy is RescuePolicy.OFF:
        return False
    return policy is RescuePolicy.CHECKED or requires_format(call)


def requires_format(call: RoutedCall) -> bool:
    """Return True if the request demands JSON or offers tools."""
    constraints = call.constraints
    return constraints.json or bool(constraints.tools)


def has_higher_quality(candidate: Candidate, other_candidate: Candidate) -> bool:
    """Return True if a candidate's lower bound of quality is above that of ``other_candidate``."""
    forecast, other_forecast = candidate.forecast, other_candidate.forecast
    if (
        forecast is None
        or other_forecast is None
        or forecast.estimate is None
        or other_forecast.estimate is None
    ):
        return False
    return forecast.estimate.low > other_forecast.estimate.low


def can_afford(
    call: RoutedCall,
    candidate: Candidate,
    first_call: tuple[Candidate, Answer],
    *,
    reserved_usd: Decimal | None,
    remaining_seconds: float,
) -> bool:
    """Return True if the reserved money and the remaining time suffice for a second call.

    Args:
        candidate: the candidate of the second call.
        first_call: the candidate of the first call, and its answer.
        reserved_usd: US dollars reserved for the request; None if spending is not limited.
        remaining_seconds: seconds until the deadline of the request.
    """
    if candidate.forecast is None or candidate.forecast.seconds >= remaining_seconds:
        return False
    if reserved_usd is None:
        return True
    first_candidate, answer = first_call
    stream = answer.stream
    usage = stream.usage if isinstance(stream, MeteredStream) else answer.usage
    first_cost_usd = pico_to_usd(first_candidate.target.get_price().compute_pico_cost(usage))
    return first_cost_usd + compute_max_call_cost(candidate.target, call.needs) <= reserved_usd


def build_fault_signal(
    call: RoutedCall, candidate: Candidate, fault: str, *, is_rescue: bool
) -> Signal:
    """Build the quality signal that a fault gives about the candidate's model.

    ``is_rescue`` is True if the faulty answer replaced another one.
    """
    assert call.quality is not None, "build_fault_signal: the call must have quality estimates"
    source = "cut" if fault == _CUT else "checked"
    return Signal(
        model=candidate.deployment.model.name,
        question=call.quality.question,
        score=_CUT_SCORE if fault == _CUT else _FAULT_SCORE,
        weight=_CUT_WEIGHT if fault == _CUT else _FAULT_WEIGHT,
        # Both answers to a request may have faults, and a request has one signal per source.
        source="rescue" if is_rescue else source,
        key="",
        at=time.time(),
    )
