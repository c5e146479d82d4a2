"""Tests the statistics of the waits of renders."""

from __future__ import annotations

from moyin.render.scheduling.waits import WaitTimes


def test_quantiles_are_those_of_the_last_hour() -> None:
    waits = WaitTimes()
    assert waits.compute_quantile(0.5, 0) is None
    for seconds in range(100):
        waits.record(seconds, now=1000)
    assert (waits.compute_quantile(0.5, 1000), waits.compute_quantile(0.9, 1000)) == (50, 90)
    waits.record(-1, now=4000)
    assert waits.compute_quantile(0.9, 4700) == 0
