"""Graphs as ComfyUI's editor saves them, made of nodes that need no model."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

# The inputs that have a socket, with their types, and the output of each class.
_SLOTS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "EmptyImage": ({}, "IMAGE"),
    "ImageInvert": ({"image": "IMAGE"}, "IMAGE"),
    "ImageScaleBy": ({"image": "IMAGE"}, "IMAGE"),
    "ImageBlend": ({"image1": "IMAGE", "image2": "IMAGE"}, "IMAGE"),
    "SaveImage": ({"images": "IMAGE"}, ""),
    "PreviewImage": ({"images": "IMAGE"}, ""),
    "Reroute": ({"": "*"}, "*"),
    "PrimitiveNode": ({}, "INT"),
    "Note": ({}, ""),
    "MarkdownNote": ({}, ""),
}
MUTED, BYPASSED = 2, 4
_LINK_MEMBERS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


def node(
    id: int,
    type: str,
    values: Any = (),
    *,
    links: Mapping[str, int] | None = None,
    widgets: Mapping[str, str] | None = None,
    mode: int = 0,
    title: str | None = None,
    **members: Any,
) -> dict[str, Any]:
    """Return a node.

    Args:
        values: the values of the node's widgets.
        links: the id of the link into each linked input, by the input's name.
        widgets: the types of further inputs, which have a widget, by the input's name.
        members: further members of the node.
    """
    sockets, output_type = _SLOTS.get(type, ({}, "IMAGE"))
    links = links or {}
    inputs: list[dict[str, Any]] = [
        {"name": name, "type": input_type, "link": links.get(name)}
        for name, input_type in sockets.items()
    ]
    inputs += [
        {"name": name, "type": input_type, "link": links.get(name), "widget": {"name": name}}
        for name, input_type in (widgets or {}).items()
    ]
    saved_node = {
        "id": id, "type": type, "pos": [100 * id, 100], "size": [200, 100], "flags": {},
        "order": id, "mode": mode, "inputs": inputs, "properties": {},
        "outputs": [{"name": output_type, "type": output_type, "links": []}] if output_type else [],
        "widgets_values": values if isinstance(values, dict) else list(values),
        **members,
    }  # fmt: skip
    return saved_node if title is None else {**saved_node, "title": title}


def graph(
    nodes: Sequence[dict[str, Any]], links: Sequence[Sequence[Any]], **members: Any
) -> dict[str, Any]:
    """Return a graph of version 0.4.

    Args:
        links: the id, origin, origin's slot, target, target's slot and type of each link.
        members: further members of the graph.
    """
    for link in links:
        origin_node = next(candidate for candidate in nodes if candidate["id"] == link[1])
        origin_node["outputs"][link[2]]["links"].append(link[0])
    return {
        "last_node_id": 100, "last_link_id": 100, "nodes": list(nodes),
        "links": [list(link) for link in links], "groups": [], "config": {}, "extra": {},
        "version": 0.4, **members,
    }  # fmt: skip


def subgraph(
    name: str,
    nodes: Sequence[dict[str, Any]],
    links: Sequence[Sequence[Any]],
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """Return the definition of a subgraph; in ``links``, node -10 is its inputs, node -20 its outputs."""

    def list_slots(
        slots: Mapping[str, str], end_node_id: int, end_index: int
    ) -> list[dict[str, Any]]:
        return [
            {
                "id": make_id(f"{name} {slot}"), "name": slot, "type": kind, "pos": [0, 0],
                "linkIds": [link[0] for link in links if link[end_index] == end_node_id and link[end_index + 1] == number],
            }
            for number, (slot, kind) in enumerate(slots.items())
        ]  # fmt: skip

    return {
        "id": make_id(name), "version": 1, "revision": 0, "config": {}, "name": name,
        "state": {"lastGroupId": 0, "lastNodeId": 50, "lastLinkId": 50, "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [0, 0, 100, 100]},
        "outputNode": {"id": -20, "bounding": [900, 0, 100, 100]},
        "inputs": list_slots(inputs, -10, 1), "outputs": list_slots(outputs, -20, 3),
        "widgets": [], "nodes": list(nodes), "groups": [], "extra": {},
        "links": [dict(zip(_LINK_MEMBERS, link, strict=True)) for link in links],
    }  # fmt: skip


def make_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def make_simple(color: int, prefix: str = "editor") -> dict[str, Any]:
    """Return a graph that saves one small picture, and has a note and a muted node."""
    return graph(
        [
            node(1, "EmptyImage", [48, 32, 1, color]),
            node(2, "SaveImage", [prefix], links={"images": 1}),
            node(3, "PreviewImage", links={"images": 2}, mode=MUTED, title="Look"),
            node(4, "Note", ["Made by the editor."]),
        ],
        [(1, 1, 0, 2, 0, "IMAGE"), (2, 1, 0, 3, 0, "IMAGE")],
    )


def make_detours() -> dict[str, Any]:
    """Return a graph with reroutes, primitives, bypassed and muted nodes, notes and a group."""
    return graph(
        [
            node(1, "EmptyImage", [64, 64, 1, 255], widgets={"width": "INT", "color": "INT"},
                 links={"width": 1, "color": 11}),
            node(2, "PrimitiveNode", [96, "fixed"], title="Width"),
            node(3, "Reroute", links={"": 2}),
            node(4, "Reroute", links={"": 3}),
            node(5, "ImageInvert", links={"image": 4}, mode=BYPASSED),
            node(6, "ImageScaleBy", ["nearest-exact", 0.5], links={"image": 5}),
            node(7, "ImageBlend", [0.25, "multiply"], links={"image1": 6, "image2": 7}),
            node(8, "ImageInvert", links={"image": 8}, mode=MUTED),
            node(9, "SaveImage", ["of %EmptyImage.height% and %Width of all.color%"], links={"images": 9}),
            node(10, "PreviewImage", links={"images": 10}),
            node(11, "MarkdownNote", ["# Hello"]),
            node(12, "PrimitiveNode", [4711, "randomize"]),
            node(13, "EmptyImage", [8, 8, 1, 0], title="Width of all", mode=MUTED),
        ],
        [
            (1, 2, 0, 1, 0, "INT"), (2, 1, 0, 3, 0, "*"), (3, 3, 0, 4, 0, "*"),
            (4, 4, 0, 5, 0, "IMAGE"), (5, 5, 0, 6, 0, "IMAGE"), (6, 6, 0, 7, 0, "IMAGE"),
            (7, 1, 0, 7, 1, "IMAGE"), (8, 1, 0, 8, 0, "IMAGE"), (9, 7, 0, 9, 0, "IMAGE"),
            (10, 8, 0, 10, 0, "IMAGE"), (11, 12, 0, 1, 1, "INT"),
        ],
        groups=[{"title": "Detours", "bounding": [0, 0, 10, 10], "color": "#3f789e"}],
    )  # fmt: skip


def make_nested(promoted_widgets: Sequence[Sequence[str]] = ()) -> dict[str, Any]:
    """Return a graph that uses an outer subgraph twice, which itself uses an inner one twice.

    Args:
        promoted_widgets: the widgets of inner nodes that the outer subgraph shows, each as the
            node's id and the widget's name.
    """
    inner = subgraph(
        "Scale",
        [
            node(1, "ImageScaleBy", ["nearest-exact", 1.5], links={"image": 1, "scale_by": 2},
                 widgets={"scale_by": "FLOAT"}),
            node(2, "ImageInvert", links={"image": 3}),
        ],
        [(1, -10, 0, 1, 0, "IMAGE"), (2, -10, 1, 1, 1, "FLOAT"), (3, 1, 0, 2, 0, "IMAGE"),
         (4, 2, 0, -20, 0, "IMAGE")],
        {"image": "IMAGE", "factor": "FLOAT"}, {"result": "IMAGE"},
    )  # fmt: skip

    def use_inner(id: int, link: int, factor: float, factor_link: int | None) -> dict[str, Any]:
        return node(id, make_id("Scale"), [factor], inputs=[
            {"name": "image", "type": "IMAGE", "link": link},
            {"name": "factor", "type": "FLOAT", "widget": {"name": "factor"}, "link": factor_link},
        ])  # fmt: skip

    outer = subgraph(
        "Twice",
        [use_inner(5, 1, 0.5, 5), use_inner(6, 2, 2.0, None),
         node(7, "ImageBlend", [0.5, "normal"], links={"image1": 3, "image2": 4})],
        [(1, -10, 0, 5, 0, "IMAGE"), (2, -10, 0, 6, 0, "IMAGE"), (3, 5, 0, 7, 0, "IMAGE"),
         (4, 6, 0, 7, 1, "IMAGE"), (5, -10, 1, 5, 1, "FLOAT"), (6, 7, 0, -20, 0, "IMAGE")],
        {"picture": "IMAGE", "first": "FLOAT"}, {"blended": "IMAGE"},
    )  # fmt: skip

    def use_outer(id: int, link: int, first_factor: float) -> dict[str, Any]:
        values = [first_factor] if ["-1", "first"] not in promoted_widgets else [None, first_factor]
        return node(
            id, make_id("Twice"), values,
            inputs=[
                {"name": "picture", "type": "IMAGE", "link": link},
                {"name": "first", "type": "FLOAT", "widget": {"name": "first"}, "link": None},
            ],
            outputs=[{"name": "blended", "type": "IMAGE", "links": []}],
            properties={"proxyWidgets": list(promoted_widgets)} if promoted_widgets else {},
        )  # fmt: skip

    return graph(
        [
            node(1, "EmptyImage", [16, 16, 1, 4711]),
            use_outer(2, 1, 0.25),
            use_outer(3, 2, 4.0),
            node(4, "SaveImage", ["nested"], links={"images": 3}),
        ],
        [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, "IMAGE"), (3, 3, 0, 4, 0, "IMAGE")],
        definitions={"subgraphs": [inner, outer]},
    )  # fmt: skip


def to_version_1(graph_0_4: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a graph of version 0.4 to version 1, in which links are objects instead of lists."""
    links = [dict(zip(_LINK_MEMBERS, link, strict=True)) for link in graph_0_4["links"]]
    state = {"lastGroupId": 0, "lastNodeId": 100, "lastLinkId": 100, "lastRerouteId": 0}
    return {**graph_0_4, "links": links, "version": 1, "state": state}


MADE: Mapping[str, dict[str, Any]] = {
    "simple": make_simple(4711),
    "version 1": to_version_1(make_simple(4711)),
    "detours": make_detours(),
    "nested": make_nested(),
    "listed widgets": make_nested([["7", "blend_factor"], ["-1", "first"]]),
    "other listed widgets": make_nested([["7", "blend_factor"]]),
}
