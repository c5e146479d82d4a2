"""Defines `TextBatchWorkflow`, which runs a batch of text requests, and its activities.

The rows of the batch and of its lines hold the state. Every activity may be repeated, and skips
work that is done already. The workflow repeats activities until the batch has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic_core import from_json
from sqlalchemy.exc import SQLAlchemyError
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

with workflow.unsafe.imports_passed_through():
    from moyin.client.errors import GatewayUnreachable, RequestRefused
    from moyin.client.gateway import GatewayClient
    from moyin.domain.text_batch import BatchError, BatchStatus, TextBatch
    from moyin.errors import BatchNotFound, MoyinError, ServiceUnavailable
    from moyin.http.client import read_up_to
    from moyin.jobs.workflows.client import RPC_TIMEOUT, TASK_TIMEOUT, TemporalConnection
    from moyin.jobs.workflows.failures import to_application_error
    from moyin.jobs.workflows.launcher import get_tenant_priority
    from moyin.jobs.workflows.step_io import send_heartbeats
    from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, HEARTBEAT_TIMEOUT
    from moyin.store.batch_lines import BatchLineStore
    from moyin.store.blobs import BlobStore
    from moyin.store.files import FileStore
    from moyin.store.sql import now
    from moyin.store.text_batches import TextBatchStore
    from moyin.text.batches.formats import FORMATS
    from moyin.text.batches.input_file import InputBounds, check_input
    from moyin.text.batches.output_file import write_results

_log = logging.getLogger(__name__)
TEXT_BATCHES_QUEUE = "text-batches"
_RETRIES = RetryPolicy(
    initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=10)
)
# The longest time of one activity; the next one continues its work.
_TIMEOUT = timedelta(minutes=30)
_WORK_SECONDS = 600.0
_ROUNDS_PER_RUN = 50
_SEAL_SECONDS = 0.5
_MAX_ANSWER_BYTES = 64 * 1024
_CONCURRENCY = 100
_GRACE = timedelta(seconds=5)
_SWEEP_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class TextBatchInput:
    """The argument of the workflow and of its activities.

    Attributes:
        calls: the largest number of replicas of the models app that work on the batch at a time.
    """

    batch_id: str
    calls: int = 2


@workflow.defn(name="TextBatchWorkflow")
class TextBatchWorkflow:
    """Checks the input file of a batch, runs its lines, and writes the results to files."""

    @workflow.run
    async def run(self, batch: TextBatchInput) -> str:
        """Run the batch and return its final status."""
        status = await _run_activity("batch_prepare", batch)
        for _ in range(_ROUNDS_PER_RUN):
            if status != BatchStatus.IN_PROGRESS:
                break
            states = await asyncio.gather(
                *(_run_activity("batch_work", batch) for _ in range(batch.calls))
            )
            if all(state == "done" for state in states):
                break
        else:
            workflow.continue_as_new(batch)
        return await _run_activity("batch_finish", batch)


async def _run_activity(name: str, batch: TextBatchInput) -> str:
    result: str = await workflow.execute_activity(
        name,
        batch,
        result_type=str,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        start_to_close_timeout=_TIMEOUT,
        retry_policy=_RETRIES,
    )
    return result


class TextBatchActivities:
    """The activities of `TextBatchWorkflow`, which are all idempotent.

    Args:
        gateway: a client that can act for any identity, because it can make tokens.
        max_line_bytes: the largest line of an input file, in bytes.
    """

    def __init__(
        self,
        *,
        batches: TextBatchStore,
        lines: BatchLineStore,
        files: FileStore,
        blobs: BlobStore,
        gateway: GatewayClient,
        max_line_bytes: int,
    ) -> None:
        self._batches = batches
        self._lines = lines
        self._files = files
        self._blobs = blobs
        self._gateway = gateway
        self._bounds = InputBounds(max_line_bytes=max_line_bytes)

    @property
    def activities(self) -> list[Any]:
        return [self.batch_prepare, self.batch_work, self.batch_finish]

    @activity.defn
    async def batch_prepare(self, batch_input: TextBatchInput) -> str:
        """Check the input file, store the lines, and return the status of the batch."""
        async with send_heartbeats(), _raise_application_errors():
            batch = await self._batches.find(batch_input.batch_id)
            if batch is None:
                raise BatchNotFound(f"batch {batch_input.batch_id} was deleted")
            # A batch that was cancelled before the check needs its lines, too: its results show
            # them as cancelled.
            is_unchecked = batch.status is BatchStatus.VALIDATING or (
                batch.status is BatchStatus.CANCELLING
                and batch.in_progress_at is None
                and batch.finalizing_at is None
            )
            if not is_unchecked:
                return batch.status.value
            input_file = await self._files.find(batch.owner, batch.input_file_id, with_deleted=True)
            try:
                if input_file is None:
                    raise FileNotFoundError(batch.input_file_id)
                line_count, errors = await check_input(
                    self._blobs,
                    input_file.sha256,
                    FORMATS[batch.dialect],
                    batch.endpoint,
                    add_lines=lambda lines: self._lines.add(batch.id, lines),
                    bounds=self._bounds,
                )
            except FileNotFoundError:
                message = (
                    f"input file {batch.input_file_id} was deleted: upload it again and create a "
                    "new batch"
                )
                line_count, errors = 0, [BatchError(code="file_not_found", message=message)]
            if errors:
                await self._batches.fail(batch.id, errors)
            else:
                await self._batches.begin(batch.id, line_count)
            return (await self._batches.find(batch.id) or batch).status.value

    @activity.defn
    async def batch_work(self, batch_input: TextBatchInput) -> str:
        """Let replicas of the models app run lines for up to ten minutes.

        Returns:
            ``done`` if no lines are left to run, or else the state that the last replica reported.
        """
        async with send_heartbeats(), _raise_application_errors():
            loop = asyncio.get_running_loop()
            end_time = loop.time() + _WORK_SECONDS
            state = "more"
            while state == "more" and loop.time() < end_time:
                state = await self._run_lines(batch_input.batch_id)
            return state

    @activity.defn
    async def batch_finish(self, batch_input: TextBatchInput) -> str:
        """Write the results to files and end the batch; return its final status."""
        async with send_heartbeats(), _raise_application_errors():
            batch = await self._batches.find(batch_input.batch_id)
            if batch is None:
                raise BatchNotFound(f"batch {batch_input.batch_id} was deleted")
            if batch.status.is_final:
                return batch.status.value
            # Lines of a dead replica count as running until its lease expires, so check again
            # later.
            while not await self._batches.seal(batch.id):
                # Work remains after a cancellation: native batches are cancelled and their results
                # collected.
                with suppress(MoyinError):
                    await self._request_work(batch)
                await asyncio.sleep(_SEAL_SECONDS)
            output_file, error_file = await write_results(batch, self._lines, self._blobs)
            ended_batch = await self._batches.finish(
                batch.id, output_file=output_file, error_file=error_file
            )
            return ended_batch.status.value

    async def _run_lines(self, batch_id: str) -> str:
        """Let a replica of the models app run lines for some seconds, with the submitter's rights.

        Returns:
            ``done`` if the batch runs no more lines, or else the state that the replica reports.
        """
        batch = await self._batches.find(batch_id)
        if batch is None:
            raise BatchNotFound(f"batch {batch_id} was deleted")
        if batch.status is not BatchStatus.IN_PROGRESS or batch.expires_at <= now():
            return "done"
        return await self._request_work(batch)

    async def _request_work(self, batch: TextBatch) -> str:
        try:
            async with self._gateway.open(
                "POST", f"/v1/batches/{batch.id}/work", b"", identity=batch.submitter
            ) as response:
                response_body = from_json(await read_up_to(response, _MAX_ANSWER_BYTES))
        except GatewayUnreachable as error:
            raise ServiceUnavailable(
                "the models app cannot be reached; try again later", retry_after=0.5
            ) from error
        except RequestRefused as error:
            raise error.to_typed_error() from None
        return str(response_body["state"])


class TextBatchSweeper:
    """Starts the workflows of new batches; any number of sweepers may run at the same time."""

    def __init__(self, batches: TextBatchStore, temporal: TemporalConnection) -> None:
        self._batches = batches
        self._temporal = temporal

    async def run(self) -> None:
        """Start the workflows of new batches repeatedly until cancelled.

        The task continues after errors and outages.
        """
        while True:
            try:
                for batch_id, owner in await self._batches.list_undispatched():
                    await self._start_workflow(batch_id, owner)
            except MoyinError as error:
                _log.info("batches cannot start yet: %s", error)
            except Exception:
                _log.exception("the search for batches without a workflow failed and is repeated")
            await asyncio.sleep(_SWEEP_SECONDS)

    async def _start_workflow(self, batch_id: str, owner: str) -> None:
        client = await self._temporal.get_client()
        try:
            await client.start_workflow(
                TextBatchWorkflow.run,
                TextBatchInput(batch_id=batch_id),
                id=batch_id,
                task_queue=TEXT_BATCHES_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                task_timeout=TASK_TIMEOUT,
                priority=get_tenant_priority(owner),
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            _log.info("the workflow of batch %s was started before", batch_id)
        except RPCError as error:
            raise self._temporal.report_outage(error) from error
        await self._batches.mark_dispatched(batch_id)


def new_text_batch_worker(client: Client, activities: TextBatchActivities) -> Worker:
    """Create a worker of the queue ``text-batches``."""
    return Worker(
        client,
        task_queue=TEXT_BATCHES_QUEUE,
        workflows=[TextBatchWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.activities,
        max_concurrent_activities=_CONCURRENCY,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )


@asynccontextmanager
async def _raise_application_errors() -> AsyncIterator[None]:
    """Turn errors of the block into failures that Temporal retries unless the batch is deleted."""
    try:
        yield
    except BatchNotFound as error:
        raise ApplicationError(error.message, type=error.code, non_retryable=True) from None
    except MoyinError as error:
        # Refusals are retried as well, because an operator may change the key's scopes or limits.
        failure = to_application_error(error)
        raise ApplicationError(
            failure.message, type=error.code, next_retry_delay=failure.next_retry_delay
        ) from None
    except (SQLAlchemyError, OSError) as error:
        raise ApplicationError(
            f"the database or the artifact store is unavailable ({type(error).__name__}); "
            "try again later",
            type=ServiceUnavailable.code,
        ) from None
