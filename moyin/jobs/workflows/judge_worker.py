"""The Temporal worker of the queue ``judge``."""

from __future__ import annotations

from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from moyin.jobs.workflows.judge import JudgeActivities, JudgeWorkflow
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, JUDGE_QUEUE

__all__ = ["new_judge_worker"]

_GRACE = timedelta(seconds=5)


def new_judge_worker(client: Client, activities: JudgeActivities, *, concurrency: int) -> Worker:
    """Return a worker of the queue ``judge``; ``concurrency`` bounds its simultaneous activities."""
    return Worker(
        client,
        task_queue=JUDGE_QUEUE,
        workflows=[JudgeWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.all(),
        max_concurrent_activities=concurrency,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )
