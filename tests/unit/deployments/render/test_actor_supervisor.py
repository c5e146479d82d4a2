"""How many actors there are, on actors that are none."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from actors.comfyui import ActorStatus, ComfySpec
from deployments.render import actor_supervisor as module
from deployments.render.actor_supervisor import ActorCounts, ActorSupervisor
from deployments.render.pool import Pool
from moyin.domain.renderer import RenderRequest
from moyin.errors import ServiceUnavailable, StackError
from moyin.render.scheduling.policy import PendingRender
from moyin.render.scheduling.scaling import Scale
from moyin.testing.renderer import FakeRenderer

SPEC = ComfySpec(gpus=0.5)


class FakeActor(FakeRenderer):
    """What `RayRenderer` would make of a handle."""

    def __init__(self, spec: ComfySpec, retired: Callable[[], Any]) -> None:
        super().__init__()
        self._spec = spec
        self._retired = retired
        self.placed = asyncio.Event()
        self.placed.set()

    async def actor_status(self) -> ActorStatus:
        await self.placed.wait()
        return ActorStatus(
            renderer=await self.status(), spec=self._spec, node_id="n", devices=None, started=0
        )

    async def retire(self) -> None:
        self._retired()


class Cluster:
    """Named actors."""

    def __init__(self) -> None:
        self.actors: dict[str, FakeActor] = {}
        self.room = 100

    def find_or_start(self, name: str, spec: ComfySpec) -> FakeActor:
        if name not in self.actors:
            actor = FakeActor(spec, lambda: self.actors.pop(name, None))
            if len(self.actors) >= self.room:
                actor.placed.clear()
            self.actors[name] = actor
        return self.actors[name]

    def existing(self, prefix: str) -> list[str]:
        return sorted(self.actors)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(module, "find_or_start", cluster.find_or_start)
    monkeypatch.setattr(module, "existing", cluster.existing)
    monkeypatch.setattr(module, "RayRenderer", lambda handle: handle)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(module, "_SOON_SECONDS", 0.2)
    return cluster


def render(pool: Pool, left: str | None = None) -> asyncio.Task[Any]:
    """``left``: the prompt of an earlier attempt."""
    wanted = RenderRequest(prompt_id=left or str(uuid.uuid4()), graph={"1": {}})
    waiting = PendingRender(id=wanted.prompt_id, priority=3, arrived=0)
    repeated = left is not None
    return asyncio.create_task(pool.render(wanted, waiting, lambda _: None, repeated=repeated))


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def test_actors_come_with_the_queue_and_go_when_nobody_needs_them(cluster: Cluster) -> None:
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=0, maximum=3, patience=10, idle=0.2))
    crew.start()
    await asyncio.sleep(0.1)
    assert cluster.actors == {}
    tasks = [render(pool) for _ in range(2)]
    await until(lambda: len(cluster.actors) == 2)
    await asyncio.gather(*tasks)
    await until(lambda: cluster.actors == {})
    crew.check()
    await render(pool)
    await crew.remove()
    assert cluster.actors == {}


async def test_there_are_never_fewer_than_the_minimum(cluster: Cluster) -> None:
    crew = ActorSupervisor(Pool("p"), SPEC, Scale(minimum=2, maximum=3, idle=0.05))
    crew.start()
    await until(lambda: len(crew.statuses) == 2)
    await asyncio.sleep(0.2)
    assert sorted(cluster.actors) == ["comfyui-p-0", "comfyui-p-1"]
    await crew.remove()


async def test_who_is_at_work_stays_when_the_pool_goes(cluster: Cluster) -> None:
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=2, maximum=2))
    crew.start()
    await until(lambda: len(crew.statuses) == 2)
    cluster.actors["comfyui-p-0"].held.clear()
    cluster.actors["comfyui-p-1"].held.clear()
    task = render(pool)
    await until(lambda: any(actor.busy.is_set() for actor in cluster.actors.values()))
    await crew.remove()
    [left] = cluster.actors.values()
    assert left.busy.is_set()
    left.held.set()
    await task


async def test_who_is_attached_to_is_not_idle(cluster: Cluster) -> None:
    before = Pool("p")
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    actor.held.clear()
    before.up("comfyui-p-0", actor, await actor.status())
    abandoned = render(before)
    await actor.busy.wait()
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=0, maximum=1, idle=0.05))
    crew.start()
    task = render(pool, left=actor.started[0])
    await asyncio.sleep(0.3)
    assert "comfyui-p-0" in cluster.actors
    actor.held.set()
    await asyncio.gather(task, abandoned)
    await until(lambda: cluster.actors == {})
    await crew.remove()


async def test_what_another_configuration_left_is_done_and_then_replaced(cluster: Cluster) -> None:
    old = cluster.find_or_start("comfyui-p-0", replace(SPEC, gpus=1.0))
    surplus = cluster.find_or_start("comfyui-p-7", SPEC)
    for actor in (old, surplus):
        actor.held.clear()
        actor._running.add("left-over")
    crew = ActorSupervisor(Pool("p"), SPEC, Scale(minimum=1, maximum=1))
    crew.start()
    await asyncio.sleep(0.2)
    assert sorted(cluster.actors) == ["comfyui-p-0", "comfyui-p-7"]
    for actor in (old, surplus):
        actor._running.clear()
    await until(lambda: list(cluster.actors) == ["comfyui-p-0"])
    await until(lambda: cluster.actors["comfyui-p-0"] is not old)
    crew.check()
    await crew.remove()


async def test_what_an_old_actor_finished_is_there_for_who_comes_late(cluster: Cluster) -> None:
    old = cluster.find_or_start("comfyui-p-0", replace(SPEC, gpus=1.0))
    old._finished.add("left-over")
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=1, maximum=1))
    crew.start()
    await until(lambda: cluster.actors.get("comfyui-p-0") not in (None, old))
    name, done = await render(pool, "left-over")
    assert (name, done.files) == ("comfyui-p-0", (old.file,))
    assert cluster.actors["comfyui-p-0"].started == []
    await crew.remove()


async def test_who_finished_what_nobody_fetched_stays_when_the_pool_goes(cluster: Cluster) -> None:
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=1, maximum=1))
    crew.start()
    await until(lambda: len(crew.statuses) == 1)
    [actor] = cluster.actors.values()
    actor.held.clear()
    task = render(pool)
    await actor.busy.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    actor._running.clear()
    await crew.remove()
    assert list(cluster.actors.values()) == [actor]


async def test_an_actor_without_a_place_waits_as_long_as_somebody_waits_for_it(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", module.__name__)
    cluster.room = 0
    pool, rolls = Pool("p"), set[ActorCounts]()
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=0, maximum=2, idle=0.05), rolls.add)
    crew.start()
    task = render(pool)
    await until(lambda: crew.placing.get("comfyui-p-0", 0) > 0.4)
    assert ActorCounts(ready=0, starting=0, placing=1) in rolls
    assert [r.getMessage() for r in caplog.records] == [
        "actor comfyui-p-0 waits for a node with room for 0.5 GPU, 0.5 CPU"
    ]
    assert crew.statuses == {}
    cluster.actors["comfyui-p-0"].placed.set()
    await asyncio.wait_for(task, 5)
    assert crew.placing == {}
    await until(lambda: cluster.actors == {})
    await crew.remove()


async def test_a_node_does_not_come_for_nobody(cluster: Cluster) -> None:
    cluster.room = 1
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=0, maximum=2, patience=0.01, idle=100))
    crew.start()
    await asyncio.gather(*(render(pool) for _ in range(3)))
    await until(lambda: list(cluster.actors) == ["comfyui-p-0"])
    await crew.remove()


async def test_a_pool_is_starting_until_an_actor_is_ready_or_failed(cluster: Cluster) -> None:
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=1, maximum=1))
    assert crew.starting, "before it has looked"
    actor = cluster.find_or_start("comfyui-p-0", SPEC)
    actor.ready = False
    crew.start()
    await until(lambda: len(crew.statuses) == 1)
    assert crew.starting
    actor.error = "ComfyUI ended with status 1"
    await until(lambda: not crew.starting)
    actor.ready, actor.error = True, None
    await until(lambda: pool.renderers == ["comfyui-p-0"])
    assert not crew.starting
    await crew.remove()


async def test_an_actor_that_waits_for_a_node_is_not_starting(cluster: Cluster) -> None:
    cluster.room = 0
    crew = ActorSupervisor(Pool("p"), SPEC, Scale(minimum=1, maximum=1))
    crew.start()
    await until(lambda: "comfyui-p-0" in crew.placing)
    assert crew.starting
    await until(lambda: not crew.starting)
    await crew.remove()


async def test_an_actor_of_another_configuration_answers_no_questions(cluster: Cluster) -> None:
    old = cluster.find_or_start("comfyui-p-0", replace(SPEC, gpus=1.0))
    old.held.clear()
    old._running.add("left-over")
    pool = Pool("p")
    crew = ActorSupervisor(pool, SPEC, Scale(minimum=1, maximum=1))
    crew.start()
    await until(lambda: pool.is_draining("comfyui-p-0"))
    with pytest.raises(ServiceUnavailable):
        await pool.fetch("/object_info")
    assert crew.starting
    old._running.clear()
    await until(lambda: pool.renderers == ["comfyui-p-0"])
    await crew.remove()


async def test_what_keeps_an_actor_from_starting_is_told_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    def fail(name: str, spec: ComfySpec) -> FakeActor:
        nonlocal tries
        tries += 1
        raise StackError("ComfyUI is not installed" if tries < 4 else "it is broken")

    monkeypatch.setattr(module, "find_or_start", fail)
    crew = ActorSupervisor(Pool("p"), SPEC, Scale(minimum=1, maximum=1, idle=0.05))
    crew.start()
    await until(lambda: tries > 6)
    await crew.remove()
    assert [record.getMessage() for record in caplog.records] == [
        "actor comfyui-p-0: ComfyUI is not installed",
        "actor comfyui-p-0: it is broken",
    ]
