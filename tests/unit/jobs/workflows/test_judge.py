"""Tests the judge's workflow on Temporal's time-skipping server, with scripted activities."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from moyin.errors import BackendRejected, BackendUnavailable
from moyin.jobs.workflows.judge import JudgeActivities, JudgeWorkflow
from moyin.jobs.workflows.types import JUDGE_QUEUE
from moyin.text.judging.verdict import Outcome, Verdict

SECRET = "codename Bluebird"


class FakeJudge:
    """A stand-in for `Judge` with scripted results."""

    def __init__(self) -> None:
        self.answers: list[Outcome | Exception] = [Outcome.ANSWERED]
        self.decision: Verdict | Outcome = Verdict(given=1.0, other=0.5)
        self.write_failures = 0
        self.calls: Counter[str] = Counter()
        self.recorded_verdicts: list[Verdict] = []
        self.hold: asyncio.Event | None = None
        self.deciding = asyncio.Event()

    async def fetch_second_answer(self, comparison_id: str) -> Outcome:
        self.calls["answer"] += 1
        scripted_outcome = self.answers.pop(0)
        if isinstance(scripted_outcome, Exception):
            raise scripted_outcome
        return scripted_outcome

    async def fetch_verdict(self, comparison_id: str) -> Verdict | Outcome:
        self.calls["decide"] += 1
        self.deciding.set()
        if self.hold is not None:
            await self.hold.wait()
        return self.decision

    async def record_verdict(self, comparison_id: str, verdict: Verdict) -> bool:
        if self.write_failures:
            self.write_failures -= 1
            raise OSError("the database is away")
        self.recorded_verdicts.append(verdict)
        return True

    async def delete_comparison(self, comparison_id: str) -> None:
        self.calls["close"] += 1


class JudgeHarness:
    def __init__(self, environment: WorkflowEnvironment) -> None:
        self.environment = environment
        self.steps = FakeJudge()
        self.counted_outcomes: list[Outcome] = []

    @asynccontextmanager
    async def running_workers(self) -> AsyncIterator[None]:
        judge: Any = self.steps
        async with Worker(
            self.environment.client,
            task_queue=JUDGE_QUEUE,
            workflows=[JudgeWorkflow],
            activities=JudgeActivities(judge, self.counted_outcomes.append).judge_queue_activities,
            max_heartbeat_throttle_interval=timedelta(seconds=0.2),
            # The test server waits without end for a stopped worker that has the workflow in memory.
            max_cached_workflows=0,
        ):
            yield

    async def start(self) -> Any:
        comparison_id = f"judge-{uuid.uuid4().hex}"
        return await self.environment.client.start_workflow(
            JudgeWorkflow.run, comparison_id, id=comparison_id, task_queue=JUDGE_QUEUE
        )

    async def run(self) -> str:
        outcome: str = await (await self.start()).result()
        return outcome


@pytest.fixture
async def harness(environment: WorkflowEnvironment) -> AsyncIterator[JudgeHarness]:
    harness = JudgeHarness(environment)
    async with harness.running_workers():
        yield harness


async def test_a_verdict_is_recorded_and_the_compared_answers_deleted(
    harness: JudgeHarness,
) -> None:
    assert await harness.run() == Outcome.AGREED
    assert harness.steps.recorded_verdicts == [Verdict(given=1.0, other=0.5)]
    assert harness.steps.calls == {"answer": 1, "decide": 1, "close": 1}
    assert harness.counted_outcomes == [Outcome.AGREED]


async def test_a_worse_answer_counts_as_disagreement(harness: JudgeHarness) -> None:
    harness.steps.decision = Verdict(given=0.25, other=0.5)
    assert await harness.run() == Outcome.DISAGREED


@pytest.mark.parametrize("outcome", [Outcome.BUDGET, Outcome.RESIDENCY, Outcome.EXPIRED])
async def test_the_judge_is_not_called_without_a_second_answer(
    harness: JudgeHarness, outcome: Outcome
) -> None:
    harness.steps.answers = [outcome]
    assert await harness.run() == outcome
    assert harness.steps.calls == {"answer": 1, "close": 1}
    assert harness.counted_outcomes == [outcome]


async def test_an_unparsable_verdict_is_counted_but_not_recorded(harness: JudgeHarness) -> None:
    harness.steps.decision = Outcome.UNPARSABLE
    assert await harness.run() == Outcome.UNPARSABLE
    assert harness.steps.recorded_verdicts == []
    assert harness.steps.calls["close"] == 1


async def test_an_outage_of_a_back_end_only_delays_the_comparison(harness: JudgeHarness) -> None:
    harness.steps.answers = [*[BackendUnavailable("away")] * 3, Outcome.ANSWERED]
    assert await harness.run() == Outcome.AGREED
    assert harness.steps.calls["answer"] == 4


async def test_a_comparison_fails_if_the_outage_does_not_end(harness: JudgeHarness) -> None:
    harness.steps.answers = [BackendUnavailable("away")] * 1_000
    assert await harness.run() == Outcome.FAILED
    assert harness.steps.recorded_verdicts == []
    assert harness.steps.calls["close"] == 1


@pytest.mark.parametrize("error", [ValueError(SECRET), BackendRejected(SECRET)])
async def test_a_bug_is_not_retried_and_its_message_is_not_stored(
    harness: JudgeHarness, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The messages of unexpected errors stay out of the history, as they may contain a prompt."""
    harness.steps.answers = [error, Outcome.ANSWERED]
    handle = await harness.start()
    assert await handle.result() == Outcome.FAILED
    assert harness.steps.calls == {"answer": 1, "close": 1}
    history = (await handle.fetch_history()).to_json()
    assert "activityTaskFailed" in history
    assert SECRET not in history
    assert SECRET not in caplog.text


async def test_an_outage_of_the_database_does_not_repeat_the_call_of_the_judge(
    harness: JudgeHarness,
) -> None:
    harness.steps.write_failures = 3
    assert await harness.run() == Outcome.AGREED
    assert harness.steps.calls["decide"] == 1
    assert len(harness.steps.recorded_verdicts) == 1


async def test_a_cancelled_comparison_records_nothing_and_is_deleted(harness: JudgeHarness) -> None:
    harness.steps.hold = asyncio.Event()
    handle = await harness.start()
    async with asyncio.timeout(20):
        await harness.steps.deciding.wait()
        await handle.cancel()
        assert await handle.result() == Outcome.CANCELLED
    assert harness.steps.recorded_verdicts == []
    assert harness.steps.calls["close"] == 1


async def test_another_worker_continues_after_one_is_stopped(
    environment: WorkflowEnvironment,
) -> None:
    harness = JudgeHarness(environment)
    harness.steps.hold = asyncio.Event()
    async with asyncio.timeout(60):
        async with harness.running_workers():
            handle = await harness.start()
            await harness.steps.deciding.wait()
        harness.steps.hold.set()
        async with harness.running_workers():
            assert await handle.result() == Outcome.AGREED
    assert harness.steps.calls == {"answer": 1, "decide": 2, "close": 1}
