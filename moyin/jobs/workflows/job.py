"""Defines the Temporal workflows of a job: `JobWorkflow` and `WebhookWorkflow`."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ActivityError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)

with workflow.unsafe.imports_passed_through():
    from moyin.domain.job import JobError, JobStatus, StepKind, StepResult
    from moyin.errors import DeadlineExceeded
    from moyin.jobs.workflows import policies
    from moyin.jobs.workflows.failures import (
        find_larger_pool,
        is_superseded,
        to_batch_error,
        to_job_error,
    )
    from moyin.jobs.workflows.policies import run_to_completion
    from moyin.jobs.workflows.types import (
        HEARTBEAT_TIMEOUT,
        JOBS_QUEUE,
        WEBHOOKS_QUEUE,
        JobInput,
        JobOutcome,
        StepInput,
        StepOutcome,
        StepRecord,
        WebhookInput,
        get_render_queue,
    )

_SUPERSEDED = JobError(
    code="superseded", message="the attempt has ended, or a later attempt has begun"
)


class _AttemptSuperseded(Exception):
    """Reports that the attempt has ended or a later one has begun, as the job's row shows."""


class _StepFailed(Exception):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class _ChildrenFailed(Exception):
    def __init__(self, failures: dict[int, FailureError]) -> None:
        super().__init__(sorted(failures))
        self.failures = failures


@workflow.defn(name="WebhookWorkflow")
class WebhookWorkflow:
    """Delivers a job's webhook, with retries for up to a day, without delaying the job's end."""

    @workflow.run
    async def run(self, webhook: WebhookInput) -> bool:
        """Deliver the webhook and return True; return False if a later attempt has begun."""
        was_delivered: bool = await workflow.execute_activity(
            "deliver_webhook",
            webhook,
            result_type=bool,
            task_queue=WEBHOOKS_QUEUE,
            start_to_close_timeout=policies.WEBHOOK_TIMEOUT,
            schedule_to_close_timeout=policies.WEBHOOK_LIMIT,
            retry_policy=policies.WEBHOOK,
        )
        return was_delivered


