"""Tests `RenderMeasurements`, which estimates the duration and cost of renders."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from moyin.domain.queue_place import Duration
from moyin.domain.render_run import MeasuredRender, RenderEstimate, RenderPrice, RenderTariff
from moyin.domain.serialization import decode, encode
from moyin.render.measurements import RenderMeasurements

PRICE = RenderPrice(usd_per_gpu_hour=Decimal(3600))


def _new_render(
    seconds: float, shape: str = "s", load_seconds: float = 0.0, pictures: int = 1
) -> MeasuredRender:
    return MeasuredRender(
        shape=shape, seconds=seconds, load_seconds=load_seconds, pictures=pictures
    )


def _new_measurements(
    *seconds: float, shape: str = "s", load_seconds: float = 0.0
) -> RenderMeasurements:
    return RenderMeasurements(
        _new_render(render_seconds, shape, load_seconds) for render_seconds in seconds
    )


def _get_estimate(
    measurements: RenderMeasurements, shape: str = "s", load_seconds: float = 0.0
) -> Duration:
    duration = measurements.estimate_duration(shape, load_seconds)
    assert duration is not None
    return duration


def _build_tariff(
    measurements: RenderMeasurements, price: RenderPrice | None = PRICE
) -> RenderTariff:
    return measurements.build_tariff(price, 60)


def test_unmeasured_shape_has_no_estimate() -> None:
    assert RenderMeasurements().estimate_any_shape() is None
    measurements = _new_measurements(4.0)
    assert measurements.estimate_duration("other") is None
    estimate_of_any_shape = measurements.estimate_any_shape()
    assert estimate_of_any_shape is not None and estimate_of_any_shape.mean == 4.0


def test_estimate_becomes_certain_with_equal_measurements() -> None:
    estimate_of_few, estimate_of_many = (
        _get_estimate(_new_measurements(4.0)),
        _get_estimate(_new_measurements(*[4.0] * 32)),
    )
    assert estimate_of_few.mean == estimate_of_many.mean == 4.0
    assert estimate_of_few.p90 > 6.0 > 5.0 > estimate_of_many.p90


def test_old_measurements_are_forgotten() -> None:
    measurements = _new_measurements(*[100.0] * 50, *[2.0] * 32)
    assert _get_estimate(measurements).mean == 2.0
    assert _build_tariff(measurements).shapes["s"].seconds == 2.0
    estimate_of_any_shape = _new_measurements(*[100.0] * 50, *[2.0] * 256).estimate_any_shape()
    assert estimate_of_any_shape is not None and estimate_of_any_shape.mean == 2.0


def test_shapes_are_bounded_and_the_last_used_stay() -> None:
    measurements = RenderMeasurements()
    measurements.record(_new_render(1, "old"))
    measurements.record(_new_render(1, "kept"))
    for number in range(1100):
        measurements.record(_new_render(1, str(number)))
        if number % 100 == 0:
            measurements.record(_new_render(1, "kept"))
    shapes = _build_tariff(measurements).shapes
    assert len(shapes) == 1024
    assert "kept" in shapes
    assert "old" not in shapes and measurements.estimate_duration("old") is None


def test_estimated_loading_follows_measurements_of_other_shapes() -> None:
    measurements = _new_measurements(*[4.0] * 10)
    assert _get_estimate(measurements, load_seconds=5.0).mean == 9.0, "the scheduler's own estimate"
    measurements.record(_new_render(14.0, load_seconds=10.0), 5.0)
    assert _get_estimate(measurements).mean == 4.0
    assert _get_estimate(measurements, load_seconds=5.0).mean == 14.0, "measured with this shape"
    measurements.record(_new_render(1.0, "other"))
    assert _get_estimate(measurements, "other", load_seconds=1.0).mean == 3.0, (
        "twice the scheduler's estimate"
    )


def test_loading_a_tiny_file_barely_changes_the_estimate_for_large_ones() -> None:
    measurements = _new_measurements(*[4.0] * 10)
    measurements.record(_new_render(14.0, load_seconds=10.0), 10.0)
    # The render took a second longer than usual, and should have loaded for a hundredth of one.
    measurements.record(_new_render(5.0, load_seconds=0.01), 0.01)
    measurements.record(_new_render(1.0, "other"))
    assert 10.0 < _get_estimate(measurements, "other", load_seconds=10.0).mean < 13.0


def test_shape_measured_only_with_loading_is_not_estimated_as_faster() -> None:
    assert _get_estimate(_new_measurements(9.0, load_seconds=5.0)).mean == 9.0


def test_renders_before_a_restart_are_separate_if_they_loaded_models() -> None:
    measurements = RenderMeasurements([_new_render(4.0), _new_render(14.0, load_seconds=10.0)])
    assert (
        _get_estimate(measurements).mean,
        _get_estimate(measurements, load_seconds=5.0).mean,
    ) == (
        4.0,
        14.0,
    )


def test_renders_that_loaded_only_briefly_are_not_separate() -> None:
    measurements = RenderMeasurements([_new_render(4.0), _new_render(4.2, load_seconds=0.1)])
    assert _get_estimate(measurements).mean == pytest.approx(4.1)


def test_remaining_time_counts_only_longer_renders() -> None:
    measurements = _new_measurements(2.0, 4.0, 10.0)
    remaining_estimate = measurements.estimate_remaining("s", 5.0)
    assert remaining_estimate is not None and remaining_estimate.mean == 5.0
    overdue_estimate = measurements.estimate_remaining("s", 20.0)
    assert overdue_estimate is not None and overdue_estimate.mean == 5.0, (
        "a quarter of the time so far"
    )


def test_cost_is_the_default_until_a_render_is_measured() -> None:
    assert _build_tariff(RenderMeasurements()).estimate_cost("a", 1) == 60
    assert _build_tariff(_new_measurements(1, 2)).estimate_cost("a", 1) == 2


def test_cost_estimate_of_a_shape_uses_its_own_renders_or_else_all_renders() -> None:
    measurements = _new_measurements(*range(1, 11), shape="short")
    measurements.record(_new_render(100, "long", pictures=2))
    measurements.record(_new_render(90, "long", load_seconds=50, pictures=4))
    tariff = _build_tariff(measurements)
    assert tariff.shapes == {
        "short": RenderEstimate(seconds=9, pictures=1),
        "long": RenderEstimate(seconds=100, pictures=4),
    }
    # Nine tenths of all twelve renders took ninety seconds at most.
    assert tariff.estimate_cost("unknown", 1) == 90
    assert decode(type(tariff), encode(tariff)) == tariff


def test_render_that_lately_stored_no_picture_is_not_free() -> None:
    # Only the previews of such a graph were requested.
    measurements = RenderMeasurements([_new_render(5, "a", pictures=0)])
    tariff = _build_tariff(measurements, RenderPrice(usd_per_picture=Decimal(1)))
    assert tariff.estimate_cost("a", 4) > 0
    free_prices = [RenderPrice(usd_per_picture=Decimal(0)), replace(PRICE, gpu_share=Decimal(0))]
    assert [_build_tariff(measurements, price).estimate_cost("b", 1) for price in free_prices] == [
        0,
        0,
    ]


def test_price_per_picture_needs_no_time() -> None:
    measurements = RenderMeasurements([_new_render(5, "a", pictures=4)])
    tariff = _build_tariff(measurements, RenderPrice(usd_per_picture=Decimal("0.5")))
    assert (tariff.estimate_cost("a", 1), tariff.estimate_cost("b", 3)) == (2, Decimal("1.5"))


def test_free_pool_costs_nothing_and_reports_no_times() -> None:
    tariff = _build_tariff(_new_measurements(5), None)
    assert tariff == RenderTariff()
    assert tariff.estimate_cost("s", 1) == 0
