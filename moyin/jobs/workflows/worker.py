"""Runs the Temporal workers of a process, and the sweeper that starts jobs without a workflow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Protocol

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from moyin.errors import MoyinError, ServiceUnavailable
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, JOBS_QUEUE, WEBHOOKS_QUEUE
from moyin.store.jobs import JobStore

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 10.0
_GRACE = timedelta(seconds=10)


class WorkerRunner:
    """Connects to Temporal and runs several workers until `stop` is called.

    The runner waits for Temporal during an outage. If one worker fails, all are replaced.

    Args:
        new_workers: a function that creates the workers for a connection.

    Attributes:
        error: the error that ended the latest workers; None while workers run or wait for Temporal.
    """

    def __init__(
        self,
        temporal: TemporalConnection,
        new_workers: Callable[[Client], Awaitable[Sequence[Worker]]],
    ) -> None:
        self._temporal = temporal
        self._new_workers = new_workers
        self._workers: Sequence[Worker] = ()
        self._stopping = asyncio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                self._workers = await self._new_workers(await self._temporal.get_client())
                self.error = None
                await self._run_all()
                pause = _FIRST_PAUSE_SECONDS
            except ServiceUnavailable as error:
                _log.info("the workers wait for Temporal: %s", error)
            except Exception as error:
                self.error = error
                _log.exception("a Temporal worker failed; all workers are started again")
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    async def stop(self) -> None:
        """Stop polling, wait for running tasks up to the grace period, and let `run` return."""
        self._stopping.set()
        await self._shut_down()

    async def _run_all(self) -> None:
        """Run the workers until one of them ends or `stop` is called, then shut down the others."""
        worker_tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        stop_task = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((*worker_tasks, stop_task), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop_task.cancel()
            await self._shut_down()
            results = await asyncio.gather(*worker_tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _shut_down(self) -> None:
        await asyncio.gather(*(worker.shutdown() for worker in self._workers))


class Sweeper:
    """Starts the workflows of accepted jobs that have none.

    Such a job was accepted while Temporal was unavailable, or by a gateway replica that died before
    it started the workflow.

    The sweeper also starts the webhooks of jobs that were cancelled before they had a workflow. Any
    number of sweepers may run concurrently, because starting a job twice has no effect.

    Args:
        min_age: the minimum age of jobs to start; younger jobs are still being started by their
            gateway.
    """

    def __init__(
        self,
        *,
        jobs: JobStore,
        launcher: JobLauncher,
        interval: timedelta = timedelta(seconds=2),
        min_age: timedelta = timedelta(seconds=5),
    ) -> None:
        self._jobs = jobs
        self._launcher = launcher
        self._interval = interval.total_seconds()
        self._min_age = min_age

    async def run(self) -> None:
        """Call `sweep` repeatedly until cancelled, and continue after errors and outages."""
        while True:
            try:
                await self.sweep()
            except Exception:
                _log.exception("the search for jobs without a workflow failed and is repeated")
            await asyncio.sleep(self._interval)

    async def sweep(self) -> int:
        """Start the missing workflows of jobs and webhooks, and return how many were started."""
        started_count = 0
        for job_id, attempt, has_ended in await self._jobs.list_undispatched(self._min_age):
            try:
                if has_ended:
                    await self._launcher.start_webhook(job_id, attempt)
                else:
                    await self._launcher.start(job_id)
                started_count += 1
            except MoyinError as error:
                # A job that cannot start must not delay the others.
                _log.info("job %s cannot start yet: %s", job_id, error)
        return started_count


class BackgroundSweeper(Protocol):
    """The interface of a task that repeatedly starts missing workflows until it is cancelled."""

    async def run(self) -> None:
        """Start missing workflows repeatedly until cancelled."""


class JobRunner(WorkerRunner):
    """Runs the Temporal workers of the queues ``jobs`` and ``webhooks``, and a `Sweeper`.

    Args:
        extra_worker_factories: functions that create the workers of other queues.
        extra_sweepers: the sweepers to run in addition.
    """

    def __init__(
        self,
        *,
        temporal: TemporalConnection,
        activities: JobActivities,
        sweeper: Sweeper,
        concurrency: int,
        extra_worker_factories: Sequence[Callable[[Client], Worker]] = (),
        extra_sweepers: Sequence[BackgroundSweeper] = (),
    ) -> None:
        async def new_workers(client: Client) -> list[Worker]:
            return [
                _new_job_worker(client, activities, concurrency),
                _new_webhook_worker(client, activities, concurrency),
                *(new_worker(client) for new_worker in extra_worker_factories),
            ]

        super().__init__(temporal, new_workers)
        self._sweepers: Sequence[BackgroundSweeper] = (sweeper, *extra_sweepers)

    async def run(self) -> None:
        """Run the workers and the sweepers until `stop` is called."""
        sweeper_tasks = [asyncio.create_task(sweeper.run()) for sweeper in self._sweepers]
        try:
            await super().run()
        finally:
            for task in sweeper_tasks:
                task.cancel()
            await asyncio.gather(*sweeper_tasks, return_exceptions=True)


def _new_job_worker(client: Client, activities: JobActivities, concurrency: int) -> Worker:
    return Worker(
        client,
        task_queue=JOBS_QUEUE,
        workflows=[JobWorkflow, WebhookWorkflow],
        # Not sandboxed: Temporal's sandbox would import the workflow's module again for every job,
        # which takes a third of the processor time of a job. The unit tests use the sandbox.
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.jobs_queue_activities,
        max_concurrent_activities=concurrency,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        # The time after which another worker takes over a workflow that this worker has in memory.
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )


def _new_webhook_worker(client: Client, activities: JobActivities, concurrency: int) -> Worker:
    return Worker(
        client,
        task_queue=WEBHOOKS_QUEUE,
        activities=[activities.deliver_webhook],
        max_concurrent_activities=concurrency,
        graceful_shutdown_timeout=_GRACE,
    )
