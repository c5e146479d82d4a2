"""Converts a graph in the editor's format to the API format, and reports the parts left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from pydantic_core import to_json

from moyin.errors import GraphTooLarge, InvalidRequest
from moyin.render.protocol.editor_graph.document import (
    BYPASSED,
    MUTED,
    EditorDocument,
    EditorNode,
    parse_document,
)
from moyin.render.protocol.editor_graph.links import (
    PRIMITIVE,
    REMOVED,
    REROUTE,
    VIRTUAL,
    Constant,
    Instance,
    LinkResolver,
    Origin,
    inline_subgraphs,
)
from moyin.render.protocol.editor_graph.texts import (
    MAX_DEPTH,
    choose_alternatives,
    replace_patterns,
)
from moyin.render.protocol.editor_graph.widgets import NodeClass, derive_class, read_values

# A subgraph's texts are repeated each time that it is used.
_MAX_CHARACTERS = 16 * 1024 * 1024
# The editor replaces patterns in the names of these nodes' files.
_SAVING_CLASSES = frozenset(
    {
        "SaveImage", "SaveVideo", "SaveAnimatedWEBP", "SaveWEBM", "SaveAudio", "SaveGLB",
        "SaveAnimatedPNG", "CLIPSave", "VAESave", "ModelSave", "LoraSave", "SaveLatent",
    }
)  # fmt: skip
_PREFIX = "filename_prefix"
_ALIAS = "Node name for S&R"


class Reason(StrEnum):
    """The reason why a part of the editor's graph is not in the API format."""

    MUTED = "muted"
    BYPASSED = "bypassed"
    NOTE = "note"
    REROUTE = "reroute"
    PRIMITIVE = "primitive"
    GROUP = "group"
    # The nodes of a subgraph replace the node that uses it.
    INLINED = "inlined"
    # Only the editor's page can make the input's value, such as a picture of a camera.
    PAGE_MADE = "page_made"


_VIRTUAL_REASONS = {PRIMITIVE: Reason.PRIMITIVE, REROUTE: Reason.REROUTE}


@dataclass(frozen=True, kw_only=True)
class LeftOutPart:
    """A node, a node's input, or a group that is left out; ``node`` is None for a group."""

    reason: Reason
    title: str
    node: str | None = None
    class_type: str | None = None
    input: str | None = None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A graph in the API format, with the parts of the editor's graph that were left out."""

    graph: Mapping[str, Any]
    left_out: Sequence[LeftOutPart]


def convert(
    graph: Mapping[str, Any],
    node_info: Mapping[str, Any],
    *,
    now: datetime,
    field: str = "graph",
    choose_alternative: Callable[[Sequence[str]], str] = random.choice,
) -> Conversion:
    """Convert a graph in the editor's format to the API format.

    Nodes of classes that are not in ``node_info`` keep only their links, not their values.

    Args:
        node_info: ComfyUI's ``/object_info``.
        now: the time for file names that contain the date.
        field: the path of the graph in the request, for errors.
        choose_alternative: selects an alternative in texts such as ``a {red|blue} sea``.

    Raises:
        InvalidRequest: the graph is malformed or circular; the error names the field.
        GraphTooLarge: the graph is too large; the error names the bound.
    """
    document = parse_document(graph, field)
    converter = _Converter(document, node_info, now, field, choose_alternative)
    return converter.convert()


