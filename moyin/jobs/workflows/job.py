"""`JobWorkflow`: one attempt of a job, from its first unfinished step to its recorded end."""

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
        is_superseded,
        larger_pool,
        to_batch_error,
        to_job_error,
    )
    from moyin.jobs.workflows.shield import run_to_completion
    from moyin.jobs.workflows.types import (
        HEARTBEAT_TIMEOUT,
        JOBS_QUEUE,
        JobInput,
        JobOutcome,
        StepDone,
        StepInput,
        StepRecord,
        WebhookInput,
        render_queue,
    )
    from moyin.jobs.workflows.webhook import WebhookWorkflow

__all__ = ["JobWorkflow"]

_RESULT: Any = StepDone | StepResult
_SUPERSEDED = JobError(code="superseded", message="the job has ended or goes on elsewhere")


class _GivenUp(Exception):
    """The job's row says that this attempt is over or has a successor."""


class _StepFailed(Exception):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class _ChildrenFailed(Exception):
    def __init__(self, failed: dict[int, FailureError]) -> None:
        super().__init__(sorted(failed))
        self.failed = failed


@workflow.defn(name="JobWorkflow")
class JobWorkflow:
    """Runs the steps in order; each finished one is a checkpoint in the job's row, the last one
    together with the job's end. Those of a batch run side by side; one that fails does not stop the
    others.

    The activities write their checkpoints themselves; here is written what they could not, and
    every other end. It always completes with a `JobOutcome`, failed and cancelled ones included,
    and the row is told first. Activities inherit the priority that the workflow was started with.
    """

    def __init__(self) -> None:
        # The last step's activity has written the job's end down.
        self._ended = False

    @workflow.run
    async def run(self, job: JobInput) -> JobOutcome:
        try:
            outcome = await self._attempt(job)
        except _GivenUp:
            return _outcome(job, JobStatus.CANCELLED, _SUPERSEDED)
        try:
            await run_to_completion(self._record(job, outcome))
        except asyncio.CancelledError:
            # Too late to be cancelled: the outcome has been written.
            workflow.logger.info("cancelled after its end")
        return outcome

    async def _attempt(self, job: JobInput) -> JobOutcome:
        """Run the steps; every way to end becomes an outcome."""
        deadline = asyncio.timeout(_seconds_left(job))
        try:
            async with deadline:
                if job.version < 2 and not await _local("job_start", job):
                    raise _GivenUp
                run = self._run_children if job.parallel else self._run_steps
                results = await run(job)
        except _GivenUp:
            raise
        except _ChildrenFailed as error:
            told = to_batch_error(error.failed, len(job.steps))
            return _outcome(job, JobStatus.FAILED, told)
        except (TimeoutError, asyncio.CancelledError, FailureError, _StepFailed) as error:
            # An activity that the deadline cancels reports a cancellation of its own.
            if deadline.expired():
                late = DeadlineExceeded("the job had not finished by its deadline")
                return _outcome(job, JobStatus.FAILED, to_job_error(late))
            cause = error.__cause__ if isinstance(error, _StepFailed) else error
            assert cause is not None
            if is_cancelled_exception(cause):
                return _outcome(job, JobStatus.CANCELLED)
            step = error.index if isinstance(error, _StepFailed) else None
            return _outcome(job, JobStatus.FAILED, to_job_error(cause, step=step))
        return _outcome(job, JobStatus.SUCCEEDED, results=results)

    async def _run_steps(self, job: JobInput) -> tuple[StepResult, ...]:
        done = {result.index: result for result in job.done}
        for index in range(len(job.steps)):
            if index in done:
                continue
            earlier = tuple(done[i].output for i in range(index))
            begins = job.version >= 2 and len(done) == len(job.done)
            try:
                step = await _run_step(job, index, earlier, begins)
            except FailureError as error:
                if is_superseded(error):
                    raise _GivenUp from error
                raise _StepFailed(index) from error
            done[index] = step.result
            if job.version >= 2 and _is_last(job, index):
                self._ended = step.recorded
                break
            await _record_step(job, step)
        return tuple(done[index] for index in sorted(done))

    async def _run_children(self, job: JobInput) -> tuple[StepResult, ...]:
        """The row has the results: of up to hundreds, none goes through here a second time."""
        done = {result.index for result in job.done}
        failed: dict[int, FailureError] = {}

        async def child(index: int) -> None:
            try:
                step = await _run_step(job, index, (), begins=True)
            except FailureError as error:
                if is_superseded(error):
                    raise _GivenUp from error
                if is_cancelled_exception(error):
                    raise
                failed[index] = error
                return
            await _record_step(job, step)

        waiting = [child(index) for index in range(len(job.steps)) if index not in done]
        # All are heard out: what is cancelled, or superseded, is so for every one of them.
        for ended in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended
        if failed:
            raise _ChildrenFailed(failed)
        return ()

    async def _record(self, job: JobInput, outcome: JobOutcome) -> None:
        """Write the end down, then let the webhook go its own way."""
        ended = self._ended and outcome.status is JobStatus.SUCCEEDED
        recorded = ended or await _local("finish", outcome)
        if recorded and job.webhook:
            await start_webhook(WebhookInput(job_id=job.job_id, attempt=job.attempt))


