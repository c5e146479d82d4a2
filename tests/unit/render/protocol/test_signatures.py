"""Tests the signatures of a graph's nodes."""

from __future__ import annotations

from typing import Any

from moyin.render.protocol.signatures import compute_signatures


def _make_graph(seed: int = 1, text: str = "a fox", prefix: str = "out") -> dict[str, Any]:
    return {
        "1": {"class_type": "CheckpointLoader", "inputs": {"ckpt_name": "m.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": text}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "positive": ["2", 0], "seed": seed}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": prefix}},
    }  # fmt: skip


def _count_equal(first_graph: dict[str, Any], second_graph: dict[str, Any]) -> int:
    return len(compute_signatures(first_graph, "ann") & compute_signatures(second_graph, "ann"))


def test_a_changed_input_changes_its_node_and_those_after_it() -> None:
    assert _count_equal(_make_graph(), _make_graph()) == 4
    assert _count_equal(_make_graph(), _make_graph(prefix="other")) == 3
    assert _count_equal(_make_graph(), _make_graph(seed=2)) == 2
    assert _count_equal(_make_graph(), _make_graph(text="a crow")) == 1


def test_ids_of_nodes_and_the_order_of_inputs_do_not_count() -> None:
    graph = _make_graph()
    renamed_graph = {
        f"n{node_id}": {
            "inputs": {
                name: [f"n{value[0]}", value[1]] if isinstance(value, list) else value
                for name, value in reversed(node["inputs"].items())
            },
            "class_type": node["class_type"],
        }
        for node_id, node in reversed(graph.items())
    }
    assert _count_equal(graph, renamed_graph) == 4


def test_another_output_of_the_same_node_is_another_input() -> None:
    other_graph = _make_graph()
    other_graph["4"]["inputs"]["images"] = ["3", 1]
    assert _count_equal(_make_graph(), other_graph) == 3


def test_equal_nodes_of_two_tenants_differ() -> None:
    graph = _make_graph()
    assert not compute_signatures(graph, "ann") & compute_signatures(graph, "bob")


def test_circles_and_huge_graphs_have_no_signatures() -> None:
    circle = {
        "1": {"class_type": "A", "inputs": {"x": ["2", 0]}},
        "2": {"class_type": "B", "inputs": {"x": ["1", 0]}},
    }
    assert compute_signatures(circle, "ann") == frozenset()
    huge_graph = {str(number): {"class_type": "A", "inputs": {}} for number in range(513)}
    assert compute_signatures(huge_graph, "ann") == frozenset()


def test_long_chains_and_malformed_nodes_are_no_errors() -> None:
    chain: dict[str, Any] = {"0": {"class_type": "A"}, "x": 3, "y": {"inputs": ["1", 0]}}
    for number in range(1, 500):
        chain[str(number)] = {
            "class_type": "A",
            "inputs": {"x": [str(number - 1), 0], "y": ["?", 0]},
        }
    assert len(compute_signatures(chain, "ann")) == 501
