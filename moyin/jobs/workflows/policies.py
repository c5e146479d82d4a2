"""Sets the retry policy and the timeouts of each activity."""

from __future__ import annotations

from datetime import timedelta

from temporalio.common import RetryPolicy

# A checkpoint is worth waiting for the SQL database, however long it is unavailable.
RECORD = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=15)
)
RECORD_TIMEOUT = timedelta(seconds=30)

# Waiting for a free slot costs no attempt, but the death of the pool's replica costs one to every
# render that waits there. The activity itself limits how often a render may fail.
RENDER = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    maximum_interval=timedelta(seconds=5),
    maximum_attempts=100,
)
RENDER_TIMEOUT = timedelta(hours=6)

# Lasts for about ten minutes of a service's outage.
CALL = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=15,
)
CALL_TIMEOUT = timedelta(minutes=30)

# The longest time of a step, queueing and retries included; a job's deadline may be shorter.
STEP_LIMIT = timedelta(days=7)

# 5 s, 15 s, 45 s, … 4 h: about a dozen tries in a day.
WEBHOOK = RetryPolicy(
    initial_interval=timedelta(seconds=5),
    backoff_coefficient=3,
    maximum_interval=timedelta(hours=4),
)
WEBHOOK_TIMEOUT = timedelta(seconds=20)
WEBHOOK_LIMIT = timedelta(hours=24)

# The judge may wait for hours until the back ends are idle; if it gives up, only a verdict is lost.
JUDGE = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=5))
JUDGE_CALL_TIMEOUT = timedelta(minutes=15)
JUDGE_STEP_LIMIT = timedelta(hours=6)
# Compared answers are stored for a day (`moyin/store/comparisons.py`).
JUDGE_LIMIT = timedelta(hours=23)
