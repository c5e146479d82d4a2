"""Parses graphs in the format that ComfyUI's editor saves, versions 0.4 and 1, up to size limits.

In a saved graph, nodes have lists of widget values, and links are lists or objects. Subgraphs are
definitions, which nodes name by id. Ids are numbers or strings; this module converts all to strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moyin.errors import GraphTooLarge, InvalidRequest

# The bounds of what the editor saves, with notes, groups and muted nodes. The converted graph must
# also be within the bounds of the caller.
MAX_NODES = 10_000
MAX_LINKS = 50_000
MAX_SLOTS = 1_000
MAX_SUBGRAPHS = 1_000
# The ids of the nodes that stand for the inputs and the outputs of a subgraph.
INPUT_NODE, OUTPUT_NODE = "-10", "-20"
# The mode of nodes that are not executed, and of those that pass their inputs through.
MUTED, BYPASSED = 2, 4
_MAX_NAME = 512
# Node classes that ComfyUI has renamed.
_NEW_NAMES = {
    "T2IAdapterLoader": "ControlNetLoader",
    "ConditioningAverage ": "ConditioningAverage",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
    "Load3DAnimation": "Load3D",
    "Preview3DAnimation": "Preview3D",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """An input or output of a node or subgraph.

    Attributes:
        link: the id of the link into the input, if there is one.
        has_widget: True if the input belongs to a widget.
    """

    name: str
    type: str
    link: str | None = None
    has_widget: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class EditorNode:
    """A node as the editor saved it.

    Attributes:
        values: the values of the node's widgets, in the order of the widgets or by name.
    """

    id: str
    type: str
    title: str
    mode: int
    inputs: Sequence[Slot]
    outputs: Sequence[Slot]
    values: Sequence[Any] | Mapping[str, Any]
    properties: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A link from a node's output to a node's input."""

    origin: str
    origin_slot: int
    target: str
    target_slot: int


@dataclass(frozen=True, kw_only=True)
class EditorGraph:
    """A graph or the definition of a subgraph, which also has inputs and outputs.

    Attributes:
        output_links: the link into each output of a subgraph, by the index of the output.
        name: the name of a subgraph; empty for the root graph.
    """

    nodes: Mapping[str, EditorNode]
    links: Mapping[str, Link]
    output_links: Mapping[int, Link]
    inputs: Sequence[Slot] = ()
    outputs: Sequence[Slot] = ()
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class EditorDocument:
    """A saved graph with the definitions of its subgraphs by id, and the titles of its groups."""

    root: EditorGraph
    subgraphs: Mapping[str, EditorGraph]
    groups: Sequence[str]


def is_editor_format(graph: Mapping[str, Any]) -> bool:
    """Return True if the graph is in the editor's format rather than in the API format."""
    return isinstance(graph.get("nodes"), list)


def parse_document(graph: Mapping[str, Any], field: str) -> EditorDocument:
    """Parse a graph in the editor's format.

    Args:
        field: the path of the graph in the request, for errors.

    Raises:
        InvalidRequest: a part of the graph is malformed; the error names the field.
        GraphTooLarge: the graph has too many nodes, links, slots, groups or subgraphs.
    """
    definitions = graph.get("definitions")
    subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
    path = f"{field}.definitions.subgraphs"
    subgraphs_by_id: dict[str, EditorGraph] = {}
    for item_field, subgraph in _iterate_objects(subgraphs, path, MAX_SUBGRAPHS):
        subgraphs_by_id[_parse_id(subgraph, "id", item_field)] = _parse_graph(subgraph, item_field)
    root = _parse_graph(graph, field)
    node_count = sum(len(graph.nodes) for graph in (root, *subgraphs_by_id.values()))
    if node_count > MAX_NODES:
        raise _make_too_many_error("nodes", MAX_NODES, node_count, f"{field}.nodes")
    groups = [
        _get_text(group, "title")
        for _, group in _iterate_objects(graph.get("groups"), f"{field}.groups", MAX_NODES)
    ]
    return EditorDocument(root=root, subgraphs=subgraphs_by_id, groups=groups)


def _parse_graph(graph: Mapping[str, Any], field: str) -> EditorGraph:
    nodes: dict[str, EditorNode] = {}
    for item_field, item in _iterate_objects(graph.get("nodes"), f"{field}.nodes", MAX_NODES):
        node = _parse_node(item, item_field)
        if node.id in nodes:
            raise InvalidRequest(
                f"{item_field}.id must be unique, but another node has the same id",
                field=f"{item_field}.id",
            )
        nodes[node.id] = node
    links = dict(_parse_links(graph.get("links"), f"{field}.links"))
    output_links: dict[int, Link] = {}
    for link in links.values():
        if link.target == OUTPUT_NODE:
            output_links.setdefault(link.target_slot, link)
    return EditorGraph(
        nodes=nodes,
        links=links,
        output_links=output_links,
        inputs=_parse_slots(graph, "inputs", field),
        outputs=_parse_slots(graph, "outputs", field),
        name=_get_text(graph, "name"),
    )


