"""Asking a second back end when the first is slower than usual to begin."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from moyin.text.routing.answer import Answer

__all__ = ["Hedge", "race"]

# Saved up over quiet times, so that a bad moment finds some.
_LARGEST_SAVING = 10.0


class Hedge:
    """Keeps the share of requests that are asked twice: each adds its share, each second question
    takes one whole."""

    def __init__(self) -> None:
        self._saved = 0.0

    def count(self, share: float) -> None:
        self._saved = min(self._saved + share, _LARGEST_SAVING)

    def spend(self) -> bool:
        """Whether one more may be asked twice."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True


async def race(
    first: Awaitable[Answer | None],
    second: Callable[[], Awaitable[Answer | None]],
    *,
    after: float,
    may: Callable[[], bool],
) -> Answer | None:
    """The answer that begins first; the other is cancelled. None from one of them, whose back end
    lets nobody through by now, is no answer: the other goes on.

    Args:
        first: begins at once.
        second: begins when the first has not begun to answer ``after`` seconds later, and
            ``may`` agrees.

    Raises:
        MoyinError: the failure of ``first``, when nobody answers.
    """
    asked = asyncio.ensure_future(first)
    running = {asked}
    try:
        done, _ = await asyncio.wait(running, timeout=after)
        if not done and may():
            running.add(asyncio.ensure_future(second()))
        while True:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            began = [task.result() for task in done if task.exception() is None]
            answers = [answer for answer in began if answer is not None]
            if answers:
                # Both in the same moment: the other one is given back.
                for spare in answers[1:]:
                    await _drop(spare)
                return answers[0]
            if not running:
                return asked.result()
    finally:
        for task in running:
            task.cancel()
        for outcome in await asyncio.gather(*running, return_exceptions=True):
            if isinstance(outcome, Answer):
                await _drop(outcome)


async def _drop(answer: Answer | None) -> None:
    if answer is not None and answer.stream is not None:
        await answer.stream.aclose()
