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
from moyin.jobs.workflows.client import RPC_TIMEOUT, TASK_TIMEOUT, Temporal
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from moyin.jobs.workflows.types import JOBS_QUEUE, JobInput, StepHead, WebhookInput
from moyin.store.jobs import JobStore, Launch

__all__ = [
    "DispatchBuffer",
    "JobLauncher",
    "fairness_shares",
    "job_input",
    "priority_of",
    "tenant_priority",
]

_log = logging.getLogger(__name__)
_BUFFER_SECONDS = 1.0
# Rows per SQL statement; the rest is written a second later.
_ROWS_PER_STATEMENT = 500
# Temporal's limit on fairness keys, in bytes.
_MAX_FAIRNESS_KEY = 64


class JobLauncher:
    """Implements `moyin.jobs.ports.Launcher`, which documents the methods, with Temporal."""

    def __init__(self, *, jobs: JobStore, temporal: Temporal) -> None:
        self._jobs = jobs
        self._temporal = temporal
        self._dispatched = DispatchBuffer(jobs)

    async def start(self, job_id: str, launch: Launch | None = None) -> None:
        """Start the job's current attempt, unless it is running already."""
        client = await self._temporal.client()
        is_first = launch is not None
        launch = launch or await self._jobs.get_launch(job_id)
        try:
            await client.start_workflow(
                JobWorkflow.run,
                job_input(launch),
                id=job_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                memo={"attempt": launch.attempt},
                task_timeout=TASK_TIMEOUT,
                priority=priority_of(launch),
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            await self._check_running(client, launch)
        except RPCError as error:
            raise self._temporal.unavailable(error) from error
        if is_first:
            self._dispatched.add(job_id)
        else:
            await self._jobs.mark_dispatched(job_id, attempt=launch.attempt)

    async def cancel(self, job_id: str, attempt: int) -> bool:
        """Request the cancellation of the attempt's workflow; return False if it is not running."""
        client = await self._temporal.client()
        try:
            described = await client.get_workflow_handle(job_id).describe(rpc_timeout=RPC_TIMEOUT)
            if described.status is not WorkflowExecutionStatus.RUNNING:
                return False
            # Name this very run: Temporal accepts the cancellation of a closed run without effect,
            # and by the time of a later check the next attempt might be running.
            handle = client.get_workflow_handle(job_id, run_id=described.run_id)
            await handle.cancel(rpc_timeout=RPC_TIMEOUT)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise self._temporal.unavailable(error) from error
        # The run may belong to an earlier attempt that is still closing.
        run_attempt: Any = await described.memo_value("attempt", None)
        return bool(run_attempt == attempt)

    async def notify(self, job_id: str, attempt: int) -> None:
        """Send the job's webhook, if it has one, for an attempt that ended without a workflow."""
        if (await self._jobs.get_launch(job_id)).webhook is not None:
            await self._start_webhook(job_id, attempt)
        await self._jobs.mark_dispatched(job_id, attempt=attempt)

    async def _start_webhook(self, job_id: str, attempt: int) -> None:
        client = await self._temporal.client()
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
            _log.info("the webhook of job %s has been started already", job_id)
        except RPCError as error:
            raise self._temporal.unavailable(error) from error

    async def ping(self) -> None:
        """Raise ServiceUnavailable if Temporal does not respond."""
        await self._temporal.ping()

    async def close(self) -> None:
        """Write the buffered marks."""
        await self._dispatched.close()

    async def _check_running(self, client: Client, launch: Launch) -> None:
        """Raise ServiceUnavailable unless the workflow under the job's id is this attempt's."""
        try:
            described = await client.get_workflow_handle(launch.job_id).describe(
                rpc_timeout=RPC_TIMEOUT
            )
        except RPCError as error:
            raise self._temporal.unavailable(error) from error
        attempt: Any = await described.memo_value("attempt", None)
        if attempt != launch.attempt:
            raise ServiceUnavailable(
                "an earlier attempt of the job is still closing", retry_after=1
            )


class DispatchBuffer:
    """Collects the ids of started jobs and marks their rows as dispatched, a second later.

    The sweeper starts rows without that mark. Most jobs are running by then and their rows show it,
    so nothing is written for them. A mark that is lost with its process does no harm: starting a
    job twice has no effect.
    """

    def __init__(self, jobs: JobStore, *, seconds: float = _BUFFER_SECONDS) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._pending: dict[str, None] = {}
        self._writing: asyncio.Task[None] | None = None

    def add(self, job_id: str) -> None:
        """Mark the job's row with the next write."""
        self._pending[job_id] = None
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_later())

    async def close(self) -> None:
        """Write all pending marks."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        while self._pending:
            await self._write()

    async def _write_later(self) -> None:
        while self._pending:
            await asyncio.sleep(self._seconds)
            await self._write()

    async def _write(self) -> None:
        ids = list(self._pending)[:_ROWS_PER_STATEMENT]
        for job_id in ids:
            del self._pending[job_id]
        try:
            await self._jobs.mark_dispatched(*ids)
        except (SQLAlchemyError, OSError) as error:
            _log.warning("%d jobs will be started a second time: %s", len(ids), error)


def job_input(launch: Launch) -> JobInput:
    """Return the workflow's argument for the next attempt of a job."""
    return JobInput(
        job_id=launch.job_id,
        owner=launch.owner,
        attempt=launch.attempt,
        spec=launch.spec,
        steps=tuple(StepHead(kind=kind, pool=pool) for kind, pool in launch.heads),
        # Of a batch's many children the workflow needs to know only which ones are done.
        done=launch.done
        if launch.children is None
        else tuple(StepResult(index=r.index, output=r.output) for r in launch.done),
        webhook=launch.webhook is not None,
        deadline=launch.deadline,
        parallel=launch.children is not None,
    )


def priority_of(launch: Launch) -> Priority:
    """Return a share of the queue for the owner and class, twice that of the next class.

    Temporal's priority key is not used: its order is strict, so the urgent jobs of one owner could
    delay the jobs of all others for ever.
    """
    key, share = fairness_shares(launch.owner)[launch.priority - 1]
    return Priority(fairness_key=key, fairness_weight=share)


def fairness_shares(owner: str) -> list[tuple[str, float]]:
    """Return Temporal's fairness key and weight for each class of an owner's jobs, in order."""
    return [(_fairness_key(f"{p}:{owner}"), 2.0 ** (5 - p)) for p in range(1, 6)]


def tenant_priority(owner: str) -> Priority:
    """Return an equal share of the queue for each owner."""
    return Priority(fairness_key=_fairness_key(owner))


def _fairness_key(name: str) -> str:
    return name.encode()[:_MAX_FAIRNESS_KEY].decode(errors="ignore")
