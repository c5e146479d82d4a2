from __future__ import annotations

import asyncio

import pytest

from moyin.errors import ServiceUnavailable
from moyin.render.scheduling.policy import PendingRender
from moyin.render.scheduling.scheduler import Lease, RenderScheduler


def waiting(name: str, priority: int = 3, arrived: float = 0) -> PendingRender:
    return PendingRender(id=name, priority=priority, arrived=arrived)


class Ward:
    """Renders that hold what they get until told to go on."""

    def __init__(self, dispatcher: RenderScheduler) -> None:
        self.dispatcher = dispatcher
        self.got: list[tuple[str, str]] = []
        self.leases: dict[str, Lease] = {}
        self.go_on: dict[str, asyncio.Event] = {}

    def enter(self, who: PendingRender) -> asyncio.Task[None]:
        return asyncio.create_task(self._stay(who))

    async def _stay(self, who: PendingRender) -> None:
        self.go_on[who.id] = asyncio.Event()
        async with self.dispatcher.lease(who) as lease:
            self.got.append((who.id, lease.name))
            self.leases[who.id] = lease
            await self.go_on[who.id].wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def ward() -> Ward:
    return Ward(RenderScheduler())


async def test_one_at_a_time_by_priority_then_arrival(ward: Ward) -> None:
    tasks = [
        ward.enter(waiting("late", arrived=2)),
        ward.enter(waiting("early", arrived=1)),
        ward.enter(waiting("urgent", priority=1, arrived=3)),
    ]
    await settle()
    assert (ward.got, ward.dispatcher.waiting) == ([], 3)
    ward.dispatcher.up("a")
    for expected in ("urgent", "early", "late"):
        await settle()
        assert ward.got[-1] == (expected, "a")
        assert len(ward.got) == 3 - ward.dispatcher.waiting
        ward.go_on[expected].set()
    await asyncio.gather(*tasks)


async def test_a_lease_given_back_early_lets_the_next_in(ward: Ward) -> None:
    ward.dispatcher.up("a")
    tasks = [ward.enter(waiting("1", arrived=1)), ward.enter(waiting("2", arrived=2))]
    await settle()
    ward.leases["1"].release()
    await settle()
    assert [who for who, _ in ward.got] == ["1", "2"]
    # Its end must not give back what is another's by now.
    ward.go_on["1"].set()
    third = ward.enter(waiting("3", arrived=3))
    await settle()
    assert ward.dispatcher.waiting == 1
    ward.go_on["2"].set()
    await settle()
    ward.go_on["3"].set()
    await asyncio.gather(*tasks, third)


async def test_the_one_that_rested_longest_comes_first(ward: Ward) -> None:
    ward.dispatcher.up("a")
    ward.dispatcher.up("b")
    for number, expected in enumerate(["a", "b", "a"]):
        task = ward.enter(waiting(str(number)))
        await settle()
        assert ward.got[-1] == (str(number), expected)
        ward.go_on[str(number)].set()
        await task


async def test_nothing_goes_where_a_foreign_prompt_runs_or_nobody_is(ward: Ward) -> None:
    ward.dispatcher.up("a", foreign=["left-over"])
    ward.dispatcher.up("b")
    ward.dispatcher.down("b")
    task = ward.enter(waiting("1"))
    await settle()
    assert ward.got == []
    ward.dispatcher.up("a", foreign=[])
    await settle()
    assert ward.got == [("1", "a")]
    ward.go_on["1"].set()
    await task


async def test_who_gives_up_waiting_takes_nothing_along(ward: Ward) -> None:
    gone = ward.enter(waiting("gone"))
    await settle()
    gone.cancel()
    ward.dispatcher.up("a")
    await asyncio.gather(gone, return_exceptions=True)
    assert ward.dispatcher.waiting == 0
    task = ward.enter(waiting("next"))
    await settle()
    assert ward.got == [("next", "a")]
    # Cancelled at the very moment at which it is let in.
    unlucky = ward.enter(waiting("unlucky"))
    await settle()
    ward.leases["next"].release()
    unlucky.cancel()
    await asyncio.gather(unlucky, return_exceptions=True)
    last = ward.enter(waiting("last"))
    await settle()
    assert ward.got[-1] == ("last", "a")
    for name in ("next", "last"):
        ward.go_on[name].set()
    await asyncio.gather(task, last)


async def test_who_gives_up_as_it_closes_has_given_up(ward: Ward) -> None:
    leaving, staying = ward.enter(waiting("leaving")), ward.enter(waiting("staying"))
    await settle()
    ward.dispatcher.close()
    leaving.cancel()
    ended = await asyncio.gather(leaving, staying, return_exceptions=True)
    assert [type(error) for error in ended] == [asyncio.CancelledError, ServiceUnavailable]
    ward.dispatcher.up("a")
    await settle()
    assert (ward.got, ward.dispatcher.waiting) == ([], 0)


async def test_two_attempts_of_one_render_wait_side_by_side(ward: Ward) -> None:
    tasks = [ward.enter(waiting("same")), ward.enter(waiting("same"))]
    await settle()
    assert ward.dispatcher.waiting == 2
    tasks[0].cancel()
    ward.dispatcher.up("a")
    await settle()
    assert ward.got == [("same", "a")]
    ward.go_on["same"].set()
    await asyncio.gather(*tasks, return_exceptions=True)
