"""Tests the times in the forecasts of windows and schedulers."""

from __future__ import annotations

import asyncio

import pytest

from moyin.domain.queue_place import Duration
from moyin.domain.render_run import MeasuredRender
from moyin.render.measurements import RenderMeasurements
from moyin.render.scheduling.rules import OrderingRules, PendingRender
from moyin.render.scheduling.scheduler import RenderScheduler
from moyin.render.scheduling.window import Window

GB = 1_000_000_000
RULES = OrderingRules(bytes_per_second=GB)


def _new_measurements(seconds: float, shape: str = "s") -> RenderMeasurements:
    return RenderMeasurements([MeasuredRender(shape=shape, seconds=seconds)])


def _make_render(name: str, shape: str, model: str = "") -> PendingRender:
    models = {model: GB} if model else {}
    return PendingRender(id=name, priority=3, arrived=float(name), shape=shape, models=models)


def _make_window(renderer_count: int, *renders: PendingRender) -> Window:
    render_window = Window(RULES)
    for number in range(renderer_count):
        render_window.add_renderer(str(number), ["m"], 0.0)
    for render in renders:
        render_window.add(render)
    return render_window


def _forecast_times(
    render_window: Window, now: float = 0.0
) -> list[tuple[float | None, float | None]]:
    return [
        (_get_mean(expectation.starts_in), _get_mean(expectation.ends_in))
        for expectation in render_window.forecast(now, 99)
    ]


def _get_mean(duration: Duration | None) -> float | None:
    return None if duration is None else duration.mean


def test_renders_wait_for_those_before_them() -> None:
    render_window = _make_window(1, *(_make_render(str(number), "s") for number in range(3)))
    render_window.measurements = _new_measurements(3.0)
    assert _forecast_times(render_window) == [(0.0, 3.0), (3.0, 6.0), (6.0, 9.0)]
    variances = [
        expectation.starts_in.variance
        for expectation in render_window.forecast(0.0, 9)
        if expectation.starts_in
    ]
    assert variances[0] == 0.0 < variances[1] < variances[2]


def test_several_renderers_share_the_queue() -> None:
    render_window = _make_window(2, *(_make_render(str(number), "s") for number in range(4)))
    render_window.measurements = _new_measurements(3.0)
    assert [starts_in for starts_in, _ in _forecast_times(render_window)] == [0.0, 0.0, 3.0, 3.0]


def test_first_render_waits_for_the_rest_of_the_running_one() -> None:
    render_window = _make_window(1, _make_render("1", "s", "m"), _make_render("2", "s", "m"))
    render_window.measurements = _new_measurements(10.0)
    assignment = render_window.choose_assignment(0.0)
    assert assignment is not None
    render_window.begin_render(assignment, 0.0)
    assert _forecast_times(render_window, 4.0) == [(6.0, 16.0)]
    [running_render] = render_window.list_running(4.0)
    assert running_render.pending.id == "1" and running_render.starts_in is None
    assert running_render.ends_in is not None and running_render.ends_in.mean == 6.0
    render_window.end_render("0", 8.0)
    assert render_window.list_running(8.0) == []


def test_loading_other_models_is_part_of_a_render() -> None:
    render_window = _make_window(
        1, _make_render("1", "s", "other"), _make_render("2", "s", "other")
    )
    render_window.measurements = _new_measurements(3.0)
    assert _forecast_times(render_window) == [(0.0, 4.0), (4.0, 7.0)]


def test_times_are_unknown_without_measurements() -> None:
    render_window = _make_window(1, _make_render("1", "s"), _make_render("2", "s"))
    assert _forecast_times(render_window) == [(0.0, None), (None, None)], (
        "only an idle renderer's time is known"
    )
    render_window.measurements = _new_measurements(3.0, shape="other")
    assert _forecast_times(render_window) == [(0.0, None), (3.0, None)], (
        "from the pool's other renders"
    )


def test_times_are_unknown_without_renderers() -> None:
    render_window = _make_window(0, _make_render("1", "s"))
    render_window.measurements = _new_measurements(3.0)
    assert _forecast_times(render_window) == [(None, None)]


@pytest.mark.parametrize("is_busy", [True, False])
def test_busy_renderer_of_an_earlier_pool_is_assumed_to_have_just_begun(is_busy: bool) -> None:
    render_window = _make_window(1, _make_render("1", "s"))
    render_window.measurements = _new_measurements(3.0)
    if is_busy:
        render_window.mark_busy("0")
    assert _forecast_times(render_window) == [(3.0, 6.0) if is_busy else (0.0, 3.0)]


def test_scheduler_uses_the_given_window_even_if_it_is_empty() -> None:
    render_window = Window(measurements=_new_measurements(3.0))
    assert RenderScheduler(render_window).measurements is render_window.measurements


@pytest.mark.parametrize(("owner_count", "expected_length"), [(20, 256), (300, 170), (4000, 12)])
async def test_forecast_is_shorter_if_many_owners_wait(
    owner_count: int, expected_length: int
) -> None:
    scheduler = RenderScheduler()

    async def wait_for_lease(number: int) -> None:
        pending = PendingRender(
            id=str(number), priority=3, arrived=number, owner=str(number % owner_count)
        )
        async with scheduler.lease(pending):
            pass

    tasks = [asyncio.create_task(wait_for_lease(number)) for number in range(max(owner_count, 400))]
    await asyncio.sleep(0)
    assert len(scheduler.forecast()) == expected_length
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