async def start_webhook(told: WebhookInput) -> None:
    """Start the child that delivers the webhook and outlives this workflow; once per attempt."""
    try:
        await workflow.start_child_workflow(
            WebhookWorkflow.run,
            told,
            id=f"webhook-{told.job_id}-{told.attempt}",
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
        )
    except WorkflowAlreadyStartedError:
        workflow.logger.info("the webhook is on its way already")


async def _run_step(job: JobInput, index: int, earlier: tuple[str, ...], begins: bool) -> StepDone:
    """A render that its pool has no memory for goes on to the pool that this one names."""
    pools = [job.steps[index].pool]
    while True:
        try:
            return await _try_step(job, index, earlier, begins, pools[-1])
        except ActivityError as error:
            larger = larger_pool(error)
            if larger is None or larger in pools:
                raise
            pools.append(larger)


async def _try_step(
    job: JobInput, index: int, earlier: tuple[str, ...], begins: bool, pool: str
) -> StepDone:
    head = job.steps[index]
    rendering = head.kind is StepKind.RENDER
    records = job.version >= 3
    done: StepDone | StepResult = await workflow.execute_activity(
        f"{head.kind.value}_step",
        StepInput(
            job_id=job.job_id,
            owner=job.owner,
            index=index,
            spec=job.spec,
            earlier=earlier,
            begins=job.attempt if begins else None,
            attempt=job.attempt if records else None,
            last=records and _is_last(job, index),
        ),
        # While a deployment is under way older workers answer as they are used to.
        result_type=_RESULT,
        task_queue=render_queue(pool) if rendering else JOBS_QUEUE,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        start_to_close_timeout=policies.RENDER_TIMEOUT if rendering else policies.CALL_TIMEOUT,
        schedule_to_close_timeout=policies.STEP_LIMIT,
        retry_policy=policies.RENDER if rendering else policies.CALL,
        summary=f"step {index}: {head.kind.value}",
    )
    return done if isinstance(done, StepDone) else StepDone(result=done)


def _is_last(job: JobInput, index: int) -> bool:
    """Whether the job is done with this step; of a batch no child is the last."""
    return not job.parallel and index == len(job.steps) - 1


async def _record_step(job: JobInput, step: StepDone) -> None:
    """
    Raises:
        _GivenUp: the attempt is over.
    """
    if step.recorded:
        return
    record = StepRecord(job_id=job.job_id, attempt=job.attempt, result=step.result)
    # A finished step has been paid for: a cancellation waits until it is written down.
    if not await run_to_completion(_local("record_step", record)):
        raise _GivenUp


async def _local(name: str, argument: Any) -> bool:
    """Run one of our short writes to the job's row, until it is done."""
    answer: bool = await workflow.execute_local_activity(
        name,
        argument,
        result_type=bool,
        start_to_close_timeout=policies.RECORD_TIMEOUT,
        retry_policy=policies.RECORD,
    )
    return answer


def _seconds_left(job: JobInput) -> float | None:
    if job.deadline is None:
        return None
    return max((job.deadline - workflow.now()) / timedelta(seconds=1), 0.001)


def _outcome(
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
