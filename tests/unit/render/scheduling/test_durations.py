"""Tests of `RenderDurations`, and of the times in a window's forecast."""

from __future__ import annotations

import pytest

from moyin.domain.queue_place import Duration
from moyin.render.scheduling.durations import RenderDurations
from moyin.render.scheduling.rules import OrderingRules, PendingRender
from moyin.render.scheduling.window import Window

GB = 1_000_000_000
RULES = OrderingRules(bytes_per_second=GB)


def _measured(*seconds: float, shape: str = "s", load_seconds: float = 0.0) -> RenderDurations:
    durations = RenderDurations()
    for value in seconds:
        durations.record(shape, value, load_seconds)
    return durations


def _estimate(durations: RenderDurations, shape: str = "s", load: float = 0.0) -> Duration:
    duration = durations.estimate(shape, load)
    assert duration is not None
    return duration


def test_unmeasured_shape_has_no_estimate() -> None:
    assert RenderDurations().estimate_any() is None
    durations = _measured(4.0)
    assert durations.estimate("other") is None
    any_shape = durations.estimate_any()
    assert any_shape is not None and any_shape.mean == 4.0


def test_estimate_becomes_certain_with_equal_measurements() -> None:
    few, many = _estimate(_measured(4.0)), _estimate(_measured(*[4.0] * 32))
    assert few.mean == many.mean == 4.0
    assert few.p90 > 6.0 > 5.0 > many.p90


def test_old_measurements_are_forgotten() -> None:
    assert _estimate(_measured(*[100.0] * 50, *[2.0] * 32)).mean == 2.0
    durations = _measured(1.0, shape="old")
    for number in range(1024):
        durations.record(str(number), 1.0)
    assert durations.estimate("old") is None


def test_loading_models_takes_as_long_as_it_did_for_other_shapes() -> None:
    durations = _measured(*[4.0] * 10)
    assert _estimate(durations, load=5.0).mean == 9.0, "the scheduler's own estimate"
    durations.record("s", 14.0, 5.0)
    assert _estimate(durations).mean == 4.0
    assert _estimate(durations, load=5.0).mean == 14.0, "measured with this shape"
    durations.record("other", 1.0)
    assert _estimate(durations, "other", load=1.0).mean == 3.0, "twice the scheduler's estimate"


def test_shape_that_was_only_measured_while_loading_is_not_taken_to_be_faster() -> None:
    assert _estimate(_measured(9.0, load_seconds=5.0)).mean == 9.0


def test_remaining_time_counts_only_longer_renders() -> None:
    durations = _measured(2.0, 4.0, 10.0)
    remaining = durations.estimate_remaining("s", 5.0)
    assert remaining is not None and remaining.mean == 5.0
    overdue = durations.estimate_remaining("s", 20.0)
    assert overdue is not None and overdue.mean == 5.0, "a quarter of the time so far"


def _render(name: str, shape: str, model: str = "") -> PendingRender:
    models = {model: GB} if model else {}
    return PendingRender(id=name, priority=3, arrived=float(name), shape=shape, models=models)


def _window(renderers: int, *renders: PendingRender) -> Window:
    made = Window(RULES)
    for number in range(renderers):
        made.add_renderer(str(number), ["m"], 0.0)
    for render in renders:
        made.add(render)
    return made


def _times(made: Window, now: float = 0.0) -> list[tuple[float | None, float | None]]:
    return [
        (_mean(expected.starts_in), _mean(expected.ends_in)) for expected in made.forecast(now, 99)
    ]


def _mean(duration: Duration | None) -> float | None:
    return None if duration is None else duration.mean


def test_renders_wait_for_those_before_them() -> None:
    made = _window(1, *(_render(str(number), "s") for number in range(3)))
    made.durations = _measured(3.0)
    assert _times(made) == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]
    spread = [
        expected.starts_in.variance for expected in made.forecast(0.0, 9) if expected.starts_in
    ]
    assert spread[0] == 0.0 < spread[1] < spread[2]


def test_several_renderers_share_the_queue() -> None:
    made = _window(2, *(_render(str(number), "s") for number in range(4)))
    made.durations = _measured(3.0)
    assert [starts for starts, _ in _times(made)] == [0.0, 0.0, 3.0, 3.0]


def test_first_render_waits_for_the_rest_of_the_running_one() -> None:
    made = _window(1, _render("1", "s", "m"), _render("2", "s", "m"))
    made.durations = _measured(10.0)
    choice = made.choose_assignment(0.0)
    assert choice is not None
    made.begin_render(choice, 0.0)
    assert _times(made, 4.0) == [(6.0, 16.0)]
    [running] = made.list_running(4.0)
    assert running.pending.id == "1" and running.starts_in is None
    assert running.ends_in is not None and running.ends_in.mean == 6.0
    made.end_render("0", 8.0, is_executed=True)
    assert made.list_running(8.0) == []
    assert _estimate(made.durations).mean == 9.0


def test_loading_other_models_is_part_of_a_render() -> None:
    made = _window(1, _render("1", "s", "other"), _render("2", "s", "other"))
    made.durations = _measured(3.0)
    assert _times(made) == [(0.0, 4.0), (4.0, 7.0)]


def test_render_that_was_not_executed_is_not_measured() -> None:
    made = _window(1, _render("1", "s"))
    choice = made.choose_assignment(0.0)
    assert choice is not None
    made.begin_render(choice, 0.0)
    made.end_render("0", 0.5, is_executed=False)
    assert made.durations.estimate("s") is None
    assert made.list_running(1.0) == []


def test_times_are_unknown_without_measurements() -> None:
    made = _window(1, _render("1", "s"), _render("2", "s"))
    assert _times(made) == [(0.0, None), (None, None)], "only an idle renderer's time is known"
    made.durations = _measured(3.0, shape="other")
    assert _times(made) == [(0.0, None), (3.0, None)], "from the pool's other renders"


def test_times_are_unknown_without_renderers() -> None:
    made = _window(0, _render("1", "s"))
    made.durations = _measured(3.0)
    assert _times(made) == [(None, None)]


@pytest.mark.parametrize("busy", [True, False])
def test_busy_renderer_of_an_earlier_pool_is_taken_to_have_just_begun(busy: bool) -> None:
    made = _window(1, _render("1", "s"))
    made.durations = _measured(3.0)
    if busy:
        made.mark_busy("0")
    assert _times(made) == [(3.0, 6.0) if busy else (0.0, 3.0)]
