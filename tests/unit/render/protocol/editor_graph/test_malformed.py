"""Tests that malformed, circular and huge graphs of the editor are refused in bounded time."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moyin.errors import InvalidRequest
from moyin.render.protocol.editor_graph import document
from moyin.render.protocol.editor_graph.conversion import convert
from tests.editor_graphs import BYPASSED, MADE, graph, make_id, node, subgraph
from tests.unit.render.protocol.editor_graph.test_conversion import NODES

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-30, 10**7) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def run(saved: Any) -> dict[str, Any]:
    return dict(convert(saved, NODES, now=datetime(2026, 1, 1)).graph)


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value within ``value``."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(found for key, item in items for found in list_paths(item, (*path, key)))]


PATHS = [(name, path) for name, saved in MADE.items() for path in list_paths(saved) if path]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=4))
def test_any_change_of_a_graph_is_converted_or_refused(changes: list[tuple[Any, Any]]) -> None:
    (name, _), _ = changes[0]
    saved = copy.deepcopy(MADE[name])
    for (other, (*outer, last)), value in changes:
        parent: Any = saved if other == name else {}
        try:
            for key in outer:
                parent = parent[key]
            parent[last] = value
        except (KeyError, IndexError, TypeError):
            continue
    try:
        nodes = run(saved)
    except InvalidRequest as error:
        assert error.field is not None and error.field.startswith("graph")
        return
    for converted in nodes.values():
        assert isinstance(converted["class_type"], str)
        for value in converted["inputs"].values():
            assert not isinstance(value, list) or value[0] in nodes


@pytest.mark.parametrize(
    ("saved", "field"),
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
        ({"nodes": [{"type": "A", "id": 1}] * (document.MAX_NODES + 1)}, "graph.nodes"),
        ({"nodes": [], "links": [None] * (document.MAX_LINKS + 1)}, "graph.links"),
    ],
)  # fmt: skip
def test_errors_name_the_field(saved: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        run(saved)
    assert error.value.field == field


def test_circles_of_links_are_refused() -> None:
    saved = graph(
        [
            node(1, "Reroute", links={"": 1}),
            node(2, "Reroute", links={"": 2}),
            node(3, "PreviewImage", links={"images": 3}),
        ],
        [(1, 2, 0, 1, 0, "*"), (2, 1, 0, 2, 0, "*"), (3, 1, 0, 3, 0, "*")],
    )
    with pytest.raises(InvalidRequest, match="form a circle"):
        run(saved)


def test_subgraphs_that_contain_themselves_or_multiply_are_refused() -> None:
    own = subgraph("A", [node(1, make_id("B"))], [], {}, {})
    other = subgraph("B", [node(1, make_id("A"))], [], {}, {})
    saved = graph([node(1, make_id("A"))], [], definitions={"subgraphs": [own, other]})
    with pytest.raises(InvalidRequest, match="must not contain itself"):
        run(saved)
    levels = [
        subgraph(f"L{level}", [node(at, make_id(f"L{level + 1}")) for at in range(10)], [], {}, {})
        for level in range(9)
    ]
    saved = graph([node(1, make_id("L0"))], [], definitions={"subgraphs": levels})
    with pytest.raises(InvalidRequest, match="with its subgraphs inlined"):
        run(saved)
    deep = [
        subgraph(f"L{level}", [node(1, make_id(f"L{level + 1}"))], [], {}, {})
        for level in range(60)
    ]
    saved = graph([node(1, make_id("L0"))], [], definitions={"subgraphs": deep})
    with pytest.raises(InvalidRequest, match="must be nested at most 50 levels"):
        run(saved)


def test_repeated_texts_of_subgraphs_are_bounded() -> None:
    text = subgraph("Text", [node(1, "SaveImage", ["x" * 100_000])], [], {}, {})
    nodes = [node(at, make_id("Text")) for at in range(1_000)]
    nested = {"nodes": [node(1, "Sampler", [1, "fixed", "{" * 20 + "a" * 10**6])]}
    for saved in (graph(nodes, [], definitions={"subgraphs": [text]}), nested):
        with pytest.raises(InvalidRequest, match="characters with its subgraphs inlined"):
            run(saved)


def test_long_chains_that_many_inputs_follow_are_refused() -> None:
    count = 2_000
    chain = [node(1, "EmptyImage")]
    chain += [node(at, "ImageInvert", links={"image": at}, mode=BYPASSED) for at in range(2, count)]
    ends = [node(count + at, "PreviewImage", links={"images": 10**5 + at}) for at in range(count)]
    links = [(at, at - 1, 0, at, 0, "IMAGE") for at in range(2, count)]
    links += [(10**5 + at, count - 1, 0, count + at, 0, "IMAGE") for at in range(count)]
    with pytest.raises(InvalidRequest, match="too complicated"):
        run({"nodes": chain + ends, "links": [list(link) for link in links]})


def use_input(slot: int, *, uses: int = 1, inputs: int = 0, **user: Any) -> dict[str, Any]:
    """Return a graph whose subgraph leads its input ``slot`` to a node inside."""
    inner = {
        "id": "S",
        "inputs": [{"name": f"p{at}", "type": "INT"} for at in range(inputs)],
        "nodes": [{"id": 1, "type": "Other", "inputs": [{"name": "a", "type": "INT", "link": 1}]}],
        "links": [[1, -10, slot, 1, 0, "INT"]],
    }
    nodes = [{"id": at, "type": "S", **user} for at in range(uses)]
    return {"nodes": nodes, "definitions": {"subgraphs": [inner]}}


@pytest.mark.parametrize("kind", ["INT", "STRING", "*"])
def test_links_from_slots_before_the_first_lead_nowhere(kind: str) -> None:
    bypassed = {
        "nodes": [
            {"id": 1, "type": "A", "mode": BYPASSED, "inputs": [{"name": "a", "type": kind}]},
            {"id": 2, "type": "B", "inputs": [{"name": "b", "type": "INT", "link": 1}]},
        ],
        "links": [[1, 1, -1, 2, 0, "INT"]],
    }
    for saved in (bypassed, use_input(-1)):
        assert [converted["inputs"] for converted in run(saved).values()] == [{}]


def test_ids_of_nested_subgraphs_are_bounded() -> None:
    long = "x" * 500
    levels = [
        {"id": f"L{level}", "nodes": [{"id": long, "type": f"L{level + 1}"}]} for level in range(9)
    ]
    saved = {"nodes": [{"id": long, "type": "L0"}], "definitions": {"subgraphs": levels}}
    with pytest.raises(InvalidRequest, match="must be nested at most 50 levels"):
        run(saved)


def test_ids_that_nodes_and_links_repeat_are_bounded() -> None:
    long = "x" * 500
    inputs = [{"name": f"a{at}", "type": "INT", "link": 1} for at in range(1_000)]
    ends = [{"id": at, "type": "Other", "inputs": inputs} for at in range(40)]
    saved = {"nodes": [{"id": long, "type": "A"}, *ends], "links": [[1, long, 0, 1, 0, "INT"]]}
    with pytest.raises(InvalidRequest, match="characters with its subgraphs inlined"):
        run(saved)


def test_slots_of_subgraphs_that_are_used_often_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="too complicated"):
        run(use_input(999, uses=1_000, inputs=1_000))


def test_slots_in_which_promoted_widgets_are_searched_are_bounded() -> None:
    slots = [{"name": f"q{at}", "type": "INT"} for at in range(1_000)]
    saved = use_input(0, inputs=1, widgets_values=[1])
    saved["nodes"][0]["inputs"] = slots
    inputs = [{"name": f"a{at}", "type": "INT", "link": 1} for at in range(600)]
    saved["definitions"]["subgraphs"][0]["nodes"][0]["inputs"] = inputs
    with pytest.raises(InvalidRequest, match="too complicated"):
        run(saved)


def test_long_types_of_bypassed_nodes_are_bounded() -> None:
    first, other, wanted = (",".join(f"{name}{at}" for at in range(120)) for name in "abc")
    inputs = [{"name": f"a{at}", "type": f"z,{first}"} for at in range(1_000)]
    bypassed = {
        "id": 1, "type": "A", "mode": BYPASSED, "inputs": inputs,
        "outputs": [{"name": "o", "type": f"z,{other}"}],
    }  # fmt: skip
    ends = [{"name": f"b{at}", "type": wanted, "link": 1} for at in range(50)]
    saved = {
        "nodes": [bypassed, {"id": 2, "type": "B", "inputs": ends}],
        "links": [[1, 1, 0, 2, 0, "*"]],
    }
    with pytest.raises(InvalidRequest, match="too complicated"):
        run(saved)


class Unprintable(list[int]):
    """A list like one of millions of values, which must not be made into text."""

    def __repr__(self) -> str:
        raise AssertionError("the text of this list was made")

    __str__ = __repr__


def test_lists_are_not_made_into_texts() -> None:
    shown = use_input(0, inputs=1, properties={"proxyWidgets": [["-1", Unprintable()]]})
    assert [converted["inputs"] for converted in run(shown).values()] == [{}]
    named = node(1, "EmptyImage", [1, 1, 1, Unprintable([1])], title="A")
    saved = graph([named, node(2, "SaveImage", ["%A.color% %A.width%"])], [])
    assert run(saved)["2"]["inputs"]["filename_prefix"] == "%A.color% 1"
