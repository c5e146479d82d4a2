"""Tests every way in which a job can end, on Temporal's time-skipping server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity

from moyin.domain.job import JobStatus, StepKind, StepResult
from moyin.errors import OutOfMemory, RenderFailed, WorkerLost
from moyin.jobs.workflows import policies
from moyin.jobs.workflows.failures import to_application_error
from moyin.jobs.workflows.job import WebhookWorkflow
from moyin.jobs.workflows.types import JOBS_QUEUE, StepInput, StepRouting, WebhookInput
from tests.waiting import eventually

Harness = Any


def make_failing_step(error: Exception, failure_count: int) -> Callable[[StepInput], None]:
    remaining_failures = failure_count

    def fail_at_first(_: StepInput) -> None:
        nonlocal remaining_failures
        if remaining_failures:
            remaining_failures -= 1
            raise error

    return fail_at_first


def make_held_step() -> tuple[Callable[[StepInput], Any], asyncio.Event, asyncio.Event]:
    """Return a step that sends heartbeats until it is released.

    Returns:
        The step, the event that it sets at its start, and the event that releases it.
    """
    has_begun, is_released = asyncio.Event(), asyncio.Event()

    async def wait_for_release() -> None:
        has_begun.set()
        while not is_released.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.05)

    return lambda _: wait_for_release(), has_begun, is_released


async def test_three_steps_run_in_order_and_each_is_recorded(harness: Harness) -> None:
    outcome = await harness.run()
    assert outcome.status is JobStatus.SUCCEEDED
    assert [r.output for r in outcome.results] == ["out0", "out1", "out2"]
    assert harness.script.log == [
        "start", "step 0", "record 0", "step 1", "record 1", "step 2", "succeeded",
    ]  # fmt: skip
    assert harness.script.outcomes[0].results == outcome.results


async def test_the_workflow_does_not_record_results_that_an_activity_recorded(
    harness: Harness,
) -> None:
    handle = await harness.start()
    await handle.result()
    assert harness.script.recording_count == (3 if harness.script.records_results else 0)
    history = await handle.fetch_history()
    markers = [
        event for event in history.events if event.HasField("marker_recorded_event_attributes")
    ]
    assert len(markers) == (0 if harness.script.records_results else 3)


async def test_finished_steps_are_not_run_again(harness: Harness) -> None:
    finished_results = tuple(StepResult(index=i, output=f"out{i}") for i in range(2))
    outcome = await harness.run(done=finished_results, attempt=2)
    assert harness.script.attempt_counts == {2: 1}
    assert len(outcome.results) == 3


async def test_a_retryable_failure_is_retried(harness: Harness) -> None:
    harness.script.step_actions[2] = make_failing_step(to_application_error(WorkerLost("gone")), 2)
    assert (await harness.run()).status is JobStatus.SUCCEEDED
    assert harness.script.attempt_counts == {0: 1, 1: 1, 2: 3}


async def test_a_render_survives_many_deaths_of_its_pool(harness: Harness) -> None:
    harness.script.step_actions[2] = make_failing_step(
        to_application_error(WorkerLost("the pool died")), 20
    )
    assert (await harness.run()).status is JobStatus.SUCCEEDED
    assert harness.script.attempt_counts[2] == 21


async def test_the_number_of_attempts_at_a_step_is_bounded(harness: Harness) -> None:
    harness.script.step_actions[2] = make_failing_step(
        to_application_error(WorkerLost("the process died")), 1_000
    )
    outcome = await harness.run()
    assert outcome.status is JobStatus.FAILED
    assert (outcome.error.code, outcome.error.message) == ("worker_lost", "the process died")
    assert harness.script.attempt_counts[2] == policies.RENDER.maximum_attempts


async def test_a_final_failure_is_not_retried(harness: Harness) -> None:
    error = to_application_error(RenderFailed("node 3 raised", details={"node": "3"}))
    harness.script.step_actions[1] = make_failing_step(error, 1_000)
    outcome = await harness.run()
    assert outcome.status is JobStatus.FAILED
    assert (outcome.error.code, outcome.error.details) == (
        "render_failed",
        {"node": "3", "step": 1},
    )
    assert harness.script.attempt_counts == {0: 1, 1: 1}
    assert harness.script.log[-1] == "failed"


async def test_the_message_of_a_bug_is_not_shown(harness: Harness) -> None:
    harness.script.step_actions[2] = make_failing_step(RuntimeError("/secret/path"), 1_000)
    outcome = await harness.run()
    assert outcome.error.code == "internal_error"
    assert "secret" not in outcome.error.message


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_job_can_be_cancelled_during_a_step(harness: Harness, index: int) -> None:
    harness.script.step_actions[index], has_begun, _ = make_held_step()
    handle = await harness.start()
    await has_begun.wait()
    await handle.cancel()
    outcome = await handle.result()
    assert outcome.status is JobStatus.CANCELLED
    assert [o.status for o in harness.script.outcomes] == [JobStatus.CANCELLED]
    assert f"record {index}" not in harness.script.log


async def test_a_job_can_be_cancelled_before_its_first_task(idle_harness: Harness) -> None:
    handle = await idle_harness.start()
    await handle.cancel()
    async with idle_harness.running_workers():
        outcome = await handle.result()
    assert outcome.status is JobStatus.CANCELLED
    assert [o.status for o in idle_harness.script.outcomes] == [JobStatus.CANCELLED]
    assert idle_harness.script.attempt_counts == {}


async def test_a_job_can_be_cancelled_during_a_retry_pause(harness: Harness) -> None:
    error = to_application_error(WorkerLost("gone"))
    error = type(error)(error.message, type=error.type, next_retry_delay=timedelta(days=1))
    harness.script.step_actions[0] = make_failing_step(error, 1_000)
    handle = await harness.start()
    await eventually(lambda: harness.script.attempt_counts[0])
    await handle.cancel()
    assert (await handle.result()).status is JobStatus.CANCELLED


async def test_a_cancellation_while_the_outcome_is_written_keeps_the_first_outcome(
    harness: Harness,
) -> None:
    """The job may end as succeeded or cancelled, but the first outcome to be written is kept."""
    harness.script.may_finish.clear()
    handle = await harness.start()
    await eventually(lambda: harness.script.finish_count)
    await handle.cancel()
    harness.script.may_finish.set()
    outcome = await handle.result()
    assert outcome.status in (JobStatus.SUCCEEDED, JobStatus.CANCELLED)
    assert harness.script.outcomes[0].status is JobStatus.SUCCEEDED
    assert harness.script.log.count("step 2") == 1


async def test_a_job_fails_at_its_deadline(harness: Harness) -> None:
    harness.script.step_actions[1], _, _ = make_held_step()
    now = await harness.environment.get_current_time()
    outcome = await harness.run(deadline=now + timedelta(seconds=2))
    assert outcome.status is JobStatus.FAILED
    assert outcome.error.code == "deadline_exceeded"
    assert harness.script.log[-1] == "failed"


async def test_a_job_whose_deadline_has_passed_runs_no_second_step(harness: Harness) -> None:
    now = await harness.environment.get_current_time()
    harness.script.step_actions[0], _, _ = make_held_step()
    outcome = await harness.run(deadline=now - timedelta(hours=1))
    assert outcome.error.code == "deadline_exceeded"
    assert 1 not in harness.script.attempt_counts


async def test_the_end_is_recorded_after_a_long_outage_of_the_database(harness: Harness) -> None:
    harness.script.remaining_finish_failures = 4
    assert (await harness.run()).status is JobStatus.SUCCEEDED
    assert len(harness.script.outcomes) == 1


async def test_a_superseded_attempt_runs_no_step(harness: Harness) -> None:
    harness.script.can_start = False
    outcome = await harness.run()
    assert outcome.error.code == "superseded"
    assert harness.script.log == ["start"]


async def test_an_attempt_stops_when_it_is_superseded(harness: Harness) -> None:
    harness.script.can_record = False
    await harness.run()
    assert harness.script.attempt_counts == {0: 1}
    assert harness.script.outcomes == []


async def test_a_failing_webhook_does_not_change_the_end(harness: Harness) -> None:
    harness.script.remaining_webhook_failures = 1_000
    assert (await harness.run(webhook=True)).status is JobStatus.SUCCEEDED
    await eventually(lambda: harness.script.webhook_count)
    assert len(harness.script.outcomes) == 1


async def test_a_webhook_is_retried_for_hours(harness: Harness) -> None:
    harness.script.remaining_webhook_failures = 7
    started_at = await harness.environment.get_current_time()
    webhook = WebhookInput(job_id="j", attempt=1)
    was_delivered = await harness.environment.client.execute_workflow(
        WebhookWorkflow.run, webhook, id="webhook-j-1", task_queue=JOBS_QUEUE
    )
    assert was_delivered is True
    assert harness.script.webhook_count == 8
    assert await harness.environment.get_current_time() - started_at > timedelta(hours=1)


async def test_a_job_without_a_webhook_starts_no_child(harness: Harness) -> None:
    await harness.run()
    assert harness.script.webhook_count == 0


async def test_a_render_that_lacks_memory_moves_to_the_larger_pool(harness: Harness) -> None:
    task_queues: list[str] = []

    def run_out_of_memory(_: StepInput) -> None:
        task_queues.append(activity.info().task_queue)
        raise to_application_error(OutOfMemory("too large", details={"pool": "large"}))

    harness.script.step_actions[2] = run_out_of_memory
    outcome = await harness.run()
    assert task_queues == ["render-default", "render-large"], "each pool is tried once"
    assert outcome.error.code == "out_of_memory"


FOUR_RENDERS = (StepRouting(kind=StepKind.RENDER),) * 4


@pytest.fixture
def batch_harness(harness: Harness) -> Harness:
    harness.script.runs_in_parallel = True
    return harness


async def test_children_run_concurrently(batch_harness: Harness) -> None:
    arrivals = asyncio.Semaphore(0)
    all_arrived = asyncio.Event()

    async def wait_for_all_children() -> None:
        arrivals.release()
        await all_arrived.wait()

    for index in range(4):
        batch_harness.script.step_actions[index] = lambda _: wait_for_all_children()
    handle = await batch_harness.start(steps=FOUR_RENDERS, parallel=True)
    for _ in range(4):
        await arrivals.acquire()
    all_arrived.set()
    outcome = await handle.result()
    assert (outcome.status, outcome.results) == (JobStatus.SUCCEEDED, ())
    expected_entries = {f"{name} {index}" for name in ("step", "record") for index in range(4)}
    assert set(batch_harness.script.log) >= expected_entries
    assert batch_harness.script.log[-1] == "succeeded"


async def test_a_failed_child_does_not_stop_the_others(batch_harness: Harness) -> None:
    for index in (1, 3):
        error = to_application_error(RenderFailed(f"node {index} raised", details={"node": "9"}))
        batch_harness.script.step_actions[index] = make_failing_step(error, 1_000)
    outcome = await batch_harness.run(steps=FOUR_RENDERS, parallel=True)
    assert outcome.status is JobStatus.FAILED
    assert outcome.error.code == "render_failed"
    assert outcome.error.message == "2 of 4 children failed; child 1: node 1 raised"
    assert outcome.error.details == {
        "step": 1,
        "children": {
            str(index): {"code": "render_failed", "message": f"node {index} raised"}
            for index in (1, 3)
        },
    }
    assert {"record 0", "record 2"} <= set(batch_harness.script.log)


async def test_finished_children_are_not_run_again(batch_harness: Harness) -> None:
    finished_results = tuple(StepResult(index=index, output="") for index in (0, 2))
    assert (
        await batch_harness.run(steps=FOUR_RENDERS, parallel=True, done=finished_results)
    ).status is JobStatus.SUCCEEDED
    assert batch_harness.script.attempt_counts == {1: 1, 3: 1}


async def test_a_cancelled_batch_keeps_finished_children_and_cancels_the_rest(
    batch_harness: Harness,
) -> None:
    start_events = []
    for index in (1, 2, 3):
        batch_harness.script.step_actions[index], event, _ = make_held_step()
        start_events.append(event)
    handle = await batch_harness.start(steps=FOUR_RENDERS, parallel=True)
    for event in start_events:
        await event.wait()
    await eventually(lambda: "record 0" in batch_harness.script.log)
    await handle.cancel()
    assert (await handle.result()).status is JobStatus.CANCELLED
    assert [o.status for o in batch_harness.script.outcomes] == [JobStatus.CANCELLED]
    assert [line for line in batch_harness.script.log if line.startswith("record")] == ["record 0"]


async def test_a_batch_fails_at_its_deadline(batch_harness: Harness) -> None:
    for index in range(4):
        batch_harness.script.step_actions[index], _, _ = make_held_step()
    now = await batch_harness.environment.get_current_time()
    outcome = await batch_harness.run(
        steps=FOUR_RENDERS, parallel=True, deadline=now + timedelta(seconds=2)
    )
    assert outcome.error.code == "deadline_exceeded"


async def test_a_batch_stops_when_it_is_superseded(batch_harness: Harness) -> None:
    batch_harness.script.can_record = False
    assert (await batch_harness.run(steps=FOUR_RENDERS, parallel=True)).error.code == "superseded"
    assert batch_harness.script.outcomes == []
