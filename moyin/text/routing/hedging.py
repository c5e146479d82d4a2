"""Hedges requests: calls a second back end when the first begins later than usual."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from moyin.text.routing.answer import Answer

# Maximum number of credits, so that a burst of slow answers causes at most so many second calls.
_MAX_CREDIT = 10.0


class HedgeBudget:
    """Token bucket that limits the share of requests that are sent to a second back end.

    Each request adds a fraction of a credit. Calling a second back end costs one credit.
    """

    def __init__(self) -> None:
        self._credit = 0.0

    def add_credit(self, share: float) -> None:
        """Add the fraction of a credit that one request earns.

        Args:
            share: the maximum share of requests that are sent to a second back end.
        """
        self._credit = min(self._credit + share, _MAX_CREDIT)

    def try_spend_credit(self) -> bool:
        """Spend one credit on calling a second back end; return False if there is less than one."""
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


async def race_calls(
    first_call: Awaitable[Answer | None],
    start_second_call: Callable[[], Awaitable[Answer | None]],
    *,
    delay_seconds: float,
    may_start_second: Callable[[], bool],
) -> Answer | None:
    """Run one or two calls, return the answer that begins first, and cancel the other call.

    Args:
        first_call: the call that starts immediately. A call returns None if the breaker of its back
            end rejects the request; the other call then continues.
        start_second_call: starts the other call. It is used if the first call has not begun to
            answer in time.
        delay_seconds: seconds after which the second call may start.
        may_start_second: returns False to prevent the second call.

    Returns:
        The answer; None if no call answered, and the first one was rejected by a breaker.

    Raises:
        MoyinError: no call answered; this is the error of the first call.
    """
    first_task = asyncio.ensure_future(first_call)
    running_tasks = {first_task}
    try:
        done_tasks, _ = await asyncio.wait(running_tasks, timeout=delay_seconds)
        if not done_tasks and may_start_second():
            running_tasks.add(asyncio.ensure_future(start_second_call()))
        while True:
            done_tasks, running_tasks = await asyncio.wait(
                running_tasks, return_when=asyncio.FIRST_COMPLETED
            )
            results = [task.result() for task in done_tasks if task.exception() is None]
            answers = [answer for answer in results if answer is not None]
            if answers:
                # Both calls began to answer at the same moment.
                for surplus_answer in answers[1:]:
                    await surplus_answer.close()
                return answers[0]
            if not running_tasks:
                return first_task.result()
    finally:
        for task in running_tasks:
            task.cancel()
        for outcome in await asyncio.gather(*running_tasks, return_exceptions=True):
            if isinstance(outcome, Answer):
                await outcome.close()
