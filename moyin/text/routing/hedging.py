"""Asking a second back end when the first is slower than usual to begin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from moyin.text.routing.answer import Answer

__all__ = ["Hedge", "race"]

# Saved up over quiet times, so that a bad moment finds some.
_MAX_CREDIT = 10.0


class Hedge:
    """Keeps the share of requests that are asked twice: each adds its share, each second question
    takes one whole."""

    def __init__(self) -> None:
        self._credit = 0.0

    def earn(self, share: float) -> None:
        self._credit = min(self._credit + share, _MAX_CREDIT)

    def try_spend(self) -> bool:
        """Whether one more may be asked twice."""
        if self._credit < 1:
            return False
        self._credit -= 1
        return True


async def race(
    first: Awaitable[Answer | None],
    second: Callable[[], Awaitable[Answer | None]],
    *,
    after: float,
    may_start_second: Callable[[], bool],
) -> Answer | None:
    """The answer that begins first; the other is cancelled. None from one of them, whose back end
    lets nobody through by now, is no answer: the other goes on.

    Args:
        first: begins at once.
        second: begins when the first has not begun to answer ``after`` seconds later, and
            ``may_start_second`` agrees.

    Raises:
        MoyinError: the failure of ``first``, when nobody answers.
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
                # Both in the same moment: the other one is given back.
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
