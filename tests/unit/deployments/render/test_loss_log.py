"""Tests the count of lost actors."""

from __future__ import annotations

from deployments.render.loss_log import LossLog


def test_losses_are_counted_for_ten_minutes() -> None:
    clock = [0.0]
    loss_log = LossLog(lambda: clock[0])
    loss_log.record("a")
    clock[0] = 500
    loss_log.observe_pid("a", 1)
    loss_log.observe_pid("a", None)
    loss_log.observe_pid("a", 1)
    assert loss_log.count("a") == 1
    loss_log.observe_pid("a", 2)
    assert (loss_log.count("a"), loss_log.count("b")) == (2, 0)
    clock[0] = 700
    assert loss_log.count("a") == 1
    loss_log.remove_actor("a")
    assert loss_log.count("a") == 0


def test_a_planned_restart_is_no_loss() -> None:
    log = LossLog()
    for pid, planned_restarts in ((1, 0), (2, 1), (2, 1)):
        log.observe_pid("a", pid, planned_restarts)
    assert log.count("a") == 0
    log.observe_pid("a", 3, 1)
    assert log.count("a") == 1
