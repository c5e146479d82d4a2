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

Bench = Any


def failing(error: Exception, times: int) -> Callable[[StepInput], None]:
    remaining_failures = times

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

    async def wait() -> None:
        has_begun.set()
        while not is_released.is_set():
            activity.heartbeat()
            await asyncio.sleep(0.05)

    return lambda _: wait(), has_begun, is_released


async def test_three_steps_run_in_order_and_each_is_recorded(bench: Bench) -> None:
    outcome = await bench.run()
    assert outcome.status is JobStatus.SUCCEEDED
    assert [r.output for r in outcome.results] == ["out0", "out1", "out2"]
    assert bench.script.log == [
        "start", "step 0", "record 0", "step 1", "record 1", "step 2", "succeeded",
    ]  # fmt: skip
    assert bench.script.outcomes[0].results == outcome.results


async def test_the_workflow_does_not_record_what_an_activity_recorded(bench: Bench) -> None:
    handle = await bench.start()
    await handle.result()
    assert bench.script.recorded == (3 if bench.script.records else 0)
    history = await handle.fetch_history()
    markers = [
        event for event in history.events if event.HasField("marker_recorded_event_attributes")
    ]
    assert len(markers) == (0 if bench.script.records else 3)


async def test_finished_steps_are_not_run_again(bench: Bench) -> None:
    finished_results = tuple(StepResult(index=i, output=f"out{i}") for i in range(2))
    outcome = await bench.run(done=finished_results, attempt=2)
    assert bench.script.tries == {2: 1}
    assert len(outcome.results) == 3


async def test_a_retryable_failure_is_retried(bench: Bench) -> None:
    bench.script.on[2] = failing(to_application_error(WorkerLost("gone")), 2)
    assert (await bench.run()).status is JobStatus.SUCCEEDED
    assert bench.script.tries == {0: 1, 1: 1, 2: 3}


async def test_a_render_survives_many_deaths_of_its_pool(bench: Bench) -> None:
    bench.script.on[2] = failing(to_application_error(WorkerLost("the pool died")), 20)
    assert (await bench.run()).status is JobStatus.SUCCEEDED
    assert bench.script.tries[2] == 21


async def test_the_number_of_tries_of_a_step_is_bounded(bench: Bench) -> None:
    bench.script.on[2] = failing(to_application_error(WorkerLost("the process died")), 1_000)
    outcome = await bench.run()
    assert outcome.status is JobStatus.FAILED
    assert (outcome.error.code, outcome.error.message) == ("worker_lost", "the process died")
    assert bench.script.tries[2] == policies.RENDER.maximum_attempts


async def test_a_final_failure_is_not_retried(bench: Bench) -> None:
    error = to_application_error(RenderFailed("node 3 raised", details={"node": "3"}))
    bench.script.on[1] = failing(error, 1_000)
    outcome = await bench.run()
    assert outcome.status is JobStatus.FAILED
    assert (outcome.error.code, outcome.error.details) == (
        "render_failed",
        {"node": "3", "step": 1},
    )
    assert bench.script.tries == {0: 1, 1: 1}
    assert bench.script.log[-1] == "failed"


async def test_the_message_of_a_bug_is_not_shown(bench: Bench) -> None:
    bench.script.on[2] = failing(RuntimeError("/secret/path"), 1_000)
    outcome = await bench.run()
    assert outcome.error.code == "internal_error"
    assert "secret" not in outcome.error.message


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_a_job_can_be_cancelled_during_a_step(bench: Bench, index: int) -> None:
    bench.script.on[index], has_begun, _ = make_held_step()
    handle = await bench.start()
    await has_begun.wait()
    await handle.cancel()
    outcome = await handle.result()
    assert outcome.status is JobStatus.CANCELLED
    assert [o.status for o in bench.script.outcomes] == [JobStatus.CANCELLED]
    assert f"record {index}" not in bench.script.log


async def test_a_job_can_be_cancelled_before_its_first_task(idle_bench: Bench) -> None:
    handle = await idle_bench.start()
    await handle.cancel()
    async with idle_bench.running_workers():
        outcome = await handle.result()
    assert outcome.status is JobStatus.CANCELLED
    assert [o.status for o in idle_bench.script.outcomes] == [JobStatus.CANCELLED]
    assert idle_bench.script.tries == {}


async def test_a_job_can_be_cancelled_during_a_retry_pause(bench: Bench) -> None:
    error = to_application_error(WorkerLost("gone"))
    error = type(error)(error.message, type=error.type, next_retry_delay=timedelta(days=1))
    bench.script.on[0] = failing(error, 1_000)
    handle = await bench.start()
    await eventually(lambda: bench.script.tries[0])
    await handle.cancel()
    assert (await handle.result()).status is JobStatus.CANCELLED


async def test_cancellation_while_the_outcome_is_written(bench: Bench) -> None:
    """The job may end as succeeded or cancelled, but the first outcome to be written is kept."""
    bench.script.hold_finish.clear()
    handle = await bench.start()
    await eventually(lambda: bench.script.finishing)
    await handle.cancel()
    bench.script.hold_finish.set()
    outcome = await handle.result()
    assert outcome.status in (JobStatus.SUCCEEDED, JobStatus.CANCELLED)
    assert bench.script.outcomes[0].status is JobStatus.SUCCEEDED
    assert bench.script.log.count("step 2") == 1


async def test_a_job_fails_at_its_deadline(bench: Bench) -> None:
    bench.script.on[1], _, _ = make_held_step()
    now = await bench.environment.get_current_time()
    outcome = await bench.run(deadline=now + timedelta(seconds=2))
    assert outcome.status is JobStatus.FAILED
    assert outcome.error.code == "deadline_exceeded"
    assert bench.script.log[-1] == "failed"


