"""Inlines the subgraphs of an editor's graph, and follows links to the nodes that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moyin.errors import InvalidRequest
from moyin.render.protocol.editor_graph.document import (
    BYPASSED,
    INPUT_NODE,
    MAX_NODES,
    MUTED,
    EditorDocument,
    EditorGraph,
    EditorNode,
    Link,
    Slot,
)
from moyin.render.protocol.editor_graph.widgets import NodeClass

PRIMITIVE, REROUTE = "PrimitiveNode", "Reroute"
# Nodes that exist only in the editor.
VIRTUAL = frozenset({"Note", "MarkdownNote", PRIMITIVE, REROUTE})
MAX_DEPTH = 50
# The ids of all nodes within a use of a subgraph begin with its prefix.
_MAX_PREFIX = 1_000
# One step follows one link, or looks at one slot of a node or one value of a subgraph's node.
_MAX_STEPS = 500_000
# Types are compared for each slot, and may be long lists of types.
_STEP_CHARACTERS = 32


class Origin(NamedTuple):
    """The output of a node from which an input gets its value."""

    node: str
    slot: int


class Constant(NamedTuple):
    """The value that an input gets from a primitive or from the widget of a subgraph."""

    value: Any


# The input's link leads to a node that is not executed.
REMOVED = object()


@dataclass(eq=False)
class Instance:
    """A graph, or one use of a subgraph by a node of another graph.

    Attributes:
        prefix: precedes the ids of the nodes in the API format, as in ``12:7:3``.
        user: the node that uses the subgraph, and its graph.
    """

    graph: EditorGraph
    prefix: str = ""
    user: tuple[Instance, EditorNode] | None = None
    children: dict[str, Instance] = field(default_factory=dict)


class _Input(NamedTuple):
    """An input of a node, whose link is to be followed."""

    instance: Instance
    node: EditorNode
    slot: int


def inline_subgraphs(document: EditorDocument, path: str) -> Iterator[tuple[Instance, EditorNode]]:
    """Yield every node of the graph and of all uses of its subgraphs that are executed.

    Args:
        path: the path of the graph in the request, for errors.

    Raises:
        InvalidRequest: a subgraph contains itself, or the subgraphs have too many nodes.
    """
    count = 0
    waiting: list[tuple[Instance, tuple[str, ...]]] = [(Instance(document.root), ())]
    while waiting:
        instance, used = waiting.pop()
        for node in instance.graph.nodes.values():
            count += 1
            if count > MAX_NODES:
                raise InvalidRequest(
                    f"the graph has more than {MAX_NODES} nodes with its subgraphs inlined",
                    field=f"{path}.nodes",
                )
            definition = document.subgraphs.get(node.type)
            if definition is not None and node.mode not in (MUTED, BYPASSED):
                prefix = f"{instance.prefix}{node.id}:"
                if node.type in used or len(used) >= MAX_DEPTH or len(prefix) > _MAX_PREFIX:
                    problem = "contains itself" if node.type in used else "is nested too deeply"
                    raise InvalidRequest(
                        f"subgraph {node.type[:64]!r} {problem}",
                        field=f"{path}.definitions.subgraphs",
                    )
                child = Instance(definition, prefix, (instance, node))
                instance.children[node.id] = child
                waiting.append((child, (*used, node.type)))
            yield instance, node


class LinkResolver:
    """Follows links through reroutes, bypassed nodes and the borders of subgraphs.

    Args:
        classes: the node classes of the graph that a pool has.
    """

    def __init__(
        self, document: EditorDocument, classes: Mapping[str, NodeClass], path: str
    ) -> None:
        self._subgraphs = document.subgraphs
        self._classes = classes
        self._path = path
        self._steps = 0
        self._slots: dict[int, Sequence[Slot]] = {}

    def list_inputs(self, node: EditorNode) -> Sequence[Slot]:
        """Return the slots of a node's class or subgraph, with the links of the node's own slots.

        Behind them are the slots that only the node has.
        """
        known = self._slots.get(id(node))
        if known is None:
            known = self._slots[id(node)] = list(self._merge_inputs(node))
            self._count(len(known))
        return known

    def resolve(self, instance: Instance, node: EditorNode, slot: int) -> Any:
        """Return an `Origin`, a `Constant`, `REMOVED`, or None if nothing is linked to the input.

        Raises:
            InvalidRequest: the links form a circle, or there are too many to follow.
        """
        wanted = self.list_inputs(node)[slot].type
        place = _Input(instance, node, slot)
        # A widget of a subgraph's node sets the input if nothing is linked to it further out.
        promoted: Constant | None = None
        visited = set()
        while True:
            key = (place.instance.prefix, place.node.id, place.slot)
            if key in visited:
                raise InvalidRequest(
                    f"the links of node {instance.prefix}{node.id} form a circle",
                    field=f"{self._path}.links",
                )
            visited.add(key)
            self._count(1)
            if place.node.mode != BYPASSED:
                promoted = self._find_promoted(place.node, place.slot) or promoted
            inputs = self.list_inputs(place.node)
            link_id = inputs[place.slot].link if 0 <= place.slot < len(inputs) else None
            link = None if link_id is None else place.instance.graph.links.get(link_id)
            source = None if link is None else self._follow(place.instance, link, wanted)
            if not isinstance(source, _Input):
                return promoted if source is None else source
            place = source

    def _follow(self, instance: Instance, link: Link, wanted: str) -> Any:
        """Return what `resolve` returns, or the next input whose link leads on to the source."""
        while link.origin != INPUT_NODE or instance.user is None:
            child = instance.children.get(link.origin)
            if child is None:
                origin = instance.graph.nodes.get(link.origin)
                return origin and self._find_source(instance, origin, link.origin_slot, wanted)
            self._count(1)
            inner_link = child.graph.output_links.get(link.origin_slot)
            if inner_link is None:
                return None
            instance, link = child, inner_link
        return _Input(*instance.user, link.origin_slot)

    def _find_source(self, instance: Instance, origin: EditorNode, slot: int, wanted: str) -> Any:
        if origin.type == PRIMITIVE:
            values = origin.values
            return Constant(values[0]) if isinstance(values, list) and values else None
        if origin.type == REROUTE:
            return _Input(instance, origin, slot)
        if origin.type in VIRTUAL:
            return None
        if origin.mode == MUTED:
            return REMOVED
        if origin.mode == BYPASSED:
            passed = self._find_passed_input(origin, slot, wanted)
            return None if passed is None else _Input(instance, origin, passed)
        return Origin(f"{instance.prefix}{origin.id}", slot)

    def _merge_inputs(self, node: EditorNode) -> Iterator[Slot]:
        saved = {slot.name: slot for slot in node.inputs}
        subgraph, node_class = self._subgraphs.get(node.type), self._classes.get(node.type)
        if subgraph is not None:
            defined = [(slot.name, slot.type, slot.has_widget) for slot in subgraph.inputs]
        elif node_class is not None:
            defined = [
                (name, kind, name in node_class.widgets) for name, kind in node_class.sockets
            ]
        else:
            yield from node.inputs
            return
        for name, kind, has_widget in defined:
            link = saved[name].link if name in saved else None
            yield Slot(name=name, type=kind, link=link, has_widget=has_widget)
        names = {name for name, _, _ in defined}
        for slot in node.inputs:
            # The editor drops the slot of a widget that the class no longer has.
            if slot.name not in names and not (slot.has_widget and node_class is not None):
                yield slot

    def _find_promoted(self, node: EditorNode, slot: int) -> Constant | None:
        """Return the value that a node gives to a subgraph's input, which shows an inner widget."""
        subgraph = self._subgraphs.get(node.type)
        if subgraph is None or not 0 <= slot < len(subgraph.inputs):
            return None
        name = subgraph.inputs[slot].name
        values = node.values
        if isinstance(values, Mapping):
            return Constant(values[name]) if name in values else None
        self._count(len(node.inputs))
        for names in (
            self._list_shown(node),
            [slot.name for slot in node.inputs if slot.has_widget],
        ):
            at = names.index(name) if name in names else len(values)
            if at < len(values) and values[at] is not None:
                return Constant(values[at])
        return None

    def _list_shown(self, node: EditorNode) -> Sequence[str | None]:
        """Return the subgraph's input of each value of the node; None for other inner widgets.

        Older versions of the editor saved no such list, or one that has only other inner widgets.
        """
        shown = node.properties.get("proxyWidgets")
        if not isinstance(shown, list):
            return ()
        self._count(len(shown))
        return [
            item[1]
            if isinstance(item, list)
            and len(item) == 2
            and item[0] == "-1"
            and isinstance(item[1], str)
            else None
            for item in shown
        ]

    def _find_passed_input(self, node: EditorNode, slot: int, wanted: str) -> int | None:
        """Return the input that a bypassed node passes on as its output, or None."""
        inputs = self.list_inputs(node)
        self._count(len(inputs) + len(node.outputs))
        node_class = self._classes.get(node.type)
        outputs = [output.type for output in node.outputs]
        if node_class is not None:
            outputs[: len(node_class.outputs)] = node_class.outputs
        if not 0 <= slot < len(outputs):
            return None
        types = len(wanted) + len(outputs[slot])
        self._count(sum(types + len(item.type) for item in inputs) // _STEP_CHARACTERS)
        if wanted in ("*", ""):
            return slot if len(inputs) > slot else (0 if inputs else None)

        def fits(at: int) -> bool:
            kind = inputs[at].type
            return is_connectable(kind, outputs[slot]) and is_connectable(kind, wanted)

        if slot < len(inputs) and fits(slot):
            return slot
        for at, item in enumerate(inputs):
            if item.type == wanted:
                return at
        return next(filter(fits, range(len(inputs))), None)

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_STEPS:
            raise InvalidRequest(
                "the links of the graph are too complicated: too many reroutes, bypassed nodes"
                " or nested subgraphs follow each other",
                field=f"{self._path}.links",
            )


def is_connectable(first: str, second: str) -> bool:
    """Return True if the editor connects slots of these types; each may be a comma-separated list."""
    if first in ("", "*") or second in ("", "*") or first == second:
        return True
    return not set(first.lower().split(",")).isdisjoint(second.lower().split(","))