class _Converter:
    def __init__(
        self,
        document: EditorDocument,
        node_info: Mapping[str, Any],
        now: datetime,
        field: str,
        choose_alternative: Callable[[Sequence[str]], str],
    ) -> None:
        self._document = document
        self._field = field
        self._now = now
        self._choose_alternative = choose_alternative
        graphs = (document.root, *document.subgraphs.values())
        types = {node.type for graph in graphs for node in graph.nodes.values()}
        self._classes: Mapping[str, NodeClass] = {
            name: derive_class(name, node_info[name]) for name in types if name in node_info
        }
        self._resolver = LinkResolver(document, self._classes, field)
        self._size = 0
        # Caches the values of nodes that patterns name, since a graph may name a node a million
        # times.
        self._named_values: dict[str, Mapping[str, Any]] = {}

    def convert(self) -> Conversion:
        inlined_nodes = list(inline_subgraphs(self._document, self._field))
        left_out_items: list[LeftOutPart] = []
        nodes: dict[str, Any] = {}
        for instance, node in inlined_nodes:
            self._count_characters(len(instance.prefix) + len(node.id))
            reason = self._find_reason(node)
            if reason is not None:
                left_out_items.append(self._make_left_out(instance, node, reason))
                continue
            left_out_items += self._list_page_made_inputs(instance, node)
            nodes[f"{instance.prefix}{node.id}"] = self._convert_node(instance, node)
        for node in nodes.values():
            # Remove links to nodes that are left out. ComfyUI then refuses a node that needs the
            # input, as it does if the editor queues the graph.
            node["inputs"] = {
                name: value
                for name, value in node["inputs"].items()
                if not isinstance(value, list) or value[0] in nodes
            }
        left_out_items += [
            LeftOutPart(reason=Reason.GROUP, title=title) for title in self._document.groups
        ]
        if not nodes:
            raise InvalidRequest(
                f"{self._field}.nodes must contain a node that is executed, not only notes and muted "
                "or bypassed nodes",
                field=f"{self._field}.nodes",
            )
        return Conversion(graph=nodes, left_out=left_out_items)

    def _find_reason(self, node: EditorNode) -> Reason | None:
        if node.type in VIRTUAL:
            return _VIRTUAL_REASONS.get(node.type, Reason.NOTE)
        if node.mode == MUTED:
            return Reason.MUTED
        if node.mode == BYPASSED:
            return Reason.BYPASSED
        return Reason.INLINED if node.type in self._document.subgraphs else None

    def _make_left_out(
        self, instance: Instance, node: EditorNode, reason: Reason, input: str | None = None
    ) -> LeftOutPart:
        return LeftOutPart(
            reason=reason,
            title=self._get_title(node),
            node=f"{instance.prefix}{node.id}",
            class_type=node.type,
            input=input,
        )

    def _list_page_made_inputs(self, instance: Instance, node: EditorNode) -> Iterator[LeftOutPart]:
        node_class = self._classes.get(node.type)
        for widget in node_class.widgets.values() if node_class is not None else ():
            if widget.is_page_made:
                yield self._make_left_out(instance, node, Reason.PAGE_MADE, widget.name)

    def _convert_node(self, instance: Instance, node: EditorNode) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        node_class = self._classes.get(node.type)
        if node_class is not None:
            for name, value in read_values(node_class, node).items():
                inputs[name] = self._replace_text(node_class, node, name, value)
        for slot_number, slot in enumerate(self._resolver.list_inputs(node)):
            source = self._resolver.resolve_input(instance, node, slot_number)
            if source is REMOVED:
                inputs.pop(slot.name, None)
            elif isinstance(source, Constant):
                inputs[slot.name] = source.value
            elif isinstance(source, Origin):
                inputs[slot.name] = source
        title = self._get_title(node)
        self._count_characters(len(title) + len(node.type))
        return {
            "class_type": node.type,
            "inputs": {name: self._encode_input(name, value) for name, value in inputs.items()},
            "_meta": {"title": title},
        }

    def _replace_text(self, node_class: NodeClass, node: EditorNode, name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if node_class.widgets[name].is_dynamic:
            # Each level of braces is read once more.
            self._count_characters(len(value) * (1 + min(value.count("{"), MAX_DEPTH)))
            return choose_alternatives(value, self._choose_alternative)
        if name == _PREFIX and node.type in _SAVING_CLASSES and "%" in value:
            return replace_patterns(value, self._now, self._find_widget_text)
        return value

    def _find_widget_text(self, node_name: str, widget_name: str) -> str | None:
        """Return a widget's value as text, or None if there is no such value.

        Args:
            node_name: the alias or the title of the widget's node.
        """
        if node_name not in self._named_values:
            node = self._named_nodes.get(node_name)
            node_class = None if node is None else self._classes.get(node.type)
            if node is None or node_class is None:
                return None
            self._named_values[node_name] = read_values(node_class, node)
        value = self._named_values[node_name].get(widget_name)
        if isinstance(value, str):
            return value
        # A list or an object has no text for the name of a file, and could be as long as the graph.
        return str(value) if isinstance(value, int | float) else None

    @cached_property
    def _named_nodes(self) -> Mapping[str, EditorNode]:
        graphs = (self._document.root, *self._document.subgraphs.values())
        nodes = [node for graph in graphs for node in graph.nodes.values()]
        nodes_by_name: dict[str, EditorNode] = {}
        for node in nodes:
            nodes_by_name.setdefault(str(node.properties.get(_ALIAS)), node)
        for node in nodes:
            nodes_by_name.setdefault(self._get_title(node), node)
        return nodes_by_name

    def _get_title(self, node: EditorNode) -> str:
        if node.title:
            return node.title
        node_class, subgraph = self._classes.get(node.type), self._document.subgraphs.get(node.type)
        name = subgraph.name if subgraph is not None else node_class.title if node_class else ""
        return name or node.type

    def _encode_input(self, name: str, value: Any) -> Any:
        """Encode an input's value for the API format, in which a plain list would be a link."""
        if isinstance(value, Origin):
            self._count_characters(len(name) + len(value.node))
            return list(value)
        self._count_characters(
            len(name) + (len(value) if isinstance(value, str) else len(to_json(value)))
        )
        return {"__value__": value} if isinstance(value, list) else value

    def _count_characters(self, character_count: int) -> None:
        self._size += character_count
        if self._size > _MAX_CHARACTERS:
            raise GraphTooLarge(
                f"the graph must have at most {_MAX_CHARACTERS} characters with its subgraphs inlined",
                field=self._field,
                details={"bound": "bytes", "max": _MAX_CHARACTERS},
            )
