"""Tests that malformed, circular and huge graphs of the editor are refused in bounded time."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moyin.errors import GraphTooLarge, InvalidRequest
from moyin.render.protocol.editor_graph import document
from moyin.render.protocol.editor_graph.conversion import convert
from tests.editor_graphs import BYPASSED, MADE, graph, make_id, node, subgraph
from tests.unit.render.protocol.editor_graph.test_conversion import NODES

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-30, 10**7) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def convert_graph(editor_graph: Any) -> dict[str, Any]:
    return dict(convert(editor_graph, NODES, now=datetime(2026, 1, 1)).graph)


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path, as keys and indexes, of ``value`` itself and of every value within it."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(inner for key, item in items for inner in list_paths(item, (*path, key)))]


PATHS = [(name, path) for name, saved in MADE.items() for path in list_paths(saved) if path]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=4))
def test_any_change_of_a_graph_is_converted_or_refused(changes: list[tuple[Any, Any]]) -> None:
    (name, _), _ = changes[0]
    editor_graph = copy.deepcopy(MADE[name])
    for (other_name, (*parent_keys, last_key)), value in changes:
        parent: Any = editor_graph if other_name == name else {}
        try:
            for key in parent_keys:
                parent = parent[key]
            parent[last_key] = value
        except (KeyError, IndexError, TypeError):
            continue
    try:
        nodes = convert_graph(editor_graph)
    except (InvalidRequest, GraphTooLarge) as error:
        assert error.field is not None and error.field.startswith("graph")
        return
    for converted_node in nodes.values():
        assert isinstance(converted_node["class_type"], str)
        for value in converted_node["inputs"].values():
            assert not isinstance(value, list) or value[0] in nodes


@pytest.mark.parametrize(
    ("editor_graph", "field"),
    [
        ({"nodes": []}, "graph.nodes"),
        ({"nodes": [1]}, "graph.nodes.0"),
        ({"nodes": [{"id": 1}]}, "graph.nodes.0.type"),
        ({"nodes": [{"type": "A", "id": True}]}, "graph.nodes.0.id"),
        ({"nodes": [{"type": "A", "id": 1}, {"type": "A", "id": "1"}]}, "graph.nodes.1.id"),
        ({"nodes": [{"type": "A", "id": 1, "inputs": 5}]}, "graph.nodes.0.inputs"),
        ({"nodes": [], "links": {}}, "graph.links"),
        ({"nodes": [], "links": [[1, 2]]}, "graph.links.0"),
        ({"nodes": [], "links": [[1, 2, "x", 3, 4, "A"]]}, "graph.links.0.origin_slot"),
        ({"nodes": [], "definitions": {"subgraphs": [{"nodes": []}]}}, "graph.definitions.subgraphs.0.id"),
    ],
)  # fmt: skip
def test_errors_name_the_field(editor_graph: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        convert_graph(editor_graph)
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("editor_graph", "bound"),
    [
        ({"nodes": [{"type": "A", "id": 1}] * (document.MAX_NODES + 1)}, "nodes"),
        ({"nodes": [], "links": [None] * (document.MAX_LINKS + 1)}, "links"),
    ],
)
def test_large_graphs_are_refused_before_they_are_read(
    editor_graph: dict[str, Any], bound: str
) -> None:
    with pytest.raises(GraphTooLarge) as exc_info:
        convert_graph(editor_graph)
    assert (exc_info.value.field, exc_info.value.details["bound"]) == (f"graph.{bound}", bound)


def test_circles_of_links_are_refused() -> None:
    editor_graph = graph(
        [
            node(1, "Reroute", links={"": 1}),
            node(2, "Reroute", links={"": 2}),
            node(3, "PreviewImage", links={"images": 3}),
        ],
        [(1, 2, 0, 1, 0, "*"), (2, 1, 0, 2, 0, "*"), (3, 1, 0, 3, 0, "*")],
    )
    with pytest.raises(InvalidRequest, match="form a circle"):
        convert_graph(editor_graph)


def test_subgraphs_that_contain_themselves_or_multiply_are_refused() -> None:
    first_subgraph = subgraph("A", [node(1, make_id("B"))], [], {}, {})
    second_subgraph = subgraph("B", [node(1, make_id("A"))], [], {}, {})
    editor_graph = graph(
        [node(1, make_id("A"))], [], definitions={"subgraphs": [first_subgraph, second_subgraph]}
    )
    with pytest.raises(InvalidRequest, match="must not contain itself"):
        convert_graph(editor_graph)
    levels = [
        subgraph(f"L{level}", [node(at, make_id(f"L{level + 1}")) for at in range(10)], [], {}, {})
        for level in range(9)
    ]
    editor_graph = graph([node(1, make_id("L0"))], [], definitions={"subgraphs": levels})
    with pytest.raises(GraphTooLarge, match="with its subgraphs inlined"):
        convert_graph(editor_graph)
    deep_levels = [
        subgraph(f"L{level}", [node(1, make_id(f"L{level + 1}"))], [], {}, {})
        for level in range(60)
    ]
    editor_graph = graph([node(1, make_id("L0"))], [], definitions={"subgraphs": deep_levels})
    with pytest.raises(InvalidRequest, match="must be nested at most 50 levels"):
        convert_graph(editor_graph)


def test_repeated_texts_of_subgraphs_are_bounded() -> None:
    text_subgraph = subgraph("Text", [node(1, "SaveImage", ["x" * 100_000])], [], {}, {})
    nodes = [node(at, make_id("Text")) for at in range(1_000)]
    nested_graph = {"nodes": [node(1, "Sampler", [1, "fixed", "{" * 20 + "a" * 10**6])]}
    for editor_graph in (
        graph(nodes, [], definitions={"subgraphs": [text_subgraph]}),
        nested_graph,
    ):
        with pytest.raises(GraphTooLarge, match="characters with its subgraphs inlined"):
            convert_graph(editor_graph)


def test_long_chains_that_many_inputs_follow_are_refused() -> None:
    node_count = 2_000
    chain = [node(1, "EmptyImage")]
    chain += [
        node(at, "ImageInvert", links={"image": at}, mode=BYPASSED) for at in range(2, node_count)
    ]
    end_nodes = [
        node(node_count + at, "PreviewImage", links={"images": 10**5 + at})
        for at in range(node_count)
    ]
    links = [(at, at - 1, 0, at, 0, "IMAGE") for at in range(2, node_count)]
    links += [
        (10**5 + at, node_count - 1, 0, node_count + at, 0, "IMAGE") for at in range(node_count)
    ]
    with pytest.raises(InvalidRequest, match="too complicated"):
        convert_graph({"nodes": chain + end_nodes, "links": [list(link) for link in links]})


def make_graph_with_subgraph_input(
    slot: int, *, use_count: int = 1, input_count: int = 0, **user_members: Any
) -> dict[str, Any]:
    """Return a graph with a subgraph, in which the input ``slot`` is linked to the inner node.

    Args:
        slot: the index of the input, which need not exist.
        use_count: how many nodes use the subgraph.
        input_count: the number of inputs that the subgraph declares.
        user_members: further members of the nodes that use the subgraph.
    """
    inner_subgraph = {
        "id": "S",
        "inputs": [{"name": f"p{at}", "type": "INT"} for at in range(input_count)],
        "nodes": [{"id": 1, "type": "Other", "inputs": [{"name": "a", "type": "INT", "link": 1}]}],
        "links": [[1, -10, slot, 1, 0, "INT"]],
    }
    nodes = [{"id": at, "type": "S", **user_members} for at in range(use_count)]
    return {"nodes": nodes, "definitions": {"subgraphs": [inner_subgraph]}}


@pytest.mark.parametrize("link_type", ["INT", "STRING", "*"])
def test_links_with_negative_slots_are_dropped(link_type: str) -> None:
    bypassed_graph = {
        "nodes": [
            {"id": 1, "type": "A", "mode": BYPASSED, "inputs": [{"name": "a", "type": link_type}]},
            {"id": 2, "type": "B", "inputs": [{"name": "b", "type": "INT", "link": 1}]},
        ],
        "links": [[1, 1, -1, 2, 0, "INT"]],
    }
    for editor_graph in (bypassed_graph, make_graph_with_subgraph_input(-1)):
        assert [
            converted_node["inputs"] for converted_node in convert_graph(editor_graph).values()
        ] == [{}]


def test_ids_of_nested_subgraphs_are_bounded() -> None:
    long_id = "x" * 500
    levels = [
        {"id": f"L{level}", "nodes": [{"id": long_id, "type": f"L{level + 1}"}]}
        for level in range(9)
    ]
    editor_graph = {"nodes": [{"id": long_id, "type": "L0"}], "definitions": {"subgraphs": levels}}
    with pytest.raises(InvalidRequest, match="must be nested at most 50 levels"):
        convert_graph(editor_graph)


def test_ids_that_nodes_and_links_repeat_are_bounded() -> None:
    long_id = "x" * 500
    inputs = [{"name": f"a{at}", "type": "INT", "link": 1} for at in range(1_000)]
    end_nodes = [{"id": at, "type": "Other", "inputs": inputs} for at in range(40)]
    editor_graph = {
        "nodes": [{"id": long_id, "type": "A"}, *end_nodes],
        "links": [[1, long_id, 0, 1, 0, "INT"]],
    }
    with pytest.raises(GraphTooLarge, match="characters with its subgraphs inlined"):
        convert_graph(editor_graph)


def test_slots_of_subgraphs_that_are_used_often_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="too complicated"):
        convert_graph(make_graph_with_subgraph_input(999, use_count=1_000, input_count=1_000))


def test_slots_in_which_promoted_widgets_are_searched_are_bounded() -> None:
    slots = [{"name": f"q{at}", "type": "INT"} for at in range(1_000)]
    editor_graph = make_graph_with_subgraph_input(0, input_count=1, widgets_values=[1])
    editor_graph["nodes"][0]["inputs"] = slots
    inputs = [{"name": f"a{at}", "type": "INT", "link": 1} for at in range(600)]
    editor_graph["definitions"]["subgraphs"][0]["nodes"][0]["inputs"] = inputs
    with pytest.raises(InvalidRequest, match="too complicated"):
        convert_graph(editor_graph)


def test_long_types_of_bypassed_nodes_are_bounded() -> None:
    input_types, output_types, linked_types = (
        ",".join(f"{name}{at}" for at in range(120)) for name in "abc"
    )
    inputs = [{"name": f"a{at}", "type": f"z,{input_types}"} for at in range(1_000)]
    bypassed_node = {
        "id": 1, "type": "A", "mode": BYPASSED, "inputs": inputs,
        "outputs": [{"name": "o", "type": f"z,{output_types}"}],
    }  # fmt: skip
    linked_inputs = [{"name": f"b{at}", "type": linked_types, "link": 1} for at in range(50)]
    editor_graph = {
        "nodes": [bypassed_node, {"id": 2, "type": "B", "inputs": linked_inputs}],
        "links": [[1, 1, 0, 2, 0, "*"]],
    }
    with pytest.raises(InvalidRequest, match="too complicated"):
        convert_graph(editor_graph)


class Unprintable(list[int]):
    """A list that fails when it is converted to text, which would be slow for a long list."""

    def __repr__(self) -> str:
        raise AssertionError("the text of this list was made")

    __str__ = __repr__


def test_lists_are_not_converted_to_text() -> None:
    graph_with_widget = make_graph_with_subgraph_input(
        0, input_count=1, properties={"proxyWidgets": [["-1", Unprintable()]]}
    )
    assert [
        converted_node["inputs"] for converted_node in convert_graph(graph_with_widget).values()
    ] == [{}]
    titled_node = node(1, "EmptyImage", [1, 1, 1, Unprintable([1])], title="A")
    editor_graph = graph([titled_node, node(2, "SaveImage", ["%A.color% %A.width%"])], [])
    assert convert_graph(editor_graph)["2"]["inputs"]["filename_prefix"] == "%A.color% 1"
