"""Tests the count of lost actors."""

from __future__ import annotations

from deployments.render.loss_log import LossLog


def test_losses_of_ten_minutes_count() -> None:
    now = [0.0]
    log = LossLog(lambda: now[0])
    log.record("a")
    now[0] = 500
    log.observe_pid("a", 1)
    log.observe_pid("a", None)
    log.observe_pid("a", 1)
    assert log.count("a") == 1
    log.observe_pid("a", 2)
    assert (log.count("a"), log.count("b")) == (2, 0)
    now[0] = 700
    assert log.count("a") == 1
    log.remove_actor("a")
    assert log.count("a") == 0
