"""Calls a second back end when the first is slower than usual to begin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from moyin.text.routing.answer import Answer

__all__ = ["HedgeBudget", "race_calls"]

# Credit saved in quiet times, for bursts of slow answers.
_MAX_CREDIT = 10.0


class HedgeBudget:
    """Limits the share of requests that are sent twice.

    Each request earns its share of a second call, and each second call spends one.
    """

    def __init__(self) -> None:
        self._credit = 0.0

    def earn(self, share: float) -> None:
        """Credit one request with its share of a second call."""
        self._credit = min(self._credit + share, _MAX_CREDIT)

    def try_spend(self) -> bool:
        """Spend one second call; return False if the credit is too small."""
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


async def race_calls(
    first: Awaitable[Answer | None],
    second: Callable[[], Awaitable[Answer | None]],
    *,
    after: float,
    may_start_second: Callable[[], bool],
) -> Answer | None:
    """Return the answer that begins first and cancel the other call.

    None from one call means that its breaker lets no request through; the other call goes on.

    Args:
        first: started at once.
        second: started if the first has not begun to answer after ``after`` seconds and
            ``may_start_second`` agrees.

    Raises:
        MoyinError: the failure of ``first``, if there is no answer.
    """
    first_task = asyncio.ensure_future(first)
    running = {first_task}
    try:
        done, _ = await asyncio.wait(running, timeout=after)
        if not done and may_start_second():
            running.add(asyncio.ensure_future(second()))
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            began = [task.result() for task in done if task.exception() is None]
            answers = [answer for answer in began if answer is not None]
            if answers:
                # Both answered at the same moment: close the other one.
                for surplus in answers[1:]:
                    await _close(surplus)
                return answers[0]
            if not running:
                return first_task.result()
    finally:
        for task in running:
            task.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(outcome, Answer):
                await _close(outcome)


async def _close(answer: Answer | None) -> None:
    if answer is not None and answer.stream is not None:
        await answer.stream.aclose()
