"""Tests the bounds of graphs, and that chains and circles are found without recursion."""

from __future__ import annotations

from typing import Any

import pytest

from moyin.domain.graph_bounds import GraphBounds
from moyin.errors import GraphTooLarge, InvalidGraph
from moyin.render.protocol.graph_size import check_graph_size

WIDE = GraphBounds(nodes=10**6, links=10**6, values=10**7, bytes=10**9, depth=10**6)


def make_node(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "A", "inputs": inputs}


def make_chain(length: int) -> dict[str, Any]:
    links = {str(n): make_node(image=[str(n - 1), 0]) for n in range(1, length)}
    return {"0": make_node(), **links}


def check(graph: Any, **bounds: int) -> None:
    check_graph_size([("workflow", graph)], GraphBounds(**bounds))


@pytest.mark.parametrize(
    ("graph", "bound", "actual"),
    [
        (make_chain(3), "nodes", 3),
        ({"1": make_node(a=["2", 0], b=["2", 1], c=["3", 0])}, "links", 3),
        ({"1": make_node(a=1, b=[1, [2, {"x": 3}]], c="t")}, "values", 8),
        (make_chain(3), "depth", 3),
        ({"1": make_node(text="x" * 50)}, "bytes", 95),
    ],
)
def test_each_bound_is_enforced_and_named(graph: Any, bound: str, actual: int) -> None:
    check(graph, **{bound: actual})
    with pytest.raises(GraphTooLarge) as exc_info:
        check(graph, **{bound: actual - 1})
    details = exc_info.value.details
    assert (details["bound"], details["max"], details["actual"]) == (bound, actual - 1, actual)


def test_a_graph_of_60000_nodes_is_refused_by_default() -> None:
    with pytest.raises(GraphTooLarge, match="the graph has 60000 nodes; at most 5000 are allowed"):
        check(make_chain(60_000))


def test_a_long_chain_names_its_last_node() -> None:
    with pytest.raises(GraphTooLarge) as exc_info:
        check(make_chain(5_000))
    assert exc_info.value.details == {
        "bound": "depth", "max": 400, "actual": 5_000, "node": "4999",
    }  # fmt: skip


def test_chains_of_any_length_are_measured_without_recursion() -> None:
    check_graph_size([("workflow", make_chain(200_000))], WIDE)


def test_a_circle_names_its_nodes_in_comfyuis_format() -> None:
    circle = {"a": make_node(x=["c", 0]), "b": make_node(x=["a", 0]), "c": make_node(x=["b", 0])}
    behind = {"d": make_node(x=["c", 0]), "e": make_node(x=["d", 0])}
    with pytest.raises(InvalidGraph, match="must not form a circle") as exc_info:
        check({**behind, "f": make_node(), **circle})
    chain = exc_info.value.message.partition("circle: ")[2].split(" → ")
    assert chain[0] == chain[-1]
    # A link leads from each node to the next one.
    assert "".join(chain).replace("'", "") in ("abca", "bcab", "cabc")
    details = exc_info.value.details
    assert details["error"]["extra_info"]["node_id"] in circle
    [(node_id, node_error)] = details["node_errors"].items()
    assert node_id in circle
    assert node_error["class_type"] == "A"


def test_a_long_circle_names_some_of_its_nodes() -> None:
    circle = {**make_chain(300), "0": make_node(image=["299", 0])}
    with pytest.raises(InvalidGraph) as exc_info:
        check(circle)
    chain = exc_info.value.message.split(" → ")
    assert (len(chain), chain[-2]) == (22, "… 280 more")


def test_a_node_that_is_linked_to_itself_is_a_circle() -> None:
    with pytest.raises(InvalidGraph, match=r"circle: '1' → '1'$"):
        check({"1": make_node(x=["1", 0])})


def test_the_graphs_of_a_job_count_together() -> None:
    graphs = [("steps.0.workflow", make_chain(3)), ("steps.1.workflow", make_chain(3))]
    check_graph_size(graphs, GraphBounds(nodes=6))
    with pytest.raises(GraphTooLarge) as exc_info:
        check_graph_size(graphs, GraphBounds(nodes=5))
    assert exc_info.value.field == "steps.1.workflow"


def test_the_children_of_a_batch_count_by_what_they_change() -> None:
    patches = [{"0": {"seed": n}} for n in range(10)]
    check_graph_size([("workflow", make_chain(3))], GraphBounds(values=12), patches)
    with pytest.raises(GraphTooLarge):
        check_graph_size([("workflow", make_chain(3))], GraphBounds(values=11), patches)


@pytest.mark.parametrize(
    "graph",
    [
        {"1": None, "2": [], "3": "text", "4": {}},
        {"1": {"inputs": None}, "2": {"inputs": [["1", 0]]}},
        {"1": make_node(a=["gone", 0], b=[1, 0], c=["2"], d=[["1", 0], 0])},
    ],
)
def test_malformed_graphs_are_left_to_validation(graph: Any) -> None:
    check(graph)
