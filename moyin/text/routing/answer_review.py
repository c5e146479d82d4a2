"""What happens to an answer before its client gets it: it is checked and perhaps replaced, where that
may help; what is learned from it is left for later."""

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
    can_afford,
    can_check,
    fault_at_end,
    fault_in,
    has_form,
    is_better,
    may_rescue,
    rescues,
    signal_of,
)
from moyin.text.routing.routed_call import Hold, RoutedCall

__all__ = ["Review"]

_log = logging.getLogger(__name__)
# Asks a candidate, and says why in the answer; None when its breaker lets nobody through.
_Ask: TypeAlias = Callable[[RoutedCall, Candidate, str], Awaitable[Answer | None]]


class AnswerReviewer:
    """Looks at answers whose quality was weighed; others pass untouched.

    Args:
        learning: takes what is found; None: nothing is learned.
        follow_ups: notices what clients do after an answer; None: nobody does.
    """

    def __init__(self, learning: Learning | None, follow_ups: FollowUps | None) -> None:
        self._learning = learning
        self._follow_ups = follow_ups

    def noticed(self, call: RoutedCall, route: CompiledRoute) -> bool:
        """Say in the task whether it is learned from; returns whether the request says that an earlier
        answer did not help, which is looked for at once where models may be tried."""
        learning, follow_ups = self._learning, self._follow_ups
        if learning is None or call.needs.embeddings:
            return False
        awaited = follow_ups is not None and follow_ups.awaits(route)
        if not awaited and call.quality is None:
            return False
        call.is_learned_from = learning.background.share.accept(call.context.owner)
        may_try = call.quality is not None and route.explore > 0
        if follow_ups is None or not awaited or not (call.is_learned_from or may_try):
            return False
        look = partial(follow_ups.noticed, call.conversation, route, learning.now())
        if may_try:
            found: list[bool] = []
            self._later(call, lambda: found.append(look()))
            learning.background.work()
            return any(found)
        self._later(call, look)
        return False

    def watch(
        self, call: RoutedCall, route: CompiledRoute, candidates: Sequence[Candidate]
    ) -> bool:
        """Say in the task how closely its stream is looked at; returns whether a better model may be
        asked after the first answer."""
        quality, policy = call.quality, route.rescue
        if quality is None or not quality.is_estimated or not can_check(call):
            return False
        rescued = may_rescue(policy, call) and any(
            is_better(one, candidates[0]) for one in candidates[1:]
        )
        if not call.request.streams:
            return rescued
        call.is_transcribed = rescued or call.is_learned_from
        if rescued:
            whole = route.hold_streams and has_form(call)
            call.hold = Hold.WHOLE if whole else Hold.BEGINNING
        return rescued

    async def reviewed(
        self,
        call: RoutedCall,
        route: CompiledRoute,
        candidates: Sequence[Candidate],
        first: tuple[Candidate, Answer],
        reserved: Decimal | None,
        ask: _Ask,
    ) -> Answer:
        """Return the answer, or where it fails what can be checked, the one of the next better
        candidate; when that one fails to answer, the first after all.

        Args:
            first: who answered, and what.
            reserved: US dollars that were set aside for the call; None: nobody counts.
        """
        answered, answer = first
        if call.quality is None or not call.quality.is_estimated:
            return answer
        # Where models may be tried, it must be known of every answer whether it is come back to.
        if call.is_learned_from or route.explore:
            self._note(call, candidates, answered)
        better_ones: list[Candidate] = []
        if may_rescue(route.rescue, call):
            after = candidates[candidates.index(answered) + 1 :]
            better_ones = [one for one in after if is_better(one, answered)]
        if not better_ones:
            self._check(call, answered, answer)
            return answer
        fault = fault_in(call, answer)
        if fault is None:
            self._await_end(call, answered, answer)
            return answer
        self._blame(call, answered, fault)
        if not rescues(route.rescue, call, fault):
            return answer
        # Once is enough.
        call.hold = Hold.NONE
        for candidate in better_ones:
            if _is_in_the_way(answer, answered, candidate):
                continue
            left = call.deadline - asyncio.get_running_loop().time()
            if not can_afford(call, candidate, first, reserved=reserved, left=left):
                continue
            compared = describe_choice([candidate, answered], call.quality).partition("; ")[2]
            reason = f"rescue after {fault}; {compared}"
            try:
                better = await _instead(answer, partial(ask, call, candidate, reason))
            except MoyinError as error:
                _log.info("request %s: no rescue: %s", call.context.request_id, error.code)
                return answer
            if better is not None:
                # Without the options, which are counted once for each request. In any case: the
                # ledger can't say which of two answers the client got.
                self._note(call, (), candidate)
                self._check(call, candidate, better, rescued=True)
                return better
        return answer

    def _later(
        self, call: RoutedCall, work: Callable[..., object], *args: Any, size: int = 0
    ) -> None:
        if self._learning is not None:
            self._learning.background.later(work, *args, size=len(call.request.raw) + size)

    def _note(self, call: RoutedCall, candidates: Sequence[Candidate], chosen: Candidate) -> None:
        if self._learning is not None:
            self._later(call, self._write, call, candidates, chosen, self._learning.now())

    def _write(
        self, call: RoutedCall, candidates: Sequence[Candidate], chosen: Candidate, at: float
    ) -> None:
        """Keep what was decided ``at``, and what may be followed up."""
        quality, context = call.quality, call.context
        assert self._learning is not None and quality is not None, "only weighed ones are noted"
        if call.is_learned_from or not candidates:
            self._learning.decided(
                context.owner, context.request_id, quality, candidates, chosen, at
            )
        if self._follow_ups is not None:
            self._follow_ups.answered(call.conversation, quality, chosen, at)

    def _check(
        self, call: RoutedCall, candidate: Candidate, answer: Answer, *, rescued: bool = False
    ) -> None:
        """See that an answer is looked at for faults later, where it is learned from."""
        if not call.is_learned_from:
            return
        if answer.stream is None:
            look = partial(self._look, call, candidate, partial(fault_in, call, answer), rescued)
            self._later(call, look, size=len(answer.body))
        elif (fault := fault_in(call, answer)) is not None:
            # It was found while the stream was held back.
            self._blame(call, candidate, fault, rescued=rescued)
        else:
            self._await_end(call, candidate, answer, rescued=rescued)

    def _await_end(
        self, call: RoutedCall, candidate: Candidate, answer: Answer, *, rescued: bool = False
    ) -> None:
        """See that a stream is looked at when it has ended."""
        stream = answer.stream
        if (
            not call.is_learned_from
            or not isinstance(stream, MeteredStream)
            or stream.transcript is None
        ):
            return
        seen = partial(fault_at_end, call, stream.transcript)
        look = partial(self._later, call, self._look, call, candidate, seen, rescued)
        if stream.complete:
            look()
        else:
            stream.ended = look

    def _look(
        self,
        call: RoutedCall,
        candidate: Candidate,
        fault_of: Callable[[], str | None],
        rescued: bool,
    ) -> None:
        if (fault := fault_of()) is not None:
            self._blame(call, candidate, fault, rescued=rescued)

    def _blame(
        self, call: RoutedCall, candidate: Candidate, fault: str, *, rescued: bool = False
    ) -> None:
        """Note that the candidate's answer has a fault, where it is learned from.

        Args:
            rescued: it was asked for in the place of another.
        """
        forecast, context = candidate.forecast, call.context
        if self._learning is None or not call.is_learned_from:
            return
        if forecast is not None and forecast.estimate is not None:
            signal = signal_of(call, candidate, fault, rescued=rescued)
            expected = forecast.estimate.p
            self._learning.observed(
                context.owner, context.request_id, signal, p_good=expected, comment=fault
            )


async def _instead(answer: Answer, ask: Callable[[], Awaitable[Answer | None]]) -> Answer | None:
    """Return another answer and give up ``answer``, unless there is none. A client that leaves
    meanwhile leaves both.

    Raises:
        MoyinError: the other's failure. ``answer`` goes on.
    """
    better: Answer | None = None
    try:
        better = await ask()
        if better is not None:
            await _give_up(answer)
    except MoyinError:
        raise
    except BaseException:
        await _give_up(answer)
        if better is not None:
            await _give_up(better)
        raise
    return better


async def _give_up(answer: Answer) -> None:
    if answer.stream is not None:
        await answer.stream.aclose()


def _is_in_the_way(answer: Answer, answered: Candidate, other: Candidate) -> bool:
    """Whether a stream that has not ended has the last place at the back end of another candidate. It
    is given up for a better answer only."""
    runtime = other.target.runtime
    running = isinstance(answer.stream, MeteredStream) and not answer.stream.complete
    return running and runtime is answered.target.runtime and runtime.slots.full
