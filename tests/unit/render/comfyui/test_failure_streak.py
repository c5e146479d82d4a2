"""Tests when failed prompts show that a ComfyUI process is broken."""

from __future__ import annotations

from moyin.render.comfyui.failure_streak import FailureStreak


def test_three_tenants_in_a_row_end_the_streak() -> None:
    streak = FailureStreak()
    for tenant in ("ada", "ada", "ada", "bob"):
        streak.add_failure(tenant)
        assert not streak.is_over
    streak.add_failure("cy")
    assert streak.is_over


def test_success_begins_a_new_streak() -> None:
    streak = FailureStreak()
    for tenant in ("ada", "bob"):
        streak.add_failure(tenant)
    streak.end()
    streak.add_failure("cy")
    assert not streak.is_over
