"""Tests how the router learns how many calls an Ollama host can run concurrently."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from moyin.system.slots import Slots
from moyin.text.backends.learned_limit import LearnedLimit, TrackedCall


class Clock:
    """A clock that shows the time that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SimulatedServer:
    """A simulated server that runs ``parallelism`` calls at a time, each for ten seconds."""

    def __init__(self, parallelism: int, *, max_limit: int = 64) -> None:
        self.clock = Clock()
        self.slots = Slots(64, max_waiting=64, patience=1e6, clock=self.clock)
        self.limit = LearnedLimit(self.slots, max_limit=max_limit, clock=self.clock)
        self.parallelism = parallelism
        self.calls: list[tuple[ExitStack, TrackedCall]] = []

    def fill(self) -> None:
        """Begin calls until the limit, which may grow meanwhile, is reached."""
        while len(self.calls) < (self.slots.limit or 0) or self._limit_grows():
            stack = ExitStack()
            self.calls.append((stack, stack.enter_context(self.limit.track("chat", 100))))
            self.clock.now += 0.1
            if len(self.calls) <= self.parallelism:
                self.calls[-1][1].record_first_token()

    def end_first(self) -> None:
        """End the oldest call; the server then begins the first call of its own queue."""
        self.clock.now += 10
        self.calls.pop(0)[0].close()
        self.clock.now += 0.1
        if len(self.calls) >= self.parallelism:
            self.calls[self.parallelism - 1][1].record_first_token()

    def _limit_grows(self) -> bool:
        limit_before = self.slots.limit
        assert self.slots.on_full is not None
        self.slots.on_full()
        return self.slots.limit != limit_before


@pytest.mark.parametrize("parallelism", [1, 2, 4, 8])
def test_limit_converges_to_the_servers_parallelism(parallelism: int) -> None:
    server = SimulatedServer(parallelism)
    for _ in range(6):
        server.fill()
        server.end_first()
    assert server.slots.limit == parallelism


def test_a_higher_limit_is_tried_at_growing_intervals() -> None:
    server = SimulatedServer(1)
    tried_limits = []
    for _ in range(100):
        server.fill()
        tried_limits.append(len(server.calls))
        server.end_first()
    assert tried_limits.count(2) in (4, 5), "after 60 s, 120 s, 240 s and so on"
    server.parallelism = 2
    for _ in range(100):
        server.fill()
        server.end_first()
    assert server.slots.limit == 2


def test_limit_never_exceeds_the_number_of_connections() -> None:
    server = SimulatedServer(8, max_limit=3)
    for _ in range(6):
        server.fill()
        server.end_first()
    assert server.slots.limit == 3


def test_one_late_token_does_not_lower_a_confirmed_limit() -> None:
    server = SimulatedServer(2)
    for _ in range(4):
        server.fill()
        server.end_first()
    server.fill()
    server.limit.record_waiting(server.calls[1][1])
    assert server.slots.limit == 2
    for _ in range(2):
        server.limit.record_waiting(server.calls[1][1])
    assert server.slots.limit == 1


def test_whole_answers_report_their_start() -> None:
    server = SimulatedServer(2)
    with server.limit.track("chat", 100) as first_call:
        with server.limit.track("chat", 100) as second_call:
            server.clock.now += 10
        first_call.record_first_token(9.9)
    assert second_call.running == 2
    # The second call of the pair: it ended after the first, but began before.
    with ExitStack() as stack:
        first_stack = ExitStack()
        first_stack.enter_context(server.limit.track("chat", 100))
        second_tracker = stack.enter_context(server.limit.track("chat", 100))
        server.clock.now += 10
        first_stack.close()
        server.clock.now += 0.1
        second_tracker.record_first_token(9.9)
    assert server.slots.limit == 2


async def test_waiting_call_begins_when_the_limit_is_tried() -> None:
    slots = Slots(64, max_waiting=4, patience=1)
    LearnedLimit(slots, max_limit=8)
    assert slots.try_acquire("ada")
    assert not slots.try_acquire("ada")
    await slots.wait("ada", 1, 1)
    assert slots.taken == 2


@pytest.mark.parametrize(("background_share", "parallelism"), [(0.5, 4), (1.0, 4), (0.5, 2)])
async def test_limit_is_learned_from_a_batch_alone(
    background_share: float, parallelism: int
) -> None:
    server = SimulatedServer(parallelism)
    slots = server.slots
    slots.background_share = background_share
    line_tasks = [asyncio.create_task(slots.acquire_in_background("ada", 1e6)) for _ in range(16)]
    running_calls: list[tuple[ExitStack, TrackedCall]] = []
    max_running_calls = 0
    for _ in range(8):
        await asyncio.sleep(0)
        while len(running_calls) < slots.in_background:
            stack = ExitStack()
            running_calls.append((stack, stack.enter_context(server.limit.track("chat", 100))))
            server.clock.now += 0.1
            if len(running_calls) <= parallelism:
                running_calls[-1][1].record_first_token()
            await asyncio.sleep(0)
        max_running_calls = max(max_running_calls, len(running_calls))
        server.clock.now += 10
        running_calls.pop(0)[0].close()
        server.clock.now += 0.1
        if len(running_calls) >= parallelism:
            running_calls[parallelism - 1][1].record_first_token()
        slots.release_in_background("ada")
        line_tasks.append(asyncio.create_task(slots.acquire_in_background("ada", 1e6)))
    for line_task in line_tasks:
        line_task.cancel()
    await asyncio.gather(*line_tasks, return_exceptions=True)
    assert max_running_calls >= parallelism
