"""Runs the Temporal workers of a process, and the sweeper beside those of jobs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from moyin.errors import MoyinError, ServiceUnavailable
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.client import Temporal
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, JOBS_QUEUE, WEBHOOKS_QUEUE
from moyin.store.jobs import JobStore

__all__ = ["JobRunner", "Sweeper", "WorkerRunner"]

_log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 0.2
_MAX_PAUSE_SECONDS = 10.0
_GRACE = timedelta(seconds=10)


class WorkerRunner:
    """Connects to Temporal and runs workers concurrently, until `stop`.

    Outages of Temporal only delay it. If one worker ends with an error, all are replaced.

    Args:
        new_workers: makes the workers for a connection.

    Attributes:
        error: the error that ended the last workers; None: they are running, or wait for Temporal.
    """

    def __init__(
        self, temporal: Temporal, new_workers: Callable[[Client], Awaitable[Sequence[Worker]]]
    ) -> None:
        self._temporal = temporal
        self._new_workers = new_workers
        self._workers: Sequence[Worker] = ()
        self._stopping = asyncio.Event()
        self.error: BaseException | None = None

    async def run(self) -> None:
        """Run the workers until `stop`."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            try:
                self._workers = await self._new_workers(await self._temporal.client())
                self.error = None
                await self._run_all()
                pause = _FIRST_PAUSE_SECONDS
            except ServiceUnavailable as error:
                _log.info("workers wait for Temporal: %s", error)
            except Exception as error:
                self.error = error
                _log.exception("a worker ended with an error; starting new ones")
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    async def stop(self) -> None:
        """Accept no more tasks, give running ones their grace period, and let `run` return."""
        self._stopping.set()
        await self._shut_down()

    async def _run_all(self) -> None:
        """Run the workers until one of them ends or `stop` is called; then end all of them."""
        running = [asyncio.create_task(worker.run()) for worker in self._workers]
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((*running, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await self._shut_down()
            results = await asyncio.gather(*running, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _shut_down(self) -> None:
        await asyncio.gather(*(worker.shutdown() for worker in self._workers))


class Sweeper:
    """Starts accepted jobs that have no workflow because a process died before it started one.

    It also sends the webhooks of jobs that were cancelled before they had a workflow. Any number of
    sweepers may run concurrently, because starting a job twice has no effect.

    Args:
        older_than: younger rows are left to the gateway that is starting them.
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
        """Start all due jobs that can be started, and return their number."""
        started = 0
        for job_id, attempt, has_ended in await self._jobs.list_undispatched(self._older_than):
            try:
                if has_ended:
                    await self._launcher.notify(job_id, attempt)
                else:
                    await self._launcher.start(job_id)
                started += 1
            except MoyinError as error:
                # A job that cannot start must not delay the others.
                _log.info("job %s waits: %s", job_id, error)
        return started


class JobRunner:
    """Runs the workers of jobs and webhooks, and the sweeper beside them.

    Args:
        concurrency: most steps at a time, and most webhooks at a time.
    """

    def __init__(
        self, *, temporal: Temporal, activities: JobActivities, sweeper: Sweeper, concurrency: int
    ) -> None:
        async def new_workers(client: Client) -> list[Worker]:
            return [
                _new_job_worker(client, activities, concurrency),
                _new_webhook_worker(client, activities, concurrency),
            ]

        self._runner = WorkerRunner(temporal, new_workers)
        self._sweeper = sweeper

    @property
    def error(self) -> BaseException | None:
        """The error that ended the last workers; None: they are running, or wait for Temporal."""
        return self._runner.error

    async def run(self) -> None:
        """Run until `stop`; outages of Temporal only delay it."""
        sweeping = asyncio.create_task(self._sweeper.run())
        try:
            await self._runner.run()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def stop(self) -> None:
        """Accept no more tasks, give running ones their grace period, and let `run` return."""
        await self._runner.stop()


def _new_job_worker(client: Client, activities: JobActivities, concurrency: int) -> Worker:
    return Worker(
        client,
        task_queue=JOBS_QUEUE,
        workflows=[JobWorkflow, WebhookWorkflow],
        # The sandbox would import the workflow's module again for every job, a third of the
        # processor time that a job costs this worker. The unit tests run in the sandbox.
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.of_jobs_queue,
        max_concurrent_activities=concurrency,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        # How long a workflow waits for the worker that has it in memory, before another continues.
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
