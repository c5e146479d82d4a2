from __future__ import annotations

from typing import Any

from moyin.domain.job import JobSpec, Step, StepKind, apply_batch_patch
from moyin.jobs.budgets import _list_renders
from moyin.render.protocol.shape import compute_shape

BASE: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "batch_size": 2, "seed": 1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}


def test_children_of_a_batch_have_the_shapes_of_their_whole_graphs() -> None:
    patches: list[dict[str, Any]] = [
        {},
        {"1": {"seed": 2}},
        {"1": {"width": 16}},
        {"1": {"batch_size": 5}, "2": {"images": ["1", 0]}},
    ]
    steps = tuple(Step(kind=StepKind.RENDER, pool="fast", payload=patch) for patch in patches)
    renders = list(_list_renders(JobSpec(kind="batch", steps=steps, base=BASE)))
    shapes = [compute_shape(apply_batch_patch(BASE, patch)) for patch in patches]
    assert [(index, pool, shape) for index, pool, shape, _ in renders] == [
        (number, "fast", shape) for number, shape in enumerate(shapes)
    ]
    assert len({shape for _, _, shape, _ in renders}) == 3
    assert [pictures for *_, pictures in renders] == [2, 2, 2, 5]


def test_only_renders_are_estimated() -> None:
    steps = (
        Step(kind=StepKind.CHAT, payload={"model": "m"}),
        Step(kind=StepKind.RENDER, pool="fast", payload=BASE),
    )
    [(index, pool, shape, pictures)] = _list_renders(JobSpec(kind="pipeline", steps=steps))
    assert (index, pool, shape, pictures) == (1, "fast", compute_shape(BASE), 2)


def test_pictures_of_every_node_that_saves_are_counted() -> None:
    base = {**BASE, "3": BASE["2"], "4": BASE["2"]}
    step = Step(kind=StepKind.RENDER, pool="fast", payload={"1": {"batch_size": 8}})
    [(*_, pictures)] = _list_renders(JobSpec(kind="batch", steps=(step,), base=base))
    assert pictures == 24
