"""Defines `JudgeWorkflow`, in which a judge model compares two answers, and its activities."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from traceback import format_tb
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

with workflow.unsafe.imports_passed_through():
    from moyin.errors import MoyinError
    from moyin.jobs.workflows import policies
    from moyin.jobs.workflows.client import RPC_TIMEOUT, TASK_TIMEOUT, TemporalConnection
    from moyin.jobs.workflows.launcher import get_tenant_priority
    from moyin.jobs.workflows.policies import run_to_completion
    from moyin.jobs.workflows.step_io import send_heartbeats
    from moyin.jobs.workflows.types import (
        HEARTBEAT_INTERVAL,
        HEARTBEAT_TIMEOUT,
        JUDGE_QUEUE,
        JudgeEnd,
        JudgeRecord,
        JudgeVerdict,
    )
    from moyin.text.judging.judge import Judge
    from moyin.text.judging.verdict import Outcome, OutcomeCounter, Verdict

_log = logging.getLogger(__name__)
_GRACE = timedelta(seconds=5)


@workflow.defn(name="JudgeWorkflow")
class JudgeWorkflow:
    """Lets a judge compare the answers of two models, and records the judge's verdict.

    Temporal's history never contains conversations. Activities read them from the store by the
    comparison's id, and the last activity always deletes them.
    """

    @workflow.run
    async def run(self, comparison_id: str) -> str:
        """Run the comparison and return its `Outcome`."""
        try:
            outcome = await self._compare_answers(comparison_id)
        except (FailureError, asyncio.CancelledError) as error:
            is_cancelled = is_cancelled_exception(error)
            outcome = Outcome.CANCELLED if is_cancelled else Outcome.FAILED
        judge_end = JudgeEnd(comparison_id=comparison_id, outcome=outcome)
        await run_to_completion(_run_store_activity("judge_close", judge_end))
        return outcome

    async def _compare_answers(self, comparison_id: str) -> Outcome:
        outcome = Outcome(await _call_model("judge_answer", comparison_id, str))
        if outcome is not Outcome.ANSWERED:
            return outcome
        verdict: JudgeVerdict = await _call_model("judge_decide", comparison_id, JudgeVerdict)
        if verdict.outcome:
            return Outcome(verdict.outcome)
        record = JudgeRecord(comparison_id=comparison_id, given=verdict.given, other=verdict.other)
        # A cancellation must wait until the verdict is recorded, because the verdict cost money.
        return Outcome(await run_to_completion(_run_store_activity("judge_record", record)))


async def _call_model(name: str, comparison_id: str, result_type: Any) -> Any:
    """Run an activity that calls a model and stores the response; return the activity's result.

    Args:
        name: the name of the activity.
        result_type: the type of the activity's result.
    """
    return await workflow.execute_activity(
        name,
        comparison_id,
        result_type=result_type,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        start_to_close_timeout=policies.JUDGE_CALL_TIMEOUT,
        schedule_to_close_timeout=policies.JUDGE_STEP_LIMIT,
        retry_policy=policies.JUDGE,
        # Wait for the end even if cancelled, so that the last activity deletes everything that was
        # stored.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


async def _run_store_activity(name: str, argument: Any) -> str:
    """Run an activity that reads and writes only the store; return its outcome."""
    outcome: str = await workflow.execute_activity(
        name,
        argument,
        result_type=str,
        start_to_close_timeout=policies.RECORD_TIMEOUT,
        schedule_to_close_timeout=policies.JUDGE_STEP_LIMIT,
        retry_policy=policies.RECORD,
    )
    return outcome


class JudgeActivities:
    """The Temporal activities of `JudgeWorkflow`, which are all idempotent."""

    def __init__(self, judge: Judge, count_outcome: OutcomeCounter) -> None:
        self._judge = judge
        self._count_outcome = count_outcome

    @property
    def judge_queue_activities(self) -> list[Any]:
        """The activities that workers of the queue ``judge`` run."""
        return [self.judge_answer, self.judge_decide, self.judge_record, self.judge_close]

    @activity.defn
    async def judge_answer(self, comparison_id: str) -> str:
        """Request and store the second model's answer; return `Outcome.ANSWERED` or the failure."""
        async with send_heartbeats(), _raise_application_errors(calls_model=True):
            return await self._judge.fetch_second_answer(comparison_id)

    @activity.defn
    async def judge_decide(self, comparison_id: str) -> JudgeVerdict:
        """Ask the judge model to compare the two answers, and return its verdict."""
        async with send_heartbeats(), _raise_application_errors(calls_model=True):
            verdict = await self._judge.fetch_verdict(comparison_id)
        if isinstance(verdict, Outcome):
            return JudgeVerdict(outcome=verdict)
        return JudgeVerdict(given=verdict.given, other=verdict.other)

    @activity.defn
    async def judge_record(self, record: JudgeRecord) -> str:
        """Write a verdict to the log from which the router learns, and return the outcome."""
        verdict = Verdict(given=record.given, other=record.other)
        async with _raise_application_errors():
            if not await self._judge.record_verdict(record.comparison_id, verdict):
                return Outcome.EXPIRED
        return Outcome.AGREED if verdict.agrees else Outcome.DISAGREED

    @activity.defn
    async def judge_close(self, judge_end: JudgeEnd) -> str:
        """Delete the compared answers, count the outcome in the metrics, and return the outcome."""
        async with _raise_application_errors():
            await self._judge.delete_comparison(judge_end.comparison_id)
        self._count_outcome(Outcome(judge_end.outcome))
        return judge_end.outcome


