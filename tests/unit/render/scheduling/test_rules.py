from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moyin.render.scheduling.rules import ScalingPolicy

SCALING_POLICY = ScalingPolicy(minimum=0, maximum=4, patience=30, idle=60)


def test_one_waiting_render_needs_a_renderer_and_an_empty_queue_none() -> None:
    assert SCALING_POLICY.count_needed_renderers(1, 0.1) == 1
    assert SCALING_POLICY.count_needed_renderers(0, 10) == 0


def test_longer_queue_needs_more_renderers_up_to_the_maximum() -> None:
    assert [SCALING_POLICY.count_needed_renderers(n, 10) for n in (3, 4, 9, 1000)] == [1, 2, 3, 4]


@given(st.integers(0, 500), st.floats(0.01, 1000))
def test_number_of_renderers_stays_within_its_bounds(waiting_count: int, seconds: float) -> None:
    assert (
        2 <= ScalingPolicy(minimum=2, maximum=5).count_needed_renderers(waiting_count, seconds) <= 5
    )


def test_idle_renderers_are_removed_from_the_last_to_the_first() -> None:
    assert SCALING_POLICY.select_removable_renderers([None, 61, 10, 100], 0) == [3, 1]
    assert SCALING_POLICY.select_removable_renderers([61, 61], 1) == [], "a render waits"
    assert ScalingPolicy(minimum=1, maximum=4, idle=60).select_removable_renderers([61, 61], 0) == [
        1
    ]