async def test_a_job_whose_deadline_has_passed_runs_no_second_step(bench: Bench) -> None:
    now = await bench.environment.get_current_time()
    bench.script.on[0], _, _ = make_held_step()
    outcome = await bench.run(deadline=now - timedelta(hours=1))
    assert outcome.error.code == "deadline_exceeded"
    assert 1 not in bench.script.tries


async def test_the_end_is_recorded_after_a_long_outage_of_the_database(bench: Bench) -> None:
    bench.script.finish_failures = 4
    assert (await bench.run()).status is JobStatus.SUCCEEDED
    assert len(bench.script.outcomes) == 1


async def test_a_superseded_attempt_runs_no_step(bench: Bench) -> None:
    bench.script.can_start = False
    outcome = await bench.run()
    assert outcome.error.code == "superseded"
    assert bench.script.log == ["start"]


async def test_an_attempt_stops_when_it_is_superseded(bench: Bench) -> None:
    bench.script.can_record = False
    await bench.run()
    assert bench.script.tries == {0: 1}
    assert bench.script.outcomes == []


async def test_a_failing_webhook_does_not_change_the_end(bench: Bench) -> None:
    bench.script.hook_failures = 1_000
    assert (await bench.run(webhook=True)).status is JobStatus.SUCCEEDED
    await eventually(lambda: bench.script.hooks)
    assert len(bench.script.outcomes) == 1


async def test_a_webhook_is_retried_for_hours(bench: Bench) -> None:
    bench.script.hook_failures = 7
    started_at = await bench.environment.get_current_time()
    webhook = WebhookInput(job_id="j", attempt=1)
    was_delivered = await bench.environment.client.execute_workflow(
        WebhookWorkflow.run, webhook, id="webhook-j-1", task_queue=JOBS_QUEUE
    )
    assert was_delivered is True
    assert bench.script.hooks == 8
    assert await bench.environment.get_current_time() - started_at > timedelta(hours=1)


async def test_a_job_without_a_webhook_starts_no_child(bench: Bench) -> None:
    await bench.run()
    assert bench.script.hooks == 0


async def test_a_render_that_lacks_memory_moves_to_the_larger_pool(bench: Bench) -> None:
    queues: list[str] = []

    def run_out_of_memory(_: StepInput) -> None:
        queues.append(activity.info().task_queue)
        raise to_application_error(OutOfMemory("too large", details={"pool": "large"}))

    bench.script.on[2] = run_out_of_memory
    outcome = await bench.run()
    assert queues == ["render-default", "render-large"], "each pool is tried once"
    assert outcome.error.code == "out_of_memory"


FOUR = (StepRouting(kind=StepKind.RENDER),) * 4


@pytest.fixture
def batch(bench: Bench) -> Bench:
    bench.script.parallel = True
    return bench


async def test_children_run_concurrently(batch: Bench) -> None:
    arrivals = asyncio.Semaphore(0)
    all_arrived = asyncio.Event()

    async def wait_for_all_children() -> None:
        arrivals.release()
        await all_arrived.wait()

    for index in range(4):
        batch.script.on[index] = lambda _: wait_for_all_children()
    handle = await batch.start(steps=FOUR, parallel=True)
    for _ in range(4):
        await arrivals.acquire()
    all_arrived.set()
    outcome = await handle.result()
    assert (outcome.status, outcome.results) == (JobStatus.SUCCEEDED, ())
    entries = {f"{name} {index}" for name in ("step", "record") for index in range(4)}
    assert set(batch.script.log) >= entries
    assert batch.script.log[-1] == "succeeded"


async def test_a_failed_child_does_not_stop_the_others(batch: Bench) -> None:
    for index in (1, 3):
        error = to_application_error(RenderFailed(f"node {index} raised", details={"node": "9"}))
        batch.script.on[index] = failing(error, 1_000)
    outcome = await batch.run(steps=FOUR, parallel=True)
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
    assert {"record 0", "record 2"} <= set(batch.script.log)


async def test_finished_children_are_not_run_again(batch: Bench) -> None:
    finished_results = tuple(StepResult(index=index, output="") for index in (0, 2))
    assert (
        await batch.run(steps=FOUR, parallel=True, done=finished_results)
    ).status is JobStatus.SUCCEEDED
    assert batch.script.tries == {1: 1, 3: 1}


async def test_a_cancelled_batch_keeps_finished_children_and_cancels_the_rest(batch: Bench) -> None:
    started_steps = []
    for index in (1, 2, 3):
        batch.script.on[index], event, _ = make_held_step()
        started_steps.append(event)
    handle = await batch.start(steps=FOUR, parallel=True)
    for event in started_steps:
        await event.wait()
    await eventually(lambda: "record 0" in batch.script.log)
    await handle.cancel()
    assert (await handle.result()).status is JobStatus.CANCELLED
    assert [o.status for o in batch.script.outcomes] == [JobStatus.CANCELLED]
    assert [line for line in batch.script.log if line.startswith("record")] == ["record 0"]


async def test_a_batch_fails_at_its_deadline(batch: Bench) -> None:
    for index in range(4):
        batch.script.on[index], _, _ = make_held_step()
    now = await batch.environment.get_current_time()
    outcome = await batch.run(steps=FOUR, parallel=True, deadline=now + timedelta(seconds=2))
    assert outcome.error.code == "deadline_exceeded"


async def test_a_batch_stops_when_it_is_superseded(batch: Bench) -> None:
    batch.script.can_record = False
    assert (await batch.run(steps=FOUR, parallel=True)).error.code == "superseded"
    assert batch.script.outcomes == []
