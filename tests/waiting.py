"""Waits for conditions in tests of processes and servers."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

# Short at first, for what is nearly there; long at last, since looking may be costly.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1


async def eventually(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Call ``condition``, which may be a coroutine function, until its result is true; return it."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        _check_deadline(deadline, seconds, value)
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def eventually_blocking(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait like `eventually`, but by blocking the thread; ``condition`` is a plain function."""
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while not (value := condition()):
        _check_deadline(deadline, seconds, value)
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    return value


def _check_deadline(deadline: float, timeout_seconds: float, value: object) -> None:
    if time.monotonic() > deadline:
        raise AssertionError(f"the condition is still {value!r} after {timeout_seconds} s")
