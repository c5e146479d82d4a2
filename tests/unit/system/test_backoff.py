from __future__ import annotations

from moyin.system.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first=1, longest=5, stable=60)
    assert [backoff.after(0.1) for _ in range(5)] == [1, 2, 4, 5, 5]


def test_stable_run_resets_the_pause() -> None:
    backoff = Backoff(first=1, longest=5, stable=60)
    for _ in range(4):
        backoff.after(0.1)
    assert backoff.after(60) == 1
    assert backoff.after(1) == 2


def test_many_failures_do_not_overflow() -> None:
    backoff = Backoff(first=1, longest=5)
    assert [backoff.after(0) for _ in range(5_000)][-1] == 5