class JudgeQueue:
    """Implements `moyin.text.judging.sampling.ComparisonQueue` on Temporal."""

    def __init__(self, temporal: TemporalConnection) -> None:
        self._temporal = temporal

    async def start(self, comparison_id: str, owner: str) -> bool:
        """Start a comparison; return False if it has been started already."""
        client = await self._temporal.get_client()
        try:
            await client.start_workflow(
                JudgeWorkflow.run,
                comparison_id,
                id=comparison_id,
                task_queue=JUDGE_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                execution_timeout=policies.JUDGE_LIMIT,
                task_timeout=TASK_TIMEOUT,
                priority=get_tenant_priority(owner),
                rpc_timeout=RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            return False
        except RPCError as error:
            raise self._temporal.report_outage(error) from error
        return True


def new_judge_worker(client: Client, activities: JudgeActivities, *, concurrency: int) -> Worker:
    """Create a worker of the queue ``judge`` with at most ``concurrency`` activities at a time."""
    return Worker(
        client,
        task_queue=JUDGE_QUEUE,
        workflows=[JudgeWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        activities=activities.judge_queue_activities,
        max_concurrent_activities=concurrency,
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        graceful_shutdown_timeout=_GRACE,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )


@asynccontextmanager
async def _raise_application_errors(*, calls_model: bool = False) -> AsyncIterator[None]:
    """Turn errors of the block into failures that Temporal retries only if a retry can help.

    The failures omit the errors' messages, because these may quote a conversation and would be
    stored in Temporal's history.

    Args:
        calls_model: True if the activity calls a model. Then a bug is not retried, because every
            try would cost money.
    """
    try:
        yield
    except MoyinError as error:
        delay = error.retry_after
        raise ApplicationError(
            error.code,
            type=error.code,
            non_retryable=not error.retryable,
            next_retry_delay=None if delay is None else timedelta(seconds=delay),
        ) from None
    except Exception as error:
        name, traceback_text = type(error).__name__, "".join(format_tb(error.__traceback__))
        _log.error("an activity of JudgeWorkflow failed with a bug, %s:\n%s", name, traceback_text)
        raise ApplicationError(name, type=MoyinError.code, non_retryable=calls_model) from None
