"""`JudgeWorkflow`: one comparison, from a sampled answer to what its verdict teaches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from traceback import format_tb
from typing import Any

from temporalio import activity, workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.service import RPCError

with workflow.unsafe.imports_passed_through():
    from moyin.errors import MoyinError
    from moyin.jobs.workflows import policies
    from moyin.jobs.workflows.client import Temporal, turn_of
    from moyin.jobs.workflows.shield import run_to_completion
    from moyin.jobs.workflows.steps import heartbeating
    from moyin.jobs.workflows.types import (
        HEARTBEAT_TIMEOUT,
        JUDGE_QUEUE,
        JudgeEnd,
        JudgeRecord,
        JudgeVerdict,
    )
    from moyin.text.judging.judge import Judge
    from moyin.text.judging.outcomes import Count, Outcome
    from moyin.text.judging.verdict import Verdict

__all__ = ["JudgeActivities", "JudgeQueue", "JudgeWorkflow"]

_log = logging.getLogger(__name__)
_RPC_TIMEOUT = timedelta(seconds=3)
_TASK_TIMEOUT = timedelta(seconds=5)


@workflow.defn(name="JudgeWorkflow")
class JudgeWorkflow:
    """Asks the second model, then the judge, then writes down what it found.

    No conversation goes through here, so that none stays in Temporal's history: the activities find
    it under the comparison's id, and the last one deletes it, however the others ended.
    """

    @workflow.run
    async def run(self, comparison_id: str) -> str:
        """Return an `Outcome`."""
        try:
            outcome = await self._compared(comparison_id)
        except (FailureError, asyncio.CancelledError) as error:
            cancelled = is_cancelled_exception(error)
            outcome = Outcome.CANCELLED if cancelled else Outcome.FAILED
        end = JudgeEnd(comparison_id=comparison_id, outcome=outcome)
        await run_to_completion(_short("judge_close", end))
        return outcome

    async def _compared(self, comparison_id: str) -> Outcome:
        answered = Outcome(await _call("judge_answer", comparison_id, str))
        if answered is not Outcome.ANSWERED:
            return answered
        found: JudgeVerdict = await _call("judge_decide", comparison_id, JudgeVerdict)
        if found.outcome:
            return Outcome(found.outcome)
        record = JudgeRecord(comparison_id=comparison_id, given=found.given, other=found.other)
        # The verdict has been paid for: a cancellation waits until it is written down.
        return Outcome(await run_to_completion(_short("judge_record", record)))


async def _call(name: str, comparison_id: str, result_type: Any) -> Any:
    """Run a step that asks a model."""
    return await workflow.execute_activity(
        name,
        comparison_id,
        result_type=result_type,
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        start_to_close_timeout=policies.JUDGE_CALL_TIMEOUT,
        schedule_to_close_timeout=policies.JUDGE_STEP_LIMIT,
        retry_policy=policies.JUDGE,
        # What it keeps must be there before it is deleted.
        cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
    )


async def _short(name: str, argument: Any) -> str:
    """Run one of the short writes."""
    answer: str = await workflow.execute_activity(
        name,
        argument,
        result_type=str,
        start_to_close_timeout=policies.RECORD_TIMEOUT,
        schedule_to_close_timeout=policies.JUDGE_STEP_LIMIT,
        retry_policy=policies.RECORD,
    )
    return answer


class JudgeActivities:
    """The activities of the queue ``judge``. Every one may run more than once."""

    def __init__(self, judge: Judge, count: Count) -> None:
        self._judge = judge
        self._count = count

    def all(self) -> list[Any]:
        """For `temporalio.worker.Worker`."""
        return [self.judge_answer, self.judge_decide, self.judge_record, self.judge_close]

    @activity.defn
    async def judge_answer(self, comparison_id: str) -> str:
        """Ask the second model."""
        async with heartbeating(), _failing_well(asks=True):
            return await self._judge.answer(comparison_id)

    @activity.defn
    async def judge_decide(self, comparison_id: str) -> JudgeVerdict:
        """Ask the judge."""
        async with heartbeating(), _failing_well(asks=True):
            found = await self._judge.decide(comparison_id)
        if isinstance(found, Outcome):
            return JudgeVerdict(outcome=found)
        return JudgeVerdict(given=found.given, other=found.other)

    @activity.defn
    async def judge_record(self, record: JudgeRecord) -> str:
        """Write the verdict down."""
        verdict = Verdict(given=record.given, other=record.other)
        async with _failing_well():
            if not await self._judge.record(record.comparison_id, verdict):
                return Outcome.GONE
        return Outcome.AGREED if verdict.agrees else Outcome.DISAGREED

    @activity.defn
    async def judge_close(self, end: JudgeEnd) -> str:
        """Delete what was compared, and count how it ended."""
        async with _failing_well():
            await self._judge.close(end.comparison_id)
        self._count(Outcome(end.outcome))
        return end.outcome


class JudgeQueue:
    """`moyin.text.judging.sampling.ComparisonQueue` on Temporal."""

    def __init__(self, temporal: Temporal) -> None:
        self._temporal = temporal

    async def start(self, comparison_id: str, owner: str) -> bool:
        client = await self._temporal.client()
        try:
            await client.start_workflow(
                JudgeWorkflow.run,
                comparison_id,
                id=comparison_id,
                task_queue=JUDGE_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                execution_timeout=policies.JUDGE_LIMIT,
                task_timeout=_TASK_TIMEOUT,
                priority=turn_of(owner),
                rpc_timeout=_RPC_TIMEOUT,
            )
        except WorkflowAlreadyStartedError:
            return False
        except RPCError as error:
            raise self._temporal.lost(error) from error
        return True


@asynccontextmanager
async def _failing_well(*, asks: bool = False) -> AsyncIterator[None]:
    """Turn errors into failures that Temporal retries only where that can help. Their messages may
    quote a conversation, and stay out of its history.

    Args:
        asks: a model is asked, so that another try after a fault of ours may be paid for again.
    """
    try:
        yield
    except MoyinError as error:
        after = error.retry_after
        raise ApplicationError(
            error.code,
            type=error.code,
            non_retryable=not error.retryable,
            next_retry_delay=None if after is None else timedelta(seconds=after),
        ) from None
    except Exception as error:
        kind, places = type(error).__name__, "".join(format_tb(error.__traceback__))
        _log.error("a step of the judge failed with %s:\n%s", kind, places)
        raise ApplicationError(kind, type=MoyinError.code, non_retryable=asks) from None
