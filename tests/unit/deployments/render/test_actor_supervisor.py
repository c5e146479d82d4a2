"""Tests how many actors are started and removed, with fake actors."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from actors.comfyui import ActorStatus, ComfySpec
from deployments.render import actor_supervisor as module
from deployments.render.actor_supervisor import ActorSupervisor
from deployments.render.bookkeeper import RunBookkeeper
from deployments.render.pool import Pool
from deployments.render.telemetry import ActorCounts
from moyin.domain.render_run import RenderAccount, RenderPrice, RenderRun
from moyin.domain.renderer import RenderRequest
from moyin.errors import ServiceUnavailable, StackError, WorkerLost
from moyin.render.scheduling.rules import PendingRender, ScalingPolicy
from moyin.testing.renderer import FakeRenderer
from tests.waiting import eventually

SPEC = ComfySpec(gpus=0.5)


class FakeActor(FakeRenderer):
    """Stands for an actor and for its `RayRenderer`."""

    def __init__(self, spec: ComfySpec, on_retire: Callable[[], Any]) -> None:
        super().__init__()
        self._spec = spec
        self._retired = on_retire
        self.is_of_earlier_version = False
        self.is_placed = asyncio.Event()
        self.is_placed.set()

    async def get_actor_status(self) -> ActorStatus:
        await self.is_placed.wait()
        if isinstance(self.failure, WorkerLost):
            raise self.failure
        return ActorStatus(
            renderer=await self.status(), spec=self._spec, node_id="n", devices=None, started=0
        )

    async def retire(self) -> None:
        self._retired()


class FakeCluster:
    """A fake cluster that starts and finds fake actors by name."""

    def __init__(self) -> None:
        self.actors: dict[str, FakeActor] = {}
        self.capacity = 100

    def find_or_start(self, name: str, spec: ComfySpec) -> FakeActor:
        if name not in self.actors:
            actor = FakeActor(spec, lambda: self.actors.pop(name, None))
            if len(self.actors) >= self.capacity:
                actor.is_placed.clear()
            self.actors[name] = actor
        return self.actors[name]

    def list_actors(self, prefix: str) -> list[str]:
        return sorted(self.actors)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    cluster = FakeCluster()
    monkeypatch.setattr(module, "find_or_start", cluster.find_or_start)
    monkeypatch.setattr(module, "list_actors", cluster.list_actors)
    monkeypatch.setattr(module, "RayRenderer", lambda handle: handle)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(module, "_PLACEMENT_SECONDS", 0.2)
    return cluster


class RecordingLedger:
    """A fake ledger that keeps the latest measurement of each run, or raises ``failure`` if set."""

    def __init__(self) -> None:
        self.booked_runs: dict[str, RenderRun] = {}
        self.failure: Exception | None = None

    async def book(self, runs: Sequence[RenderRun]) -> None:
        if self.failure is not None:
            raise self.failure
        self.booked_runs.update({run.id: run for run in runs})


def new_supervisor(
    pool: Pool,
    spec: ComfySpec,
    scaling_policy: ScalingPolicy,
    on_counts: Callable[[ActorCounts], None] = lambda _: None,
    ledger: RecordingLedger | None = None,
) -> ActorSupervisor:
    run_ledger: Any = ledger or RecordingLedger()
    return ActorSupervisor(pool, spec, scaling_policy, RunBookkeeper(run_ledger), on_counts)


def start_render(pool: Pool, prompt_id: str | None = None) -> asyncio.Task[Any]:
    """Start a render, or with ``prompt_id`` continue the prompt of an earlier attempt."""
    render_request = RenderRequest(prompt_id=prompt_id or str(uuid.uuid4()), graph={"1": {}})
    pending_render = PendingRender(id=render_request.prompt_id, priority=3, arrived=0)
    is_retry = prompt_id is not None
    return asyncio.create_task(
        pool.render(render_request, pending_render, lambda _: None, is_retry=is_retry)
    )


async def test_actors_are_started_for_the_queue_and_removed_when_idle(cluster: FakeCluster) -> None:
    pool = Pool("p")
    supervisor = new_supervisor(
        pool, SPEC, ScalingPolicy(minimum=0, maximum=3, patience=10, idle=0.2)
    )
    supervisor.start()
    await asyncio.sleep(0.1)
    assert cluster.actors == {}
    tasks = [start_render(pool) for _ in range(2)]
    await eventually(lambda: len(cluster.actors) == 2)
    await asyncio.gather(*tasks)
    await eventually(lambda: cluster.actors == {})
    supervisor.check_running()
    await start_render(pool)
    await supervisor.remove_idle_actors()
    assert cluster.actors == {}


async def test_minimum_number_of_actors_stays(cluster: FakeCluster) -> None:
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=2, maximum=3, idle=0.05))
    supervisor.start()
    await eventually(lambda: len(supervisor.statuses) == 2)
    await asyncio.sleep(0.2)
    assert sorted(cluster.actors) == ["comfyui-p-0", "comfyui-p-1"]
    await supervisor.remove_idle_actors()


async def test_busy_actor_survives_its_pool(cluster: FakeCluster) -> None:
    pool = Pool("p")
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=2, maximum=2))
    supervisor.start()
    await eventually(lambda: len(supervisor.statuses) == 2)
    cluster.actors["comfyui-p-0"].held.clear()
    cluster.actors["comfyui-p-1"].held.clear()
    task = start_render(pool)
    await eventually(lambda: any(actor.busy.is_set() for actor in cluster.actors.values()))
    await supervisor.remove_idle_actors()
    [last_actor] = cluster.actors.values()
    assert last_actor.busy.is_set()
    last_actor.held.set()
    await task


async def test_attached_renderer_is_not_idle(cluster: FakeCluster) -> None:
    old_pool = Pool("p")
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    actor.held.clear()
    old_pool.add_renderer("comfyui-p-0", actor, await actor.status())
    abandoned_render = start_render(old_pool)
    await actor.busy.wait()
    pool = Pool("p")
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=0, maximum=1, idle=0.05))
    supervisor.start()
    task = start_render(pool, prompt_id=actor.started[0])
    await asyncio.sleep(0.3)
    assert "comfyui-p-0" in cluster.actors
    actor.held.set()
    await asyncio.gather(task, abandoned_render)
    await eventually(lambda: cluster.actors == {})
    await supervisor.remove_idle_actors()


async def test_actor_of_another_configuration_finishes_and_is_replaced(
    cluster: FakeCluster,
) -> None:
    old_actor = cluster.find_or_start("comfyui-p-0", replace(SPEC, gpus=1.0))
    surplus_actor = cluster.find_or_start("comfyui-p-7", SPEC)
    for actor in (old_actor, surplus_actor):
        actor.held.clear()
        actor._running.add("left-over")
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=1, maximum=1))
    supervisor.start()
    await asyncio.sleep(0.2)
    assert sorted(cluster.actors) == ["comfyui-p-0", "comfyui-p-7"]
    for actor in (old_actor, surplus_actor):
        actor._running.clear()
    await eventually(lambda: list(cluster.actors) == ["comfyui-p-0"])
    await eventually(lambda: cluster.actors["comfyui-p-0"] is not old_actor)
    supervisor.check_running()
    await supervisor.remove_idle_actors()


async def test_actor_of_an_earlier_version_is_replaced_although_its_spec_is_equal(
    cluster: FakeCluster,
) -> None:
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=1, maximum=1))
    supervisor.start()
    await eventually(lambda: len(supervisor.statuses) == 1)
    [old_actor] = cluster.actors.values()
    old_actor.is_of_earlier_version = True
    await eventually(lambda: [*cluster.actors.values()] not in ([], [old_actor]))
    await supervisor.remove_idle_actors()


async def test_result_of_a_removed_actor_is_returned_to_a_late_attempt(
    cluster: FakeCluster,
) -> None:
    old_actor = cluster.find_or_start("comfyui-p-0", replace(SPEC, gpus=1.0))
    old_actor._finished.add("left-over")
    pool = Pool("p")
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=1, maximum=1))
    supervisor.start()
    await eventually(lambda: cluster.actors.get("comfyui-p-0") not in (None, old_actor))
    name, result = await start_render(pool, "left-over")
    assert (name, result.files) == ("comfyui-p-0", (old_actor.file,))
    assert cluster.actors["comfyui-p-0"].started == []
    await supervisor.remove_idle_actors()


async def test_actor_with_an_unfetched_result_survives_its_pool(cluster: FakeCluster) -> None:
    pool = Pool("p")
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=1, maximum=1))
    supervisor.start()
    await eventually(lambda: len(supervisor.statuses) == 1)
    [actor] = cluster.actors.values()
    actor.held.clear()
    task = start_render(pool)
    await actor.busy.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    actor._running.clear()
    await supervisor.remove_idle_actors()
    assert list(cluster.actors.values()) == [actor]


async def test_unplaced_actor_waits_while_renders_wait(
    cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.__name__)
    cluster.capacity = 0
    pool, counts = Pool("p"), set[ActorCounts]()
    supervisor = new_supervisor(
        pool, SPEC, ScalingPolicy(minimum=0, maximum=2, idle=0.05), counts.add
    )
    supervisor.start()
    task = start_render(pool)
    await eventually(lambda: supervisor.placing_seconds.get("comfyui-p-0", 0) > 0.4)
    assert ActorCounts(ready=0, starting=0, placing=1) in counts
    assert [r.getMessage() for r in caplog.records] == [
        "actor comfyui-p-0 is waiting for a node with 0.5 GPU, 0.5 CPU"
    ]
    assert supervisor.statuses == {}
    cluster.actors["comfyui-p-0"].is_placed.set()
    await asyncio.wait_for(task, 5)
    assert supervisor.placing_seconds == {}
    await eventually(lambda: cluster.actors == {})
    await supervisor.remove_idle_actors()


async def test_unneeded_unplaced_actor_is_removed(cluster: FakeCluster) -> None:
    cluster.capacity = 1
    pool = Pool("p")
    supervisor = new_supervisor(
        pool, SPEC, ScalingPolicy(minimum=0, maximum=2, patience=0.01, idle=100)
    )
    supervisor.start()
    await asyncio.gather(*(start_render(pool) for _ in range(3)))
    await eventually(lambda: list(cluster.actors) == ["comfyui-p-0"])
    await supervisor.remove_idle_actors()


async def test_pool_is_starting_until_an_actor_is_ready_or_failed(cluster: FakeCluster) -> None:
    pool = Pool("p")
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=1, maximum=1))
    assert supervisor.is_starting, "before it has looked for actors"
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    actor.ready = False
    supervisor.start()
    await eventually(lambda: len(supervisor.statuses) == 1)
    assert supervisor.is_starting
    actor.error = "ComfyUI ended with status 1"
    await eventually(lambda: not supervisor.is_starting)
    actor.ready, actor.error = True, None
    await eventually(lambda: pool.renderers == ["comfyui-p-0"])
    assert not supervisor.is_starting
    await supervisor.remove_idle_actors()


async def test_actor_that_waits_for_a_node_is_not_starting(cluster: FakeCluster) -> None:
    cluster.capacity = 0
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=1, maximum=1))
    supervisor.start()
    await eventually(lambda: "comfyui-p-0" in supervisor.placing_seconds)
    assert supervisor.is_starting
    await eventually(lambda: not supervisor.is_starting)
    await supervisor.remove_idle_actors()


async def test_actor_of_another_configuration_gets_no_requests(cluster: FakeCluster) -> None:
    old_actor = cluster.find_or_start("comfyui-p-0", replace(SPEC, gpus=1.0))
    old_actor.held.clear()
    old_actor._running.add("left-over")
    pool = Pool("p")
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=1, maximum=1))
    supervisor.start()
    await eventually(lambda: pool.is_draining("comfyui-p-0"))
    with pytest.raises(ServiceUnavailable):
        await pool.get("/object_info")
    assert supervisor.is_starting
    old_actor._running.clear()
    await eventually(lambda: pool.renderers == ["comfyui-p-0"])
    await supervisor.remove_idle_actors()


async def test_start_error_is_logged_once(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    try_count = 0

    def fail_to_start(name: str, spec: ComfySpec) -> FakeActor:
        nonlocal try_count
        try_count += 1
        raise StackError("ComfyUI is not installed" if try_count < 4 else "it is broken")

    monkeypatch.setattr(module, "find_or_start", fail_to_start)
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=1, maximum=1, idle=0.05))
    supervisor.start()
    await eventually(lambda: try_count > 6)
    await supervisor.remove_idle_actors()
    assert [record.getMessage() for record in caplog.records] == [
        "actor comfyui-p-0 failed and is started again: ComfyUI is not installed",
        "actor comfyui-p-0 failed and is started again: it is broken",
    ]


ACCOUNT = RenderAccount(
    owner="ann", job_id="j", pool="p", price=RenderPrice(usd_per_gpu_hour=Decimal(36))
)
OPEN_RUN = RenderRun(id="1" * 32, prompt_id="j", account=ACCOUNT, seconds=4.0, is_ended=False)


async def test_runs_that_no_attempt_waited_for_are_booked_and_settled(cluster: FakeCluster) -> None:
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    ended_run = replace(OPEN_RUN, id="2" * 32, is_ended=True)
    actor.runs = [ended_run, OPEN_RUN]
    ledger = RecordingLedger()
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=1, maximum=1), ledger=ledger)
    supervisor.start()
    await eventually(lambda: actor.runs == [OPEN_RUN])
    assert ledger.booked_runs == {ended_run.id: ended_run}
    actor.runs = [replace(OPEN_RUN, seconds=5.0, is_ended=True)]
    await supervisor.remove_idle_actors()
    assert ledger.booked_runs[OPEN_RUN.id].seconds == 5.0
    assert cluster.actors == {}


async def test_actor_remains_until_its_runs_are_booked(cluster: FakeCluster) -> None:
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    ended_run = replace(OPEN_RUN, is_ended=True)
    actor.runs = [ended_run]
    ledger = RecordingLedger()
    ledger.failure = OSError("the database is down")
    supervisor = new_supervisor(
        Pool("p"), SPEC, ScalingPolicy(minimum=0, maximum=1, idle=0.05), ledger=ledger
    )
    supervisor.start()
    await eventually(lambda: "comfyui-p-0" in supervisor.statuses)
    await asyncio.sleep(0.2)
    await supervisor.remove_idle_actors()
    assert (actor.runs, cluster.actors) == ([ended_run], {"comfyui-p-0": actor})

    ledger.failure = None
    supervisor = new_supervisor(
        Pool("p"), SPEC, ScalingPolicy(minimum=0, maximum=1, idle=0.05), ledger=ledger
    )
    supervisor.start()
    await eventually(lambda: cluster.actors == {})
    assert ledger.booked_runs == {ended_run.id: ended_run}
    await supervisor.remove_idle_actors()


async def test_run_of_a_lost_actor_is_booked_as_it_was_last_seen(cluster: FakeCluster) -> None:
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    actor.runs = [OPEN_RUN]
    ledger = RecordingLedger()
    supervisor = new_supervisor(Pool("p"), SPEC, ScalingPolicy(minimum=1, maximum=1), ledger=ledger)
    supervisor.start()
    await eventually(lambda: "comfyui-p-0" in supervisor.statuses)
    assert ledger.booked_runs == {}
    # Ray restarts a lost actor under its name, without its memory.
    actor.runs = []
    await eventually(lambda: OPEN_RUN.id in ledger.booked_runs)
    run = ledger.booked_runs[OPEN_RUN.id]
    assert (run.seconds, run.error, run.is_ended) == (4.0, "worker_lost", True)
    await supervisor.remove_idle_actors()


async def test_ended_run_of_a_lost_actor_is_booked_after_an_outage(cluster: FakeCluster) -> None:
    ledger: Any = RecordingLedger()
    bookkeeper, ended_run = RunBookkeeper(ledger), replace(OPEN_RUN, is_ended=True)
    ledger.failure = OSError("the database is down")
    assert await bookkeeper.settle("a", [ended_run]) == []
    await bookkeeper.settle("a", ())
    ledger.failure = None
    await bookkeeper.settle("a", ())
    assert ledger.booked_runs == {ended_run.id: ended_run}
    ledger.booked_runs.clear()
    assert await bookkeeper.settle("a", [ended_run]) == [ended_run.id]
    ledger.booked_runs.clear()
    await bookkeeper.settle("a", ())
    assert ledger.booked_runs == {}, "it has been booked and is not lost"


class HangingLedger(RecordingLedger):
    """A fake ledger whose database does not respond."""

    def __init__(self) -> None:
        super().__init__()
        self.was_called = asyncio.Event()

    async def book(self, runs: Sequence[RenderRun]) -> None:
        self.was_called.set()
        await asyncio.Event().wait()


async def test_lost_actor_gets_no_renders_while_the_database_hangs(cluster: FakeCluster) -> None:
    pool, ledger = Pool("p"), HangingLedger()
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    actor.runs = [OPEN_RUN]
    supervisor = new_supervisor(pool, SPEC, ScalingPolicy(minimum=1, maximum=1), ledger=ledger)
    supervisor.start()
    await eventually(lambda: bool(pool.renderers))
    actor.failure = WorkerLost("the actor has died")
    await ledger.was_called.wait()
    assert list(pool.renderers) == []
    await supervisor.remove_idle_actors()


async def test_many_runs_are_booked_in_several_transactions() -> None:
    class SlowLedger(RecordingLedger):
        """A fake ledger that fails in every transaction after the first."""

        async def book(self, runs: Sequence[RenderRun]) -> None:
            await super().book(runs)
            self.failure = TimeoutError()

    ledger: Any = SlowLedger()
    bookkeeper = RunBookkeeper(ledger)
    runs = [replace(OPEN_RUN, id=f"{number:032x}", is_ended=True) for number in range(250)]
    settled_ids = await bookkeeper.settle("a", runs)
    assert settled_ids == list(ledger.booked_runs) == [run.id for run in runs[:100]]
    ledger.failure = None
    assert len(await bookkeeper.settle("a", runs[100:])) == 100
