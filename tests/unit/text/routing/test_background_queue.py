"""Tests that the bounded background queue runs tasks in order, in slices, and survives failures."""

from __future__ import annotations

import asyncio

import pytest

from moyin.text.routing import background_queue as backgrounds
from moyin.text.routing.background_queue import BackgroundQueue


async def test_tasks_run_in_order_and_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "_INTERVAL_SECONDS", 0.0)
    queue, finished_numbers, all_done = BackgroundQueue(), list[int](), asyncio.Event()
    for number in range(40):
        queue.add(finished_numbers.append, number)
    queue.add(all_done.set)
    finished_counts = []
    async with asyncio.timeout(20):
        while not all_done.is_set():
            await asyncio.sleep(0)
            finished_counts.append(len(finished_numbers))
    assert finished_numbers == list(range(40))
    assert {16, 32} <= set(finished_counts), "others have their turn after each slice"
    assert queue._scheduled_run is None, "nothing runs while nothing waits"
    queue.add(finished_numbers.append, 40)
    async with asyncio.timeout(20):
        while len(queue):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert finished_numbers[-1] == 40


async def test_failed_task_is_logged_and_counted_and_affects_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    queue, finished_numbers = BackgroundQueue(), list[int]()
    queue.add(fail)
    queue.add(finished_numbers.append, 1)
    await queue.drain()
    assert (finished_numbers, queue.failed) == ([1], 1)
    assert "a task of the learning queue failed" in caplog.text


async def test_number_of_waiting_tasks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "_MAX_TASKS", 2)
    queue, finished_numbers = BackgroundQueue(), list[int]()
    for number in range(3):
        queue.add(finished_numbers.append, number)
    assert (len(queue), queue.dropped) == (2, 1)
    await queue.close()
    assert finished_numbers == [0, 1]


async def test_bytes_of_waiting_tasks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backgrounds, "_MAX_BYTES", 100)
    queue, finished_numbers = BackgroundQueue(), list[int]()
    for number in range(3):
        queue.add(finished_numbers.append, number, size=60)
        assert queue._bytes == 60
    assert finished_numbers == [0, 1]
    await queue.close()
    assert (finished_numbers, queue._bytes) == ([0, 1, 2], 0)


async def test_close_runs_waiting_tasks_and_accepts_no_more() -> None:
    queue, finished_numbers = BackgroundQueue(), list[int]()
    for number in range(40):
        queue.add(finished_numbers.append, number)
    await queue.close()
    assert finished_numbers == list(range(40))
    queue.add(finished_numbers.append, 40)
    assert (len(queue), queue.dropped, queue._scheduled_run) == (0, 1, None)
    await queue.close()