@workflow.defn(name="JobWorkflow")
class JobWorkflow:
    """Runs one attempt of a job, from its first unfinished step to its recorded end.

    Steps run in order. The result of each finished step is a checkpoint in the job's row, and the
    last step's checkpoint includes the job's end. The steps of a batch run concurrently, and a
    failed step does not stop the others.

    Activities write their own checkpoints. The workflow writes checkpoints that an activity could
    not write, and the end of failed and cancelled jobs. The workflow always completes with a
    `JobOutcome`, even for a failed or cancelled job, after it has updated the row. Activities
    inherit the workflow's priority.
    """

    def __init__(self) -> None:
        # True once the last step's activity has written the job's end.
        self._is_end_recorded = False

    @workflow.run
    async def run(self, job: JobInput) -> JobOutcome:
        """Run the attempt and record its outcome."""
        try:
            outcome = await self._run_attempt(job)
        except _AttemptSuperseded:
            return _build_outcome(job, JobStatus.CANCELLED, _SUPERSEDED)
        try:
            await run_to_completion(self._record_end(job, outcome))
        except asyncio.CancelledError:
            # The outcome has been written already, so the cancellation has no effect.
            workflow.logger.info("the job was cancelled after its end, which has no effect")
        return outcome

    async def _run_attempt(self, job: JobInput) -> JobOutcome:
        """Run the steps, and return the outcome, also after a failure, cancellation or deadline."""
        deadline = asyncio.timeout(_get_seconds_left(job))
        try:
            async with deadline:
                run_all_steps = self._run_children if job.parallel else self._run_steps
                results = await run_all_steps(job)
        except _AttemptSuperseded:
            raise
        except _ChildrenFailed as error:
            batch_error = to_batch_error(error.failures, len(job.steps))
            return _build_outcome(job, JobStatus.FAILED, batch_error)
        except (TimeoutError, asyncio.CancelledError, FailureError, _StepFailed) as error:
            # An activity that is cancelled by the deadline reports a cancellation.
            if deadline.expired():
                deadline_error = DeadlineExceeded(
                    f"the job had not finished by its deadline, {job.deadline}; "
                    "submit it again with a later one"
                )
                return _build_outcome(job, JobStatus.FAILED, to_job_error(deadline_error))
            cause = error.__cause__ if isinstance(error, _StepFailed) else error
            assert cause is not None
            if is_cancelled_exception(cause):
                return _build_outcome(job, JobStatus.CANCELLED)
            step_index = error.index if isinstance(error, _StepFailed) else None
            return _build_outcome(job, JobStatus.FAILED, to_job_error(cause, step=step_index))
        return _build_outcome(job, JobStatus.SUCCEEDED, results=results)

    async def _run_steps(self, job: JobInput) -> tuple[StepResult, ...]:
        """Run the unfinished steps in order and return the results of all steps."""
        results_by_index = {result.index: result for result in job.done}
        for index in range(len(job.steps)):
            if index in results_by_index:
                continue
            earlier_outputs = tuple(results_by_index[i].output for i in range(index))
            is_first = len(results_by_index) == len(job.done)
            try:
                step_outcome = await _run_step(job, index, earlier_outputs, is_first)
            except FailureError as error:
                if is_superseded(error):
                    raise _AttemptSuperseded from error
                raise _StepFailed(index) from error
            results_by_index[index] = step_outcome.result
            if _is_last(job, index):
                self._is_end_recorded = step_outcome.recorded
                break
            await _record_step(job, step_outcome)
        return tuple(results_by_index[index] for index in sorted(results_by_index))

    async def _run_children(self, job: JobInput) -> tuple[StepResult, ...]:
        """Run the unfinished children of a batch concurrently, and return no results.

        The results are only in the job's row, because a batch may have many children.
        """
        done_indexes = {result.index for result in job.done}
        failures: dict[int, FailureError] = {}

        async def run_child(index: int) -> None:
            try:
                step_outcome = await _run_step(job, index, (), is_first=True)
            except FailureError as error:
                if is_superseded(error):
                    raise _AttemptSuperseded from error
                if is_cancelled_exception(error):
                    raise
                failures[index] = error
                return
            await _record_step(job, step_outcome)

        child_runs = [
            run_child(index) for index in range(len(job.steps)) if index not in done_indexes
        ]
        # If the job is cancelled or superseded, every child ends with the same exception.
        for result in await asyncio.gather(*child_runs, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        if failures:
            raise _ChildrenFailed(failures)
        return ()

    async def _record_end(self, job: JobInput, outcome: JobOutcome) -> None:
        """Write the end of the attempt to the job's row, then start the webhook, if any."""
        is_recorded = self._is_end_recorded and outcome.status is JobStatus.SUCCEEDED
        if not is_recorded:
            is_recorded = await _run_local_write("finish", outcome)
        if is_recorded and job.webhook:
            await _start_webhook(WebhookInput(job_id=job.job_id, attempt=job.attempt))


async def _start_webhook(webhook: WebhookInput) -> None:
    """Start the child workflow that delivers the webhook, unless it was started before."""
    try:
        await workflow.start_child_workflow(
            WebhookWorkflow.run,
            webhook,
            id=f"webhook-{webhook.job_id}-{webhook.attempt}",
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
        )
    except WorkflowAlreadyStartedError:
        workflow.logger.info("the webhook of job %s was started before", webhook.job_id)


async def _run_step(
    job: JobInput, index: int, earlier_outputs: tuple[str, ...], is_first: bool
) -> StepOutcome:
    """Run a step; if a render lacks memory, repeat it in the larger pool that the error names.

    Args:
        earlier_outputs: the sha256 of the outputs of earlier steps, by index.
        is_first: True if the attempt begins with this step.
    """
    pools = [job.steps[index].pool]
    while True:
        try:
            return await _run_step_in_pool(pools[-1], job, index, earlier_outputs, is_first)
        except ActivityError as error:
            larger_pool = find_larger_pool(error)
            if larger_pool is None or larger_pool in pools:
                raise
            pools.append(larger_pool)


async def _run_step_in_pool(
    pool: str, job: JobInput, index: int, earlier_outputs: tuple[str, ...], is_first: bool
) -> StepOutcome:
    """Run the activity of a step, in the render pool ``pool`` if the step is a render.

    The arguments ``earlier_outputs`` and ``is_first`` are those of `_run_step`.
    """
    routing = job.steps[index]
    is_render = routing.kind is StepKind.RENDER
    step_outcome: StepOutcome = await workflow.execute_activity(
        f"{routing.kind.value}_step",
        StepInput(
            job_id=job.job_id,
            owner=job.owner,
            index=index,
            spec=job.spec,
            earlier=earlier_outputs,
            begins=job.attempt if is_first else None,
            attempt=job.attempt,
            last=_is_last(job, index),
        ),
        result_type=StepOutcome,
        task_queue=get_render_queue(pool) if is_render else JOBS_QUEUE,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        start_to_close_timeout=policies.RENDER_TIMEOUT if is_render else policies.CALL_TIMEOUT,
        schedule_to_close_timeout=policies.STEP_LIMIT,
        retry_policy=policies.RENDER if is_render else policies.CALL,
        summary=f"step {index}: {routing.kind.value}",
    )
    return step_outcome


def _is_last(job: JobInput, index: int) -> bool:
    """Return True if the job ends with this step; False for every child of a batch."""
    return not job.parallel and index == len(job.steps) - 1


async def _record_step(job: JobInput, step_outcome: StepOutcome) -> None:
    """Write the checkpoint of a step, unless the step's activity has written it.

    Raises:
        _AttemptSuperseded: the attempt has ended, or a later one has begun.
    """
    if step_outcome.recorded:
        return
    record = StepRecord(job_id=job.job_id, attempt=job.attempt, result=step_outcome.result)
    # A cancellation must wait until the checkpoint is written, because the step may have cost money.
    if not await run_to_completion(_run_local_write("record_step", record)):
        raise _AttemptSuperseded


async def _run_local_write(name: str, argument: Any) -> bool:
    """Run a local activity that writes to the job's row, with retries until it succeeds.

    Returns:
        The activity's result: False if the attempt is over, so that nothing was written.
    """
    is_written: bool = await workflow.execute_local_activity(
        name,
        argument,
        result_type=bool,
        start_to_close_timeout=policies.RECORD_TIMEOUT,
        retry_policy=policies.RECORD,
    )
    return is_written


def _get_seconds_left(job: JobInput) -> float | None:
    if job.deadline is None:
        return None
    return max((job.deadline - workflow.now()) / timedelta(seconds=1), 0.001)


def _build_outcome(
    job: JobInput,
    status: JobStatus,
    error: JobError | None = None,
    results: tuple[StepResult, ...] = (),
) -> JobOutcome:
    return JobOutcome(
        job_id=job.job_id,
        owner=job.owner,
        attempt=job.attempt,
        status=status,
        error=error,
        results=results,
    )
