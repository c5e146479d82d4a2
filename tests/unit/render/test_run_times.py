from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from moyin.domain.render_run import RenderEstimate, RenderPrice
from moyin.domain.serialization import decode, encode
from moyin.render.run_times import RunTimes

PRICE = RenderPrice(usd_per_gpu_hour=Decimal(3600))


def test_estimate_is_the_default_until_a_run_is_known() -> None:
    assert RunTimes(60).build_tariff(PRICE).estimate_cost("a", 1) == 60
    assert RunTimes(60, [1, 2]).build_tariff(PRICE).estimate_cost("a", 1) == 2


def test_shape_is_estimated_by_its_own_runs_and_others_by_all() -> None:
    times = RunTimes(60)
    for seconds in range(1, 11):
        times.record("short", seconds, 1)
    times.record("long", 100, 4)
    tariff = times.build_tariff(PRICE)
    assert tariff.shapes == {
        "short": RenderEstimate(seconds=9, pictures=1),
        "long": RenderEstimate(seconds=100, pictures=4),
    }
    # Nine tenths of all eleven runs took ten seconds at most.
    assert tariff.estimate_cost("unknown", 1) == 10
    assert decode(type(tariff), encode(tariff)) == tariff


def test_price_per_picture_needs_no_time() -> None:
    times = RunTimes(60)
    times.record("a", 5, 4)
    tariff = times.build_tariff(RenderPrice(usd_per_picture=Decimal("0.5")))
    assert (tariff.estimate_cost("a", 1), tariff.estimate_cost("b", 3)) == (2, Decimal("1.5"))


def test_shapes_are_bounded_and_the_last_used_stay() -> None:
    times = RunTimes(60)
    times.record("kept", 1, 1)
    for number in range(600):
        times.record(str(number), 1, 1)
        if number % 100 == 0:
            times.record("kept", 1, 1)
    shapes = times.build_tariff(PRICE).shapes
    assert len(shapes) == 512
    assert "kept" in shapes


def test_free_pool_costs_nothing() -> None:
    assert RunTimes(60).build_tariff(None).estimate_cost("a", 1) == 0


def test_a_render_that_lately_stored_no_picture_is_not_free() -> None:
    times = RunTimes(60)
    # Only the previews of such a graph were requested.
    times.record("a", 5, 0)
    per_picture = RenderPrice(usd_per_picture=Decimal(1))
    assert times.build_tariff(per_picture).estimate_cost("a", 4) > 0
    free = [RenderPrice(usd_per_picture=Decimal(0)), replace(PRICE, gpu_share=Decimal(0))]
    assert [times.build_tariff(price).estimate_cost("b", 1) for price in free] == [0, 0]
