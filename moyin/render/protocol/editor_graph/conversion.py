"""Converts a graph in the editor's format to the API format, and reports what is left out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any

from pydantic_core import to_json

from moyin.errors import InvalidRequest
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
    """The reason why something of the editor's graph is not in the API format."""

    MUTED = "muted"
    BYPASSED = "bypassed"
    NOTE = "note"
    REROUTE = "reroute"
    PRIMITIVE = "primitive"
    GROUP = "group"
    # The nodes of a subgraph stand in place of the node that uses it.
    INLINED = "inlined"
    # Only the editor's page can make the value of an input, such as a picture of a camera.
    PAGE_MADE = "page_made"


_VIRTUAL_REASONS = {PRIMITIVE: Reason.PRIMITIVE, REROUTE: Reason.REROUTE}


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A node, a node's input, or a group that is left out; a group has no node."""

    reason: Reason
    title: str
    node: str | None = None
    class_type: str | None = None
    input: str | None = None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A graph in the API format, and what was left out of it."""

    graph: Mapping[str, Any]
    left_out: Sequence[LeftOut]


def convert(
    graph: Mapping[str, Any],
    node_info: Mapping[str, Any],
    *,
    now: datetime,
    field: str = "graph",
    choose: Callable[[Sequence[str]], str] = random.choice,
) -> Conversion:
    """Convert a graph in the editor's format to the API format.

    Nodes of classes that are not in ``node_info`` keep their links only.

    Args:
        node_info: ComfyUI's ``/object_info``.
        now: the time for file names that contain the date.
        field: the path of the graph in the request, for errors.
        choose: chooses one of the alternatives in texts such as ``a {red|blue} sea``.

    Raises:
        InvalidRequest: the graph is malformed, too large or circular; the error names the field.
    """
    document = parse_document(graph, field)
    converter = _Converter(document, node_info, now, field, choose)
    return converter.convert()


class _Converter:
    def __init__(
        self,
        document: EditorDocument,
        node_info: Mapping[str, Any],
        now: datetime,
        field: str,
        choose: Callable[[Sequence[str]], str],
    ) -> None:
        self._document = document
        self._field = field
        self._now = now
        self._choose = choose
        graphs = (document.root, *document.subgraphs.values())
        types = {node.type for graph in graphs for node in graph.nodes.values()}
        self._classes: Mapping[str, NodeClass] = {
            name: derive_class(name, node_info[name]) for name in types if name in node_info
        }
        self._resolver = LinkResolver(document, self._classes, field)
        self._size = 0
        # Of the nodes that patterns name, since a graph can name one a million times.
        self._named_values: dict[str, Mapping[str, Any]] = {}

    def convert(self) -> Conversion:
        placed = list(inline_subgraphs(self._document, self._field))
        left_out: list[LeftOut] = []
        nodes: dict[str, Any] = {}
        for instance, node in placed:
            self._charge(len(instance.prefix) + len(node.id))
            reason = self._find_reason(node)
            if reason is not None:
                left_out.append(self._leave_out(instance, node, reason))
                continue
            left_out += self._list_page_made(instance, node)
            nodes[f"{instance.prefix}{node.id}"] = self._convert_node(instance, node)
        for node in nodes.values():
            # A node without the input is refused, as it is if the editor queues the graph.
            node["inputs"] = {
                name: value
                for name, value in node["inputs"].items()
                if not isinstance(value, list) or value[0] in nodes
            }
        left_out += [LeftOut(reason=Reason.GROUP, title=title) for title in self._document.groups]
        if not nodes:
            raise InvalidRequest(
                f"{self._field} has no node that is executed", field=f"{self._field}.nodes"
            )
        return Conversion(graph=nodes, left_out=left_out)

    def _find_reason(self, node: EditorNode) -> Reason | None:
        if node.type in VIRTUAL:
            return _VIRTUAL_REASONS.get(node.type, Reason.NOTE)
        if node.mode == MUTED:
            return Reason.MUTED
        if node.mode == BYPASSED:
            return Reason.BYPASSED
        return Reason.INLINED if node.type in self._document.subgraphs else None

    def _leave_out(
        self, instance: Instance, node: EditorNode, reason: Reason, input: str | None = None
    ) -> LeftOut:
        return LeftOut(
            reason=reason,
            title=self._get_title(node),
            node=f"{instance.prefix}{node.id}",
            class_type=node.type,
            input=input,
        )

    def _list_page_made(self, instance: Instance, node: EditorNode) -> Iterator[LeftOut]:
        node_class = self._classes.get(node.type)
        for widget in node_class.widgets.values() if node_class is not None else ():
            if widget.is_page_made:
                yield self._leave_out(instance, node, Reason.PAGE_MADE, widget.name)

    def _convert_node(self, instance: Instance, node: EditorNode) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        node_class = self._classes.get(node.type)
        if node_class is not None:
            for name, value in read_values(node_class, node).items():
                inputs[name] = self._replace_text(node_class, node, name, value)
        for number, slot in enumerate(self._resolver.list_inputs(node)):
            source = self._resolver.resolve(instance, node, number)
            if source is REMOVED:
                inputs.pop(slot.name, None)
            elif isinstance(source, Constant):
                inputs[slot.name] = source.value
            elif isinstance(source, Origin):
                inputs[slot.name] = source
        title = self._get_title(node)
        self._charge(len(title) + len(node.type))
        return {
            "class_type": node.type,
            "inputs": {name: self._encode(name, value) for name, value in inputs.items()},
            "_meta": {"title": title},
        }

    def _replace_text(self, node_class: NodeClass, node: EditorNode, name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if node_class.widgets[name].is_dynamic:
            # Each level of braces is read once more.
            self._charge(len(value) * (1 + min(value.count("{"), MAX_DEPTH)))
            return choose_alternatives(value, self._choose)
        if name == _PREFIX and node.type in _SAVING_CLASSES and "%" in value:
            return replace_patterns(value, self._now, self._find_widget_text)
        return value

    def _find_widget_text(self, name: str, widget: str) -> str | None:
        """Return the value of the widget of a node, which is named by its alias or its title."""
        if name not in self._named_values:
            node = self._named_nodes.get(name)
            node_class = None if node is None else self._classes.get(node.type)
            if node is None or node_class is None:
                return None
            self._named_values[name] = read_values(node_class, node)
        value = self._named_values[name].get(widget)
        if isinstance(value, str):
            return value
        # A list or an object has no text for the name of a file, and could be as long as the graph.
        return str(value) if isinstance(value, int | float) else None

    @cached_property
    def _named_nodes(self) -> Mapping[str, EditorNode]:
        graphs = (self._document.root, *self._document.subgraphs.values())
        nodes = [node for graph in graphs for node in graph.nodes.values()]
        named: dict[str, EditorNode] = {}
        for node in nodes:
            named.setdefault(str(node.properties.get(_ALIAS)), node)
        for node in nodes:
            named.setdefault(self._get_title(node), node)
        return named

    def _get_title(self, node: EditorNode) -> str:
        if node.title:
            return node.title
        node_class, subgraph = self._classes.get(node.type), self._document.subgraphs.get(node.type)
        name = subgraph.name if subgraph is not None else node_class.title if node_class else ""
        return name or node.type

    def _encode(self, name: str, value: Any) -> Any:
        """Return a value as the API format has it, in which a list would be a link."""
        if isinstance(value, Origin):
            self._charge(len(name) + len(value.node))
            return list(value)
        self._charge(len(name) + (len(value) if isinstance(value, str) else len(to_json(value))))
        return {"__value__": value} if isinstance(value, list) else value

    def _charge(self, characters: int) -> None:
        self._size += characters
        if self._size > _MAX_CHARACTERS:
            raise InvalidRequest(
                f"the graph has more than {_MAX_CHARACTERS} characters with its subgraphs inlined",
                field=self._field,
            )
