from __future__ import annotations

from decimal import Decimal

import pytest
from pydantic import ValidationError

from deployments.render.builder import build
from deployments.render.config import RenderArgs


def test_arguments_reach_the_deployment() -> None:
    args = RenderArgs(pool="fast", actors=2, gpus=0.5)
    bound_deployment = build(args)._bound_deployment
    assert bound_deployment.name == "RenderPool"
    assert bound_deployment.init_args == (args,)


@pytest.mark.parametrize(
    "invalid_arguments",
    [
        {"gpus": 0},
        {"gpus": 1.5},
        {"actors": 0},
        {"actors": 1, "min_actors": 2},
        {"weights": {"ann": 0}},
        {"pool": "a", "larger_pool": "a"},
        {"pool": "Not a name"},
        {"usd_per_gpu_hour": -1},
        {"usd_per_gpu_hour": 1001},
        {"usd_per_gpu_hour": "nan"},
        {"usd_per_picture": 0.0000001},
        {"usd_per_gpu_hour": 1, "usd_per_picture": 1},
        {"unknown": 1},
        {"comfyui": {"unknown": 1}},
    ],
)
def test_invalid_arguments_are_refused(invalid_arguments: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RenderArgs.model_validate(invalid_arguments)


def test_price_by_the_hour_is_that_of_the_share_of_a_gpu() -> None:
    assert RenderArgs().to_price() is None
    price_by_time = RenderArgs.model_validate({"usd_per_gpu_hour": 2.4, "gpus": 0.25}).to_price()
    assert price_by_time is not None
    assert price_by_time.compute_cost(1800, 7) == Decimal("0.3")
    price_by_picture = RenderArgs.model_validate({"usd_per_picture": 0.02, "gpus": 0.25}).to_price()
    assert price_by_picture is not None
    assert price_by_picture.compute_cost(1800, 7) == Decimal("0.14")
