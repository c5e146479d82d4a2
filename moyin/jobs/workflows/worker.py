"""`JobRunner`: a Temporal worker and the sweeper, kept running for as long as asked."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from moyin.errors import MoyinError
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.client import JobLauncher, Temporal
from moyin.jobs.workflows.job import JobWorkflow
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, JOBS_QUEUE, WEBHOOKS_QUEUE
from moyin.jobs.workflows.webhook import WebhookWorkflow
from moyin.jobs.workflows.worker_runner import WorkerRunner
from moyin.store.jobs import JobStore

__all__ = ["JobRunner", "Sweeper", "new_webhook_worker", "new_worker"]

_log = logging.getLogger(__name__)
_GRACE = timedelta(seconds=10)


def new_worker(client: Client, activities: JobActivities, *, concurrency: int = 50) -> Worker:
    """A worker of the queue ``jobs``; ``concurrency`` bounds its simultaneous activities."""
    return Worker(
        client,
        task_queue=JOBS_QUEUE,
        workflows=[JobWorkflow, WebhookWorkflow],
        # The sandbox would import the workflow's module anew for every job, which is a third of the
        # processor time that a job costs this worker. The unit tests run in it.
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.all(),
        max_concurrent_activities=concurrency,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        # How long a workflow waits for the worker that knows it, before any other may go on.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )


def new_webhook_worker(
    client: Client, activities: JobActivities, *, concurrency: int = 50
) -> Worker:
    """A worker of the queue ``webhooks``; ``concurrency`` bounds the calls under way."""
    return Worker(
        client,
        task_queue=WEBHOOKS_QUEUE,
        activities=[activities.deliver_webhook],
        max_concurrent_activities=concurrency,
        graceful_shutdown_timeout=_GRACE,
    )


class Sweeper:
    """Starts jobs that were accepted but have no workflow, because something died in between, and
    sends the webhooks of those that were cancelled before they had one.

    Any number may run side by side: a start under a known id is harmless.

    Args:
        older_than: leaves younger rows to the gateway that is just starting them.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        launcher: JobLauncher,
        interval: timedelta = timedelta(seconds=2),
        older_than: timedelta = timedelta(seconds=5),
    ) -> None:
        self._jobs = jobs
        self._launcher = launcher
        self._interval = interval.total_seconds()
        self._older_than = older_than

    async def run(self) -> None:
        """Sweep until cancelled; outages of the database or Temporal only delay it."""
        while True:
            try:
                await self.sweep()
            except Exception:
                _log.exception("sweep failed; trying again")
            await asyncio.sleep(self._interval)

    async def sweep(self) -> int:
        """Start what is due, as far as that works; returns how many were started."""
        started = 0
        for job_id, attempt, ended in await self._jobs.undispatched(self._older_than):
            try:
                if ended:
                    await self._launcher.notify(job_id, attempt)
                else:
                    await self._launcher.start(job_id)
                started += 1
            except MoyinError as error:
                # Each on its own: one job that can't start must not hold up the others.
                _log.info("job %s waits: %s", job_id, error)
        return started


class JobRunner:
    """Runs the workers of jobs and webhooks, and the sweeper beside them."""

    def __init__(
        self, *, temporal: Temporal, activities: JobActivities, sweeper: Sweeper, concurrency: int
    ) -> None:
        def make(client: Client) -> list[Worker]:
            return [
                new(client, activities, concurrency=concurrency)
                for new in (new_worker, new_webhook_worker)
            ]

        self._runner = WorkerRunner(temporal, make)
        self._sweeper = sweeper

    @property
    def error(self) -> BaseException | None:
        """Why the last workers ended; None: they run, or wait for Temporal."""
        return self._runner.error

    async def run(self) -> None:
        """Work until `stop`; outages of Temporal only delay it."""
        sweeping = asyncio.create_task(self._sweeper.run())
        try:
            await self._runner.run()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def stop(self) -> None:
        """Take no more tasks, give running ones a moment, and let `run` return."""
        await self._runner.stop()
