from __future__ import annotations

import pytest
from pydantic import ValidationError

from deployments.render.builder import build
from deployments.render.config import RenderArgs


def test_arguments_reach_the_deployment() -> None:
    args = RenderArgs(pool="fast", actors=2, gpus=0.5)
    bound = build(args)._bound_deployment
    assert bound.name == "RenderPool"
    assert bound.init_args == (args,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpus": 0},
        {"gpus": 1.5},
        {"actors": 0},
        {"actors": 1, "min_actors": 2},
        {"weights": {"ann": 0}},
        {"pool": "a", "larger_pool": "a"},
        {"pool": "Not a name"},
        {"unknown": 1},
        {"comfyui": {"unknown": 1}},
    ],
)
def test_invalid_arguments_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RenderArgs.model_validate(wrong)
