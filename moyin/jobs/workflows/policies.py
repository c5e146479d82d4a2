"""How often and how long each activity is tried."""

from __future__ import annotations

from datetime import timedelta

from temporalio.common import RetryPolicy

# The SQL database may be away for as long as it likes: a checkpoint is worth the wait.
RECORD = RetryPolicy(
    initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=15)
)
RECORD_TIMEOUT = timedelta(seconds=30)

# Waiting for a free worker is not an attempt, but the death of the pool's replica is, and everything
# that waits there has one. What a render itself may cost is counted by the activity.
RENDER = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    maximum_interval=timedelta(seconds=5),
    maximum_attempts=100,
)
RENDER_TIMEOUT = timedelta(hours=6)

# About ten minutes of a service being away.
CALL = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    maximum_interval=timedelta(minutes=1),
    maximum_attempts=15,
)
CALL_TIMEOUT = timedelta(minutes=30)

# From first try to giving up, queueing and retries included; a job's own deadline may be shorter.
STEP_LIMIT = timedelta(days=7)

# 5 s, 15 s, 45 s, … 4 h: about a dozen tries in a day.
WEBHOOK = RetryPolicy(
    initial_interval=timedelta(seconds=5),
    backoff_coefficient=3,
    maximum_interval=timedelta(hours=4),
)
WEBHOOK_TIMEOUT = timedelta(seconds=20)
WEBHOOK_LIMIT = timedelta(hours=24)

# A judge may wait for hours until nobody else needs the back ends; later nothing is lost but a verdict.
JUDGE = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=5))
JUDGE_CALL_TIMEOUT = timedelta(minutes=15)
JUDGE_STEP_LIMIT = timedelta(hours=6)
# What is compared is kept for a day (`moyin/store/comparisons.py`).
JUDGE_LIMIT = timedelta(hours=23)
