from __future__ import annotations

import asyncio

import pytest

from moyin.stack.patience import Patience, wait_patiently


class Machine:
    def __init__(self, load: float) -> None:
        self.now = 0.0
        self.patience = Patience(10.0, clock=lambda: self.now, read_load=lambda: load)

    def wait_until_exhausted(self, progress: str = "") -> float:
        while self.patience.observe(progress):
            self.now += 1
        return self.now


@pytest.mark.parametrize(("load", "seconds"), [(0.1, 10), (1, 10), (3, 30), (500, 100)])
def test_the_wait_is_longer_on_a_busy_machine_but_has_an_end(load: float, seconds: int) -> None:
    assert Machine(load).wait_until_exhausted() == pytest.approx(seconds, abs=1)


def test_progress_starts_the_count_anew() -> None:
    machine = Machine(1)
    machine.patience.observe("one app")
    machine.now = 9
    assert machine.patience.observe("two apps")
    assert machine.wait_until_exhausted("two apps") == pytest.approx(19, abs=1)


async def test_a_wait_that_is_too_long_is_cancelled() -> None:
    was_cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        await wait_patiently(wait(), 0.01)
    assert was_cancelled.is_set()


async def test_the_error_of_what_is_awaited_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await wait_patiently(fail(), 10)
