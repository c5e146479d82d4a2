"""Defines `JobLauncher`, which starts and cancels the workflows of jobs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import Priority, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from moyin.domain.job import StepResult
from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.client import RPC_TIMEOUT, TASK_TIMEOUT, TemporalConnection
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from moyin.jobs.workflows.types import JOBS_QUEUE, JobInput, StepRouting, WebhookInput
from moyin.store.jobs import JobStore, Launch

_log = logging.getLogger(__name__)
_BUFFER_SECONDS = 1.0
# The most rows in an SQL statement; the remaining rows are written a second later.
_ROWS_PER_STATEMENT = 500
# Temporal's limit on the length of fairness keys, in bytes.
_MAX_FAIRNESS_KEY = 64


class JobLauncher:
    """Implements `moyin.jobs.ports.Launcher` with Temporal."""

    def __init__(self, *, jobs: JobStore, temporal: TemporalConnection) -> None:
        self._jobs = jobs
        self._temporal = temporal
        self._dispatched = DispatchBuffer(jobs)

    async def start(self, job_id: str, launch: Launch | None = None) -> None:
        client = await self._temporal.get_client()
        is_first = launch is not None
        launch = launch or await self._jobs.get_launch(job_id)
        try:
            await client.start_workflow(
                JobWorkflow.run,
                build_job_input(launch),
                id=job_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                memo={"attempt": launch.attempt},
                task_timeout=TASK_TIMEOUT,
                priority=get_job_priority(launch),
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            await self._check_attempt_running(client, launch)
        except RPCError as error:
            raise self._temporal.report_outage(error) from error
        if is_first:
            self._dispatched.add(job_id)
        else:
            await self._jobs.mark_dispatched(job_id, attempt=launch.attempt)

    async def cancel(self, job_id: str, attempt: int) -> bool:
        client = await self._temporal.get_client()
        try:
            description = await client.get_workflow_handle(job_id).describe(rpc_timeout=RPC_TIMEOUT)
            if description.status is not WorkflowExecutionStatus.RUNNING:
                return False
            # With the run id, a next attempt that is already running is not cancelled. Cancelling a
            # closed run has no effect.
            handle = client.get_workflow_handle(job_id, run_id=description.run_id)
            await handle.cancel(rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise self._temporal.report_outage(error) from error
        # An earlier attempt's workflow may still be running; it is about to end.
        running_attempt: Any = await description.memo_value("attempt", None)
        return bool(running_attempt == attempt)

    async def start_webhook(self, job_id: str, attempt: int) -> None:
        if (await self._jobs.get_launch(job_id)).webhook is not None:
            await self._start_webhook_workflow(job_id, attempt)
        await self._jobs.mark_dispatched(job_id, attempt=attempt)

    async def _start_webhook_workflow(self, job_id: str, attempt: int) -> None:
        client = await self._temporal.get_client()
        try:
            await client.start_workflow(
                WebhookWorkflow.run,
                WebhookInput(job_id=job_id, attempt=attempt),
                id=f"webhook-{job_id}-{attempt}",
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            _log.info("the webhook of job %s was started before", job_id)
        except RPCError as error:
            raise self._temporal.report_outage(error) from error

    async def ping(self) -> None:
        await self._temporal.ping()

    async def close(self) -> None:
        """Write the marks that are still in the `DispatchBuffer` to the rows of their jobs."""
        await self._dispatched.close()

    async def _check_attempt_running(self, client: Client, launch: Launch) -> None:
        """Raise ServiceUnavailable if the workflow of an earlier attempt of the job still runs."""
        try:
            description = await client.get_workflow_handle(launch.job_id).describe(
                rpc_timeout=RPC_TIMEOUT
            )
        except RPCError as error:
            raise self._temporal.report_outage(error) from error
        running_attempt: Any = await description.memo_value("attempt", None)
        if running_attempt != launch.attempt:
            raise ServiceUnavailable(
                f"attempt {running_attempt} of job {launch.job_id} has not ended yet; try again in a second",
                retry_after=1,
            )


class DispatchBuffer:
    """Marks the rows of started jobs as dispatched, many at a time, a second after their start.

    The sweeper, a background task, starts queued jobs that lack this mark. The mark is delayed,
    because after a second most jobs are no longer queued, so that few rows need a mark. If marks
    are lost in a crash, the sweeper starts the jobs again, which has no effect.
    """

    def __init__(self, jobs: JobStore, *, delay_seconds: float = _BUFFER_SECONDS) -> None:
        self._jobs = jobs
        self._delay_seconds = delay_seconds
        self._pending: dict[str, None] = {}
        self._writing: asyncio.Task[None] | None = None

    def add(self, job_id: str) -> None:
        """Add a job whose workflow was started; the next write marks its row as dispatched."""
        self._pending[job_id] = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._mark_dispatched_later())

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        while self._pending:
            await self._mark_dispatched()

    async def _mark_dispatched_later(self) -> None:
        while self._pending:
            await asyncio.sleep(self._delay_seconds)
            await self._mark_dispatched()

    async def _mark_dispatched(self) -> None:
        job_ids = list(self._pending)[:_ROWS_PER_STATEMENT]
        for job_id in job_ids:
            del self._pending[job_id]
        try:
            await self._jobs.mark_dispatched(*job_ids)
        except (SQLAlchemyError, OSError) as error:
            _log.warning(
                "%d jobs could not be marked as dispatched and are started again, without effect: %s",
                len(job_ids),
                error,
            )


def build_job_input(launch: Launch) -> JobInput:
    """Return the argument of the workflow that runs the current attempt of a job."""
    return JobInput(
        job_id=launch.job_id,
        owner=launch.owner,
        attempt=launch.attempt,
        spec=launch.spec,
        steps=tuple(StepRouting(kind=kind, pool=pool) for kind, pool in launch.heads),
        # A batch may have many children, and its workflow needs only the indexes of the finished
        # ones.
        done=launch.done
        if launch.children is None
        else tuple(StepResult(index=r.index, output=r.output) for r in launch.done),
        webhook=launch.webhook is not None,
        deadline=launch.deadline,
        parallel=launch.children is not None,
    )


def get_job_priority(launch: Launch) -> Priority:
    """Return the Temporal priority of a job, which gives its owner a fair share of the queue.

    Among an owner's jobs, each priority gets twice the share of the next lower priority. Temporal's
    own priority key is not used, because its order is strict: one owner's urgent jobs could delay
    the jobs of all others without end.
    """
    key, share = compute_fairness_shares(launch.owner)[launch.priority - 1]
    return Priority(fairness_key=key, fairness_weight=share)


def compute_fairness_shares(owner: str) -> list[tuple[str, float]]:
    """Return Temporal's fairness key and weight for an owner's jobs of each priority (1 to 5)."""
    return [(_truncate_fairness_key(f"{p}:{owner}"), 2.0 ** (5 - p)) for p in range(1, 6)]


def get_tenant_priority(owner: str) -> Priority:
    """Return a Temporal priority that gives each owner an equal share of the queue."""
    return Priority(fairness_key=_truncate_fairness_key(owner))


def _truncate_fairness_key(name: str) -> str:
    return name.encode()[:_MAX_FAIRNESS_KEY].decode(errors="ignore")
