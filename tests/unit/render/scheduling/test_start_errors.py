"""Tests `StartErrors`, which corrects the variance of forecasts by the errors of earlier ones."""

from __future__ import annotations

import pytest

from moyin.domain.queue_place import Duration
from moyin.render.scheduling.rules import PendingRender
from moyin.render.scheduling.start_errors import StartErrors
from moyin.render.scheduling.window import Expectation


def _make_forecast(name: str, mean: float | None, variance: float = 0.0) -> Expectation:
    starts_in = None if mean is None else Duration(mean=mean, variance=variance)
    ends_in = None if starts_in is None else starts_in + Duration(mean=1.0, variance=1.0)
    pending = PendingRender(id=name, priority=3, arrived=0.0)
    return Expectation(pending=pending, starts_in=starts_in, ends_in=ends_in)


def _get_widened_p90(errors: StartErrors, mean: float = 8.0, count_ahead: int = 0) -> float:
    other_forecasts = [_make_forecast(f"other-{number}", None) for number in range(count_ahead)]
    *_, last_forecast = errors.widen_forecasts(
        [*other_forecasts, _make_forecast("asked", mean)], 0.0
    )
    assert last_forecast.starts_in is not None and last_forecast.starts_in.mean == mean
    return last_forecast.starts_in.p90


def _record_starts(errors: StartErrors, wait_factor: float, count: int = 40) -> None:
    for number in range(count):
        errors.widen_forecasts([_make_forecast(str(number), 8.0)], 100.0)
        errors.record_start(str(number), 100.0 + (8.0 + 2.0) * wait_factor - 2.0)


def test_first_forecasts_allow_for_twice_the_wait() -> None:
    assert _get_widened_p90(StartErrors()) == pytest.approx(18.0)


def test_forecasts_that_were_right_are_not_widened() -> None:
    errors = StartErrors()
    _record_starts(errors, 1.0)
    assert _get_widened_p90(errors) == pytest.approx(8.0)
    [forecast] = errors.widen_forecasts([_make_forecast("asked", 8.0, 4.0)], 0.0)
    assert forecast.starts_in is not None and forecast.starts_in.variance == pytest.approx(4.0)


def test_forecasts_are_widened_as_much_as_earlier_ones_erred() -> None:
    errors = StartErrors()
    _record_starts(errors, 3.0)
    assert _get_widened_p90(errors) == pytest.approx(28.0)
    _record_starts(errors, 1.0, count=128)
    assert _get_widened_p90(errors) == pytest.approx(8.0), "older errors are forgotten"


def test_errors_are_recorded_for_each_place_in_the_queue() -> None:
    errors = StartErrors()
    _record_starts(errors, 3.0)
    assert _get_widened_p90(errors, count_ahead=1) == pytest.approx(18.0), (
        "nothing is known of the second place"
    )


def test_end_is_as_uncertain_as_the_start_and_the_render() -> None:
    [forecast] = StartErrors().widen_forecasts([_make_forecast("asked", 8.0)], 0.0)
    assert forecast.starts_in is not None and forecast.ends_in is not None
    assert forecast.ends_in.mean == 9.0
    assert forecast.ends_in.variance == pytest.approx(forecast.starts_in.variance + 1.0)


def test_cancelled_render_is_not_scored() -> None:
    errors = StartErrors()
    for number in range(40):
        errors.widen_forecasts([_make_forecast(str(number), 8.0)], 0.0)
        errors.drop_forecast(str(number))
        errors.record_start(str(number), 0.0)
    assert _get_widened_p90(errors) == pytest.approx(18.0)