def _parse_node(node: Mapping[str, Any], field: str) -> EditorNode:
    node_type = node.get("type")
    if not isinstance(node_type, str) or not 0 < len(node_type) <= _MAX_NAME:
        raise InvalidRequest(
            f"{field}.type must be a string of 1 to {_MAX_NAME} characters", field=f"{field}.type"
        )
    values = node.get("widgets_values")
    properties = node.get("properties")
    mode = node.get("mode")
    return EditorNode(
        id=_parse_id(node, "id", field),
        type=_NEW_NAMES.get(node_type, node_type),
        title=_get_text(node, "title"),
        mode=mode if isinstance(mode, int) else 0,
        inputs=_parse_slots(node, "inputs", field),
        outputs=_parse_slots(node, "outputs", field),
        values=values if isinstance(values, list | Mapping) else (),
        properties=properties if isinstance(properties, Mapping) else {},
    )


def _parse_slots(container: Mapping[str, Any], member: str, field: str) -> Sequence[Slot]:
    slots = []
    for item_field, slot in _iterate_objects(container.get(member), f"{field}.{member}", MAX_SLOTS):
        slot_type = slot.get("type")
        slots.append(
            Slot(
                name=_get_text(slot, "name"),
                # Lists of choices were types in old versions; 0 and -1 are special types.
                type=slot_type[:_MAX_NAME] if isinstance(slot_type, str) else "COMBO",
                link=None if slot.get("link") is None else _parse_id(slot, "link", item_field),
                has_widget=isinstance(slot.get("widget"), Mapping),
            )
        )
    return slots


def _parse_links(links: Any, field: str) -> Iterator[tuple[str, Link]]:
    member_names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
    for item_field, link in _iterate_items(links, field, MAX_LINKS):
        if isinstance(link, list) and len(link) >= len(member_names):
            link = dict(zip(member_names, link, strict=False))
        if not isinstance(link, Mapping):
            raise InvalidRequest(
                f"{item_field} must be an object or the list [id, origin_id, origin_slot, target_id, "
                "target_slot, type]",
                field=item_field,
            )
        yield (
            _parse_id(link, "id", item_field),
            Link(
                origin=_parse_id(link, "origin_id", item_field),
                origin_slot=_parse_slot_number(link, "origin_slot", item_field),
                target=_parse_id(link, "target_id", item_field),
                target_slot=_parse_slot_number(link, "target_slot", item_field),
            ),
        )


def _iterate_objects(
    items: Any, field: str, max_count: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for item_field, item in _iterate_items(items, field, max_count):
        if not isinstance(item, Mapping):
            raise InvalidRequest(f"{item_field} must be an object", field=item_field)
        yield item_field, item


def _iterate_items(items: Any, field: str, max_count: int) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each item of an optional list, without nulls, as the editor does."""
    if items is None:
        return
    if not isinstance(items, list):
        raise InvalidRequest(f"{field} must be a list", field=field)
    if len(items) > max_count:
        raise _make_too_many_error(field.rpartition(".")[2], max_count, len(items), field)
    for number, item in enumerate(items):
        if item is not None:
            yield f"{field}.{number}", item


def _parse_id(container: Mapping[str, Any], name: str, field: str) -> str:
    value = container.get(name)
    is_id = isinstance(value, int | str) and not isinstance(value, bool)
    if not is_id or not 0 < len(id_text := str(value)[: _MAX_NAME + 1]) <= _MAX_NAME:
        raise InvalidRequest(
            f"{field}.{name} must be a whole number or a string of 1 to {_MAX_NAME} characters",
            field=f"{field}.{name}",
        )
    return id_text


def _parse_slot_number(container: Mapping[str, Any], name: str, field: str) -> int:
    value = container.get(name)
    if isinstance(value, str) and value.isdecimal() and len(value) <= 6:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 10**6:
        raise InvalidRequest(
            f"{field}.{name} must be the number of a slot, from -1 to 999999",
            field=f"{field}.{name}",
        )
    return value


def _get_text(container: Mapping[str, Any], name: str) -> str:
    value = container.get(name)
    return value[:_MAX_NAME] if isinstance(value, str) else ""


def _make_too_many_error(item_kind: str, max_count: int, count: int, field: str) -> GraphTooLarge:
    return GraphTooLarge(
        f"the graph has {count} {item_kind}; at most {max_count} are allowed",
        field=field,
        details={"bound": item_kind, "max": max_count, "actual": count},
    )
