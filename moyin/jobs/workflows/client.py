"""The way to Temporal: connecting, the namespace, and starting and stopping jobs."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import Priority, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RetryConfig, RPCError, RPCStatusCode

from moyin.domain.job import StepResult
from moyin.errors import ServiceUnavailable
from moyin.jobs.workflows.converter import DATA_CONVERTER
from moyin.jobs.workflows.dispatch_buffer import DispatchBuffer
from moyin.jobs.workflows.job import JobWorkflow
from moyin.jobs.workflows.types import JOBS_QUEUE, JobInput, StepHead, WebhookInput
from moyin.jobs.workflows.webhook import WebhookWorkflow
from moyin.store.jobs import JobStore, Launch

__all__ = ["JobLauncher", "Temporal", "fairness_shares", "job_input", "priority_of", "turn_of"]

_log = logging.getLogger(__name__)
_RPC_TIMEOUT = timedelta(seconds=3)
# After so long without an answer a worker counts as gone; steps are activities and have their own.
_TASK_TIMEOUT = timedelta(seconds=5)
# After a failure callers are told at once for so long, instead of each waiting for a timeout.
_PAUSE_SECONDS = 1.0
# Temporal's limit on fairness keys, in bytes.
_MAX_FAIRNESS_KEY = 64


class Temporal:
    """One lazily made, shared connection to the namespace of the jobs."""

    def __init__(self, address: str, namespace: str, *, retention: timedelta) -> None:
        self._address = address
        self._namespace = namespace
        self._retention = retention
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._paused_until = 0.0

    async def client(self) -> Client:
        """The connected client; makes the namespace when it is missing.

        Raises:
            ServiceUnavailable: Temporal does not answer.
        """
        if time.monotonic() < self._paused_until:
            raise _unavailable()
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    self._client = await self._connect()
        return self._client

    async def ping(self) -> None:
        """Raise ServiceUnavailable when Temporal does not answer."""
        client = await self.client()
        try:
            if await client.service_client.check_health(timeout=_RPC_TIMEOUT):
                return
        except RPCError as error:
            raise self.lost(error) from error
        raise _unavailable()

    def lost(self, error: Exception) -> ServiceUnavailable:
        """What to raise for ``error``; spares the next callers the wait."""
        _log.warning("Temporal at %s: %s", self._address, error)
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        return _unavailable()

    async def _connect(self) -> Client:
        try:
            async with asyncio.timeout(_RPC_TIMEOUT.total_seconds() * 2):
                client = await Client.connect(
                    self._address,
                    namespace=self._namespace,
                    data_converter=DATA_CONVERTER,
                    retry_config=RetryConfig(max_retries=2, max_elapsed_time_millis=2_000),
                )
                await self._ensure_namespace(client)
        except (RPCError, RuntimeError, TimeoutError) as error:
            # RuntimeError is what the SDK raises when it can't connect.
            raise self.lost(error) from error
        return client

    async def _ensure_namespace(self, client: Client) -> None:
        request = RegisterNamespaceRequest(
            namespace=self._namespace,
            workflow_execution_retention_period=Duration(
                seconds=int(self._retention.total_seconds())
            ),
        )
        try:
            await client.workflow_service.register_namespace(request, timeout=_RPC_TIMEOUT)
        except RPCError as error:
            # PERMISSION_DENIED: a shared Temporal whose operator made the namespace.
            if error.status not in (
                RPCStatusCode.ALREADY_EXISTS,
                RPCStatusCode.PERMISSION_DENIED,
                RPCStatusCode.UNIMPLEMENTED,
            ):
                raise


class JobLauncher:
    """Starts, cancels and announces the workflows of jobs."""

    def __init__(self, *, jobs: JobStore, temporal: Temporal) -> None:
        self._jobs = jobs
        self._temporal = temporal
        self._marks = DispatchBuffer(jobs)

    async def start(self, job_id: str, launch: Launch | None = None) -> None:
        """Start the job's present attempt, unless it runs already.

        Args:
            launch: of a first attempt, for who has just written the row.

        Raises:
            ServiceUnavailable: Temporal is away, or an earlier attempt is still closing.
        """
        client = await self._temporal.client()
        fresh = launch is not None
        launch = launch or await self._jobs.launch(job_id)
        try:
            await client.start_workflow(
                JobWorkflow.run,
                job_input(launch),
                id=job_id,
                task_queue=JOBS_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                memo={"attempt": launch.attempt},
                task_timeout=_TASK_TIMEOUT,
                priority=priority_of(launch),
                rpc_timeout=_RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            await self._check_running(client, launch)
        except RPCError as error:
            raise self._temporal.lost(error) from error
        if fresh:
            self._marks.add(job_id)
        else:
            await self._jobs.mark_dispatched(job_id, attempt=launch.attempt)

    async def cancel(self, job_id: str, attempt: int) -> bool:
        """Ask the attempt's workflow to end as cancelled; False when it is not running.

        Raises:
            ServiceUnavailable: Temporal is away.
        """
        client = await self._temporal.client()
        try:
            described = await client.get_workflow_handle(job_id).describe(rpc_timeout=_RPC_TIMEOUT)
            if described.status is not WorkflowExecutionStatus.RUNNING:
                return False
            # Of this very run: Temporal accepts the cancellation of a closed one and does nothing,
            # and if that were looked at afterwards, the next attempt might run by then.
            handle = client.get_workflow_handle(job_id, run_id=described.run_id)
            await handle.cancel(rpc_timeout=_RPC_TIMEOUT)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise self._temporal.lost(error) from error
        # That of an earlier attempt, which is still closing, is none of this one.
        ran: Any = await described.memo_value("attempt", None)
        return bool(ran == attempt)

    async def notify(self, job_id: str, attempt: int) -> None:
        """Send the job's webhook, if it has one, for an attempt that ended without a workflow.

        Raises:
            ServiceUnavailable: Temporal is away.
        """
        if (await self._jobs.launch(job_id)).webhook is not None:
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
                rpc_timeout=_RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            _log.info("the webhook of job %s is on its way already", job_id)
        except RPCError as error:
            raise self._temporal.lost(error) from error

    async def ping(self) -> None:
        """Raise ServiceUnavailable when Temporal does not answer."""
        await self._temporal.ping()

    async def close(self) -> None:
        """Write down what is still to be written."""
        await self._marks.close()

    async def _check_running(self, client: Client, launch: Launch) -> None:
        """A workflow of this id runs: fine if it is this attempt, too early if an older one."""
        try:
            described = await client.get_workflow_handle(launch.job_id).describe(
                rpc_timeout=_RPC_TIMEOUT
            )
        except RPCError as error:
            raise self._temporal.lost(error) from error
        attempt: Any = await described.memo_value("attempt", None)
        if attempt != launch.attempt:
            raise ServiceUnavailable(
                "an earlier attempt of the job is still closing", retry_after=1
            )


def job_input(launch: Launch) -> JobInput:
    """The workflow's argument for the next attempt of a job."""
    return JobInput(
        job_id=launch.job_id,
        owner=launch.owner,
        attempt=launch.attempt,
        spec=launch.spec,
        steps=tuple(StepHead(kind=kind, pool=pool) for kind, pool in launch.heads),
        # Of many children the workflow needs to know only which are done.
        done=launch.done
        if launch.children is None
        else tuple(StepResult(index=r.index, output=r.output) for r in launch.done),
        webhook=launch.webhook is not None,
        deadline=launch.deadline,
        version=3,
        parallel=launch.children is not None,
    )


def priority_of(launch: Launch) -> Priority:
    """A share of the queue for each owner and class: twice as large as that of the next class.

    Not Temporal's priority key: its order is strict, so one owner's urgent jobs could hold up
    everybody else's for ever.
    """
    key, share = fairness_shares(launch.owner)[launch.priority - 1]
    return Priority(fairness_key=key, fairness_weight=share)


def fairness_shares(owner: str) -> list[tuple[str, float]]:
    """Temporal's key and weight of an owner's jobs in each class, the first class first."""
    return [(_fairness_key(f"{p}:{owner}"), 2.0 ** (5 - p)) for p in range(1, 6)]


def turn_of(owner: str) -> Priority:
    """Return an equal share of the queue for each owner."""
    return Priority(fairness_key=_fairness_key(owner))


def _fairness_key(name: str) -> str:
    return name.encode()[:_MAX_FAIRNESS_KEY].decode(errors="ignore")


def _unavailable() -> ServiceUnavailable:
    return ServiceUnavailable("the job queue is not available", retry_after=2)
