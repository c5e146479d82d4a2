"""Checks an answer before its client gets it and replaces it where a better model may help.

What is learned from it is left to the background queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any, TypeAlias

from moyin.errors import MoyinError
from moyin.text.routing.answer import Answer
from moyin.text.routing.compiled_route import CompiledRoute
from moyin.text.routing.decision import Candidate
from moyin.text.routing.explanation import describe_choice
from moyin.text.routing.followups import FollowUps
from moyin.text.routing.learning import Learning
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.rescue import (
    answer_fault,
    can_afford,
    can_check,
    can_rescue,
    fault_signal,
    is_better,
    is_constrained,
    should_rescue,
    stream_fault,
)
from moyin.text.routing.routed_call import Hold, RoutedCall

__all__ = ["AnswerReviewer"]

_log = logging.getLogger(__name__)
# Calls a candidate for a stated reason; None when its breaker lets no request through.
_TryCandidate: TypeAlias = Callable[[RoutedCall, Candidate, str], Awaitable[Answer | None]]


class AnswerReviewer:
    """Reviews answers whose quality was weighed; others pass unchanged.

    Args:
        learning: records what is found; None: nothing is learned.
        follow_ups: detects what clients do after an answer; None: follow-ups are not detected.
    """

    def __init__(self, learning: Learning | None, follow_ups: FollowUps | None) -> None:
        self._learning = learning
        self._follow_ups = follow_ups

    def detect_follow_up(self, call: RoutedCall, route: CompiledRoute) -> bool:
        """Decide whether the call is learned from, and look for an answer that it follows up.

        Return True if the request shows that an earlier answer did not help. That is looked up at
        once only where a trial model may be chosen; otherwise it is left to the background queue.
        """
        learning, follow_ups = self._learning, self._follow_ups
        if learning is None or call.needs.embeddings:
            return False
        awaited = follow_ups is not None and follow_ups.may_match(route)
        if not awaited and call.quality is None:
            return False
        call.is_learned_from = learning.background.share.accept(call.context.owner)
        trial_candidate = call.quality is not None and route.explore > 0
        if follow_ups is None or not awaited or not (call.is_learned_from or trial_candidate):
            return False
        look = partial(follow_ups.detect, call.conversation, route, learning.now())
        if trial_candidate:
            results: list[bool] = []
            self._defer(call, lambda: results.append(look()))
            learning.background.run()
            return any(results)
        self._defer(call, look)
        return False

    def plan_checks(
        self, call: RoutedCall, route: CompiledRoute, candidates: Sequence[Candidate]
    ) -> bool:
        """Set how the call's stream is checked; return whether a better model may follow."""
        quality, policy = call.quality, route.rescue
        if quality is None or not quality.is_estimated or not can_check(call):
            return False
        rescued = can_rescue(policy, call) and any(
            is_better(candidate, candidates[0]) for candidate in candidates[1:]
        )
        if not call.request.streams:
            return rescued
        call.is_transcribed = rescued or call.is_learned_from
        if rescued:
            whole = route.hold_streams and is_constrained(call)
            call.hold = Hold.WHOLE if whole else Hold.BEGINNING
        return rescued

    async def review(
        self,
        call: RoutedCall,
        route: CompiledRoute,
        candidates: Sequence[Candidate],
        first: tuple[Candidate, Answer],
        reserved: Decimal | None,
        try_candidate: _TryCandidate,
    ) -> Answer:
        """Return the answer, or a better candidate's answer if this one fails a check.

        When the better candidate fails to answer, the first answer is returned after all.

        Args:
            first: the candidate that answered, and its answer.
            reserved: US dollars that were set aside for the call; None: spending is not limited.
        """
        answered, answer = first
        if call.quality is None or not call.quality.is_estimated:
            return answer
        # Where trial models may be chosen, complaints about any answer must be noticed.
        if call.is_learned_from or route.explore:
            self._defer_decision(call, candidates, answered)
        better_candidates: list[Candidate] = []
        if can_rescue(route.rescue, call):
            after = candidates[candidates.index(answered) + 1 :]
            better_candidates = [candidate for candidate in after if is_better(candidate, answered)]
        if not better_candidates:
            self._defer_check(call, answered, answer)
            return answer
        fault = answer_fault(call, answer)
        if fault is None:
            self._check_at_end(call, answered, answer)
            return answer
        self._record_fault(call, answered, fault)
        if not should_rescue(route.rescue, call, fault):
            return answer
        # An answer is replaced only once.
        call.hold = Hold.NONE
        for candidate in better_candidates:
            if _blocks(answer, answered, candidate):
                continue
            remaining = call.deadline - asyncio.get_running_loop().time()
            if not can_afford(call, candidate, first, reserved=reserved, remaining=remaining):
                continue
            compared = describe_choice([candidate, answered], call.quality).partition("; ")[2]
            reason = f"rescue after {fault}; {compared}"
            try:
                better = await _replace_answer(
                    answer, partial(try_candidate, call, candidate, reason)
                )
            except MoyinError as error:
                _log.info(
                    "request %s: the better model failed, the first answer is kept: %s",
                    call.context.request_id,
                    error.code,
                )
                return answer
            if better is not None:
                # Without the options, which are counted once per request. Always recorded, because
                # the ledger cannot tell which of two answers the client got.
                self._defer_decision(call, (), candidate)
                self._defer_check(call, candidate, better, rescued=True)
                return better
        return answer

    def _defer(
        self, call: RoutedCall, work: Callable[..., object], *args: Any, size: int = 0
    ) -> None:
        if self._learning is not None:
            self._learning.background.add(work, *args, size=len(call.request.raw) + size)

    def _defer_decision(
        self, call: RoutedCall, candidates: Sequence[Candidate], chosen: Candidate
    ) -> None:
        if self._learning is not None:
            self._defer(call, self._record_decision, call, candidates, chosen, self._learning.now())

    def _record_decision(
        self, call: RoutedCall, candidates: Sequence[Candidate], chosen: Candidate, at: float
    ) -> None:
        """Record the decision made ``at``, and remember the answer for follow-ups."""
        quality, context = call.quality, call.context
        assert self._learning is not None and quality is not None, (
            "only weighed requests are recorded"
        )
        if call.is_learned_from or not candidates:
            self._learning.record_decision(
                context.owner, context.request_id, quality, candidates, chosen, at
            )
        if self._follow_ups is not None:
            self._follow_ups.remember(call.conversation, quality, chosen, at)

    def _defer_check(
        self, call: RoutedCall, candidate: Candidate, answer: Answer, *, rescued: bool = False
    ) -> None:
        """Have an answer checked for faults later, where it is learned from."""
        if not call.is_learned_from:
            return
        if answer.stream is None:
            look = partial(
                self._run_check, call, candidate, partial(answer_fault, call, answer), rescued
            )
            self._defer(call, look, size=len(answer.body))
        elif (fault := answer_fault(call, answer)) is not None:
            # The fault was found while the stream was held back.
            self._record_fault(call, candidate, fault, rescued=rescued)
        else:
            self._check_at_end(call, candidate, answer, rescued=rescued)

    def _check_at_end(
        self, call: RoutedCall, candidate: Candidate, answer: Answer, *, rescued: bool = False
    ) -> None:
        """Have a stream checked when it has ended."""
        stream = answer.stream
        if (
            not call.is_learned_from
            or not isinstance(stream, MeteredStream)
            or stream.transcript is None
        ):
            return
        stream_check = partial(stream_fault, call, stream.transcript)
        look = partial(self._defer, call, self._run_check, call, candidate, stream_check, rescued)
        if stream.is_complete:
            look()
        else:
            stream.on_end = look

    def _run_check(
        self,
        call: RoutedCall,
        candidate: Candidate,
        find_fault: Callable[[], str | None],
        rescued: bool,
    ) -> None:
        if (fault := find_fault()) is not None:
            self._record_fault(call, candidate, fault, rescued=rescued)

    def _record_fault(
        self, call: RoutedCall, candidate: Candidate, fault: str, *, rescued: bool = False
    ) -> None:
        """Record that the candidate's answer has a fault, where it is learned from.

        Args:
            rescued: the answer replaces another one.
        """
        forecast, context = candidate.forecast, call.context
        if self._learning is None or not call.is_learned_from:
            return
        if forecast is not None and forecast.estimate is not None:
            signal = fault_signal(call, candidate, fault, rescued=rescued)
            expected = forecast.estimate.p
            self._learning.record_signal(
                context.owner, context.request_id, signal, p_good=expected, comment=fault
            )


async def _replace_answer(
    answer: Answer, try_candidate: Callable[[], Awaitable[Answer | None]]
) -> Answer | None:
    """Return another answer and close ``answer``; return None and keep it if there is no other.

    A client that disconnects meanwhile ends both.

    Raises:
        MoyinError: the other candidate's failure; ``answer`` goes on.
    """
    better: Answer | None = None
    try:
        better = await try_candidate()
        if better is not None:
            await _close_stream(answer)
    except MoyinError:
        raise
    except BaseException:
        await _close_stream(answer)
        if better is not None:
            await _close_stream(better)
        raise
    return better


async def _close_stream(answer: Answer) -> None:
    if answer.stream is not None:
        await answer.stream.aclose()


def _blocks(answer: Answer, answered: Candidate, other: Candidate) -> bool:
    """Return whether a running stream holds the last slot at the back end of another candidate.

    The stream is closed only once a better answer exists, so that candidate cannot be called.
    """
    runtime = other.target.runtime
    running = isinstance(answer.stream, MeteredStream) and not answer.stream.is_complete
    return running and runtime is answered.target.runtime and runtime.slots.is_full
