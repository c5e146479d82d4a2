from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moyin.render.protocol.shape import compute_shape, estimate_pictures

GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "batch_size": 2}},
    "3": {
        "class_type": "KSampler",
        "inputs": {"model": ["1", 0], "seed": 1, "noise_seed": 1, "steps": 20, "cfg": 7.5},
    },
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "p"}},
}


def change_inputs(node: str, **inputs: Any) -> dict[str, Any]:
    return {**GRAPH, node: {**GRAPH[node], "inputs": {**GRAPH[node]["inputs"], **inputs}}}


@pytest.mark.parametrize(
    "graph",
    [
        change_inputs("3", seed=2, noise_seed=3, cfg=8),
        change_inputs("4", filename_prefix="q"),
        change_inputs("3", model=["9", 1]),
        dict(reversed(GRAPH.items())),
        {f"{name}0": node for name, node in GRAPH.items()},
    ],
)
def test_seeds_other_numbers_texts_links_and_ids_do_not_change_the_shape(
    graph: dict[str, Any],
) -> None:
    assert compute_shape(graph) == compute_shape(GRAPH)


@pytest.mark.parametrize(
    "graph",
    [
        change_inputs("3", steps=21),
        change_inputs("2", width=1024),
        change_inputs("1", ckpt_name="b.safetensors"),
        {**GRAPH, "5": GRAPH["4"]},
        {**GRAPH, "4": {**GRAPH["4"], "class_type": "PreviewImage"}},
    ],
)
def test_sizes_models_and_nodes_change_the_shape(graph: dict[str, Any]) -> None:
    assert compute_shape(graph) != compute_shape(GRAPH)


def test_hostile_nodes_have_a_shape() -> None:
    graph: dict[str, Any] = {
        "1": None,
        "2": {"inputs": []},
        "3": {"class_type": {}, "inputs": {"x": 10**400}},
    }
    assert len(compute_shape(graph)) == 16
    assert estimate_pictures(graph) == 1


def test_pictures_are_the_saved_batches_and_bounded() -> None:
    assert estimate_pictures(GRAPH) == 2
    assert estimate_pictures({**GRAPH, "5": GRAPH["4"]}) == 4
    assert estimate_pictures(change_inputs("2", batch_size=-5)) == 1
    assert estimate_pictures(change_inputs("2", batch_size=10**9)) == 4096
    assert estimate_pictures(change_inputs("2", batch_size=math.nan)) == 1
    assert estimate_pictures(change_inputs("2", batch_size=math.inf)) == 4096


@pytest.mark.parametrize("wrap", [str, float, lambda number: {"__value__": number}])
def test_sizes_count_as_comfyui_reads_them(wrap: Callable[[int], Any]) -> None:
    assert estimate_pictures(change_inputs("2", batch_size=wrap(64))) == 64
    shape_of_few_steps, shape_of_many_steps = (
        compute_shape(change_inputs("3", steps=wrap(steps))) for steps in (1, 10_000)
    )
    assert shape_of_few_steps != shape_of_many_steps


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(),
            lambda inner: st.dictionaries(
                st.sampled_from(["class_type", "inputs", "steps"]), inner
            ),
        ),
    )
)
@example({"1": {"class_type": "A", "inputs": {"steps": 10**400}}})
def test_any_graph_has_a_shape(graph: dict[str, Any]) -> None:
    assert len(compute_shape(graph)) == 16
