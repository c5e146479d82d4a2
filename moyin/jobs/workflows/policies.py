"""Defines how activities are retried, limited in time, and protected from cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.common import RetryPolicy

T = TypeVar("T")
# Checkpoints are retried for ever, however long the SQL database is unavailable.
RECORD = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=15)
)
RECORD_TIMEOUT = timedelta(seconds=30)

# A render loses a try when the replica of its pool dies; waiting costs no try. The activity itself
# limits how often a render may fail.
RENDER = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    maximum_interval=timedelta(seconds=5),
    maximum_attempts=100,
)
RENDER_TIMEOUT = timedelta(hours=6)

# These retries last for about ten minutes.
CALL = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=15,
)
CALL_TIMEOUT = timedelta(minutes=30)

# The longest time of a step, including queueing and retries; the job's deadline may be earlier.
STEP_LIMIT = timedelta(days=7)

# The intervals are 5 s, 15 s, 45 s and so on up to 4 h, for about a dozen tries in a day.
WEBHOOK = RetryPolicy(
    initial_interval=timedelta(seconds=5),
    backoff_coefficient=3,
    maximum_interval=timedelta(hours=4),
)
WEBHOOK_TIMEOUT = timedelta(seconds=20)
# Retries end before the job is pruned, which is after a day at the earliest (MOYIN_KEEP_JOBS_DAYS).
WEBHOOK_LIMIT = timedelta(hours=24)

# The judge may wait for hours until back ends are idle. If it gives up, only a verdict is lost.
JUDGE = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=5))
JUDGE_CALL_TIMEOUT = timedelta(minutes=15)
JUDGE_STEP_LIMIT = timedelta(hours=6)
# The store deletes compared answers after a day (`moyin/store/comparisons.py`).
JUDGE_LIMIT = timedelta(hours=23)


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` and return its result; if cancelled, finish ``work`` first, then raise."""
    task = asyncio.create_task(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        raise cancellation
    return task.result()
