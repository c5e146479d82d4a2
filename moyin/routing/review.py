"""What happens to an answer before its client gets it: it is noted, checked, and perhaps replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import TypeAlias

from moyin.domain.transcript import Transcript
from moyin.errors import MoyinError
from moyin.routing.answer import Answer
from moyin.routing.choice import Candidate
from moyin.routing.explain import route_of
from moyin.routing.followups import FollowUps
from moyin.routing.learning import Learning
from moyin.routing.live import LiveStream
from moyin.routing.rescue import (
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
from moyin.routing.shortlist import Shortlist
from moyin.routing.task import Hold, Task

__all__ = ["Review"]

_log = logging.getLogger(__name__)
# Asks a candidate, and says why in the answer; None when its breaker lets nobody through.
_Ask: TypeAlias = Callable[[Task, Candidate, str], Awaitable[Answer | None]]


class Review:
    """Looks at answers whose quality was weighed; others pass untouched.

    Args:
        learning: takes what is found; None: nothing is learned.
        follow_ups: notices what clients do after an answer; None: nobody does.
    """

    def __init__(self, learning: Learning | None, follow_ups: FollowUps | None) -> None:
        self._learning = learning
        self._follow_ups = follow_ups

    def noticed(self, task: Task, shortlist: Shortlist) -> bool:
        """Look whether a request says something of an earlier answer; returns whether it says that
        the answer did not help."""
        if self._follow_ups is None:
            return False
        return self._follow_ups.noticed(task.conversation, shortlist)

    def watch(self, task: Task, shortlist: Shortlist, candidates: Sequence[Candidate]) -> bool:
        """Say in the task how closely its stream is looked at; returns whether a better model may be
        asked after the first answer."""
        quality, policy = task.quality, shortlist.rescue
        if quality is None or not quality.judged or not can_check(task):
            return False
        rescued = may_rescue(policy, task) and any(
            is_better(one, candidates[0]) for one in candidates[1:]
        )
        if not task.call.streams:
            return rescued
        task.watched = rescued or self._learning is not None
        if rescued:
            whole = shortlist.hold_streams and has_form(task)
            task.hold = Hold.WHOLE if whole else Hold.BEGINNING
        return rescued

    async def reviewed(
        self,
        task: Task,
        shortlist: Shortlist,
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
        if task.quality is None or not task.quality.judged:
            return answer
        self._note(task, candidates, answered)
        fault = fault_in(task, answer)
        if fault is None:
            self._await_end(task, answered, answer)
            return answer
        self._blame(task, answered, fault)
        if not rescues(shortlist.rescue, task, fault):
            return answer
        # Once is enough.
        task.hold = Hold.NOT
        for candidate in candidates[candidates.index(answered) + 1 :]:
            if _is_in_the_way(answer, answered, candidate):
                continue
            left = task.deadline - asyncio.get_running_loop().time()
            if not is_better(candidate, answered) or not can_afford(
                task, candidate, first, reserved=reserved, left=left
            ):
                continue
            compared = route_of([candidate, answered], task.quality).partition("; ")[2]
            route = f"rescue after {fault}; {compared}"
            try:
                better = await _instead(answer, partial(ask, task, candidate, route))
            except MoyinError as error:
                _log.info("request %s: no rescue: %s", task.asker.request_id, error.code)
                return answer
            if better is not None:
                # Without the options, which are counted once for each request.
                self._note(task, (), candidate)
                if (again := fault_in(task, better)) is not None:
                    self._blame(task, candidate, again, rescued=True)
                else:
                    self._await_end(task, candidate, better, rescued=True)
                return better
        return answer

    def _note(self, task: Task, candidates: Sequence[Candidate], chosen: Candidate) -> None:
        quality, asker = task.quality, task.asker
        if self._learning is None or quality is None:
            return
        self._learning.decided(asker.owner, asker.request_id, quality, candidates, chosen)
        if self._follow_ups is not None:
            self._follow_ups.answered(task.conversation, quality, chosen)

    def _await_end(
        self, task: Task, candidate: Candidate, answer: Answer, *, rescued: bool = False
    ) -> None:
        """See that a stream is looked at when it has ended."""
        stream = answer.stream
        if not isinstance(stream, LiveStream) or stream.transcript is None:
            return
        look = partial(self._look, task, candidate, stream.transcript, rescued=rescued)
        if stream.complete:
            look()
        else:
            stream.ended = look

    def _look(self, task: Task, candidate: Candidate, seen: Transcript, *, rescued: bool) -> None:
        if (fault := fault_at_end(task, seen)) is not None:
            self._blame(task, candidate, fault, rescued=rescued)

    def _blame(
        self, task: Task, candidate: Candidate, fault: str, *, rescued: bool = False
    ) -> None:
        """Note that the candidate's answer has a fault.

        Args:
            rescued: it was asked for in the place of another.
        """
        forecast, asker = candidate.forecast, task.asker
        if self._learning is not None and forecast is not None and forecast.estimate is not None:
            signal = signal_of(task, candidate, fault, rescued=rescued)
            expected = forecast.estimate.p
            self._learning.observed(
                asker.owner, asker.request_id, signal, p_good=expected, comment=fault
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
    lane = other.contender.lane
    running = isinstance(answer.stream, LiveStream) and not answer.stream.complete
    return running and lane is answered.contender.lane and lane.slots.full
