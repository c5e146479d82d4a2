"""Checks answers before the client receives them, and replaces faulty ones by a better model's.

Faults, follow-ups and decisions are recorded for learning, in the background queue.
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
from moyin.text.routing.followups import FollowUpDetector
from moyin.text.routing.learning import QualityLearner
from moyin.text.routing.metered_stream import MeteredStream
from moyin.text.routing.rescue import (
    build_fault_signal,
    can_afford,
    find_answer_fault,
    find_stream_fault,
    has_higher_quality,
    is_checkable,
    may_rescue,
    requires_format,
    should_rescue,
)
from moyin.text.routing.routed_call import RoutedCall, StreamHold

_log = logging.getLogger(__name__)
# Calls a candidate and returns its answer, or None if its breaker rejects the call. The string is
# the reason for the response header `x-moyin-route`.
_TryCandidate: TypeAlias = Callable[[RoutedCall, Candidate, str], Awaitable[Answer | None]]


class AnswerReviewer:
    """Checks answers for faults, replaces faulty answers, and records what the router learns.

    It reviews only the answers to requests whose candidates were ranked by quality.

    Args:
        learning: records decisions and faults. If it is None, nothing is recorded.
        follow_ups: detects requests that follow up an answer. If it is None, none are detected.
    """

    def __init__(
        self, learning: QualityLearner | None, follow_ups: FollowUpDetector | None
    ) -> None:
        self._learning = learning
        self._follow_ups = follow_ups

    def detect_follow_up(self, call: RoutedCall, route: CompiledRoute) -> bool:
        """Check whether the request repeats, edits or continues one that was answered earlier.

        Also set ``call.is_learned_from``: True if the router learns from this request.

        Returns:
            True if the request shows that an earlier answer did not help. Only routes that allow
            trials of little-known models need to know this at once. For other routes, the check
            runs in the background, and the result is False.
        """
        learning, follow_ups = self._learning, self._follow_ups
        if learning is None or call.needs.embeddings or call.context.is_background:
            return False
        may_match = follow_ups is not None and follow_ups.may_match(route)
        if not may_match and call.quality is None:
            return False
        call.is_learned_from = learning.background.sampler.accept(call.context.owner)
        allows_trial = call.quality is not None and route.explore > 0
        if follow_ups is None or not may_match or not (call.is_learned_from or allows_trial):
            return False
        run_detection = partial(follow_ups.detect, call.conversation, route, learning.now())
        if allows_trial:
            detections: list[bool] = []
            self._defer_work(call, lambda: detections.append(run_detection()))
            learning.background.run_tasks()
            return any(detections)
        self._defer_work(call, run_detection)
        return False

    def plan_checks(
        self, call: RoutedCall, route: CompiledRoute, candidates: Sequence[Candidate]
    ) -> bool:
        """Set how much of a stream is recorded and held back for checks.

        Returns:
            True if another candidate's answer may replace a faulty answer of the first candidate.
        """
        quality = call.quality
        if quality is None or not quality.is_estimated or not is_checkable(call):
            return False
        may_be_rescued = may_rescue(route.rescue, call) and any(
            has_higher_quality(candidate, candidates[0]) for candidate in candidates[1:]
        )
        if not call.request.is_streamed:
            return may_be_rescued
        call.is_transcribed = may_be_rescued or call.is_learned_from
        if may_be_rescued:
            holds_whole_stream = route.hold_streams and requires_format(call)
            call.hold = StreamHold.WHOLE if holds_whole_stream else StreamHold.BEGINNING
        return may_be_rescued

    async def review(
        self,
        call: RoutedCall,
        route: CompiledRoute,
        candidates: Sequence[Candidate],
        first_answer: tuple[Candidate, Answer],
        reserved_usd: Decimal | None,
        try_candidate: _TryCandidate,
    ) -> Answer:
        """Check an answer and return it, or the answer of a better candidate if it has a fault.

        If the better candidate fails, the first answer is returned in spite of its fault.

        Args:
            first_answer: the candidate that answered, and its answer.
            reserved_usd: US dollars reserved for the request; None if spending is not limited.
            try_candidate: calls another candidate.
        """
        answering_candidate, answer = first_answer
        if call.quality is None or not call.quality.is_estimated:
            return answer
        # If the route allows trials, follow-ups to every answer must be detected.
        if call.is_learned_from or (route.explore and not call.context.is_background):
            self._defer_decision(call, candidates, answering_candidate)
        better_candidates: list[Candidate] = []
        if may_rescue(route.rescue, call):
            later_candidates = candidates[candidates.index(answering_candidate) + 1 :]
            better_candidates = [
                candidate
                for candidate in later_candidates
                if has_higher_quality(candidate, answering_candidate)
            ]
        if not better_candidates:
            self._defer_check(call, answering_candidate, answer)
            return answer
        fault = find_answer_fault(call, answer)
        if fault is None:
            self._check_after_stream(call, answering_candidate, answer)
            return answer
        self._record_fault(call, answering_candidate, fault)
        if not should_rescue(route.rescue, call, fault):
            return answer
        # An answer is replaced only once.
        call.hold = StreamHold.NONE
        for candidate in better_candidates:
            if _occupies_last_slot(answer, answering_candidate, candidate):
                continue
            remaining_seconds = call.deadline - asyncio.get_running_loop().time()
            if not can_afford(
                call,
                candidate,
                first_answer,
                reserved_usd=reserved_usd,
                remaining_seconds=remaining_seconds,
            ):
                continue
            comparison = describe_choice([candidate, answering_candidate], call.quality).partition(
                "; "
            )[2]
            reason = f"rescue after {fault}; {comparison}"
            try:
                better_answer = await _replace_answer(
                    answer, partial(try_candidate, call, candidate, reason)
                )
            except MoyinError as error:
                _log.info(
                    "request %s: the rescue failed with %s; the client gets the first answer",
                    call.context.request_id,
                    error.code,
                )
                return answer
            if better_answer is not None:
                # The other candidates are counted once per request, so they are omitted here. The
                # decision is always recorded: the ledger does not know which answer was sent.
                self._defer_decision(call, (), candidate)
                self._defer_check(call, candidate, better_answer, is_rescue=True)
                return better_answer
        return answer

    def _defer_work(
        self, call: RoutedCall, function: Callable[..., object], *args: Any, size: int = 0
    ) -> None:
        if self._learning is not None:
            self._learning.background.add(function, *args, size=len(call.request.raw) + size)

    def _defer_decision(
        self, call: RoutedCall, candidates: Sequence[Candidate], chosen_candidate: Candidate
    ) -> None:
        if self._learning is not None:
            self._defer_work(
                call,
                self._record_decision,
                call,
                candidates,
                chosen_candidate,
                self._learning.now(),
            )

    def _record_decision(
        self,
        call: RoutedCall,
        candidates: Sequence[Candidate],
        chosen_candidate: Candidate,
        decided_at: float,
    ) -> None:
        """Record a routing decision, and remember the answer, so that follow-ups are detected.

        Args:
            decided_at: the Unix time of the decision.
        """
        quality, context = call.quality, call.context
        assert self._learning is not None and quality is not None, (
            "AnswerReviewer: a decision can be recorded only if quality was weighed"
        )
        if call.is_learned_from or not candidates:
            self._learning.record_decision(
                context.owner, context.request_id, quality, candidates, chosen_candidate, decided_at
            )
        if self._follow_ups is not None:
            self._follow_ups.remember_answer(
                call.conversation, quality, chosen_candidate, decided_at
            )

    def _defer_check(
        self, call: RoutedCall, candidate: Candidate, answer: Answer, *, is_rescue: bool = False
    ) -> None:
        """Schedule the check of an answer for faults if the router learns from the request.

        Args:
            is_rescue: True if the answer replaced a faulty answer.
        """
        if not call.is_learned_from:
            return
        if answer.stream is None:
            check = partial(
                self._run_check,
                call,
                candidate,
                partial(find_answer_fault, call, answer),
                is_rescue,
            )
            self._defer_work(call, check, size=len(answer.body))
        elif (fault := find_answer_fault(call, answer)) is not None:
            # The fault was found while the stream was held back.
            self._record_fault(call, candidate, fault, is_rescue=is_rescue)
        else:
            self._check_after_stream(call, candidate, answer, is_rescue=is_rescue)

    def _check_after_stream(
        self, call: RoutedCall, candidate: Candidate, answer: Answer, *, is_rescue: bool = False
    ) -> None:
        """Schedule a check for faults that runs when the stream has ended.

        Args:
            is_rescue: True if the answer replaced a faulty answer.
        """
        stream = answer.stream
        if (
            not call.is_learned_from
            or not isinstance(stream, MeteredStream)
            or stream.transcript is None
        ):
            return
        stream_check = partial(find_stream_fault, call, stream.transcript)
        check = partial(
            self._defer_work, call, self._run_check, call, candidate, stream_check, is_rescue
        )
        if stream.is_complete:
            check()
        else:
            stream.on_end = check

    def _run_check(
        self,
        call: RoutedCall,
        candidate: Candidate,
        find_fault: Callable[[], str | None],
        is_rescue: bool,
    ) -> None:
        if (fault := find_fault()) is not None:
            self._record_fault(call, candidate, fault, is_rescue=is_rescue)

    def _record_fault(
        self, call: RoutedCall, candidate: Candidate, fault: str, *, is_rescue: bool = False
    ) -> None:
        """Record a fault of a candidate's answer, if the router learns from the request.

        ``is_rescue`` is True if the answer replaced a faulty answer.
        """
        forecast, context = candidate.forecast, call.context
        if self._learning is None or not call.is_learned_from:
            return
        if forecast is not None and forecast.estimate is not None:
            signal = build_fault_signal(call, candidate, fault, is_rescue=is_rescue)
            p_good = forecast.estimate.p
            self._learning.record_signal(
                context.owner, context.request_id, signal, p_good=p_good, comment=fault
            )


async def _replace_answer(
    answer: Answer, try_candidate: Callable[[], Awaitable[Answer | None]]
) -> Answer | None:
    """Call another candidate; if it answers, close ``answer`` and return the other answer.

    If the client disconnects meanwhile, both answers are closed.

    Returns:
        None if the other candidate's breaker rejects the call. ``answer`` is then still open.

    Raises:
        MoyinError: the other candidate failed. ``answer`` is then still open.
    """
    better_answer: Answer | None = None
    try:
        better_answer = await try_candidate()
        if better_answer is not None:
            await answer.close()
    except MoyinError:
        raise
    except BaseException:
        await answer.close()
        if better_answer is not None:
            await better_answer.close()
        raise
    return better_answer


def _occupies_last_slot(
    answer: Answer, answering_candidate: Candidate, other_candidate: Candidate
) -> bool:
    """Return True if the other candidate cannot be called while the answer's stream is open.

    This is so if both candidates use the same back end and the stream holds its last slot. The
    stream cannot be closed first, because its answer is needed if the other candidate fails.
    """
    runtime = other_candidate.target.runtime
    is_running = isinstance(answer.stream, MeteredStream) and not answer.stream.is_complete
    return is_running and runtime is answering_candidate.target.runtime and runtime.slots.is_full
