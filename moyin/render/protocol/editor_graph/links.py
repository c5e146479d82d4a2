"""Inlines the subgraphs of an editor's graph, and follows links to the nodes that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moyin.errors import GraphTooLarge, InvalidRequest
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
    """The value that an input gets from a primitive node or from the widget of a subgraph."""

    value: Any


# The input's link leads to a node that is not executed.
REMOVED = object()


@dataclass(eq=False)
class Instance:
    """A graph, or one use of a subgraph by a node of another graph.

    Attributes:
        prefix: precedes the ids of the nodes in the API format, as in ``12:7:3``.
        user: the node that uses the subgraph, after the instance of the graph that contains the
            node; None for the root graph.
    """

    graph: EditorGraph
    prefix: str = ""
    user: tuple[Instance, EditorNode] | None = None
    children: dict[str, Instance] = field(default_factory=dict)


class _Input(NamedTuple):
    """An input of a node, whose link must be followed next."""

    instance: Instance
    node: EditorNode
    slot: int


def inline_subgraphs(document: EditorDocument, field: str) -> Iterator[tuple[Instance, EditorNode]]:
    """Yield each node of the graph and of its subgraphs, once for each use of the subgraph.

    Subgraphs that muted and bypassed nodes use are left out, because they are not executed.

    Args:
        field: the path of the graph in the request, for errors.

    Raises:
        InvalidRequest: a subgraph contains itself.
        GraphTooLarge: the graph has too many nodes with its subgraphs inlined.
    """
    node_count = 0
    pending_instances: list[tuple[Instance, tuple[str, ...]]] = [(Instance(document.root), ())]
    while pending_instances:
        instance, enclosing_types = pending_instances.pop()
        for node in instance.graph.nodes.values():
            node_count += 1
            if node_count > MAX_NODES:
                raise GraphTooLarge(
                    f"the graph must have at most {MAX_NODES} nodes with its subgraphs inlined",
                    field=f"{field}.nodes",
                    details={"bound": "nodes", "max": MAX_NODES},
                )
            definition = document.subgraphs.get(node.type)
            if definition is not None and node.mode not in (MUTED, BYPASSED):
                prefix = f"{instance.prefix}{node.id}:"
                if (
                    node.type in enclosing_types
                    or len(enclosing_types) >= MAX_DEPTH
                    or len(prefix) > _MAX_PREFIX
                ):
                    problem = (
                        "must not contain itself"
                        if node.type in enclosing_types
                        else f"must be nested at most {MAX_DEPTH} levels deep, with short node ids"
                    )
                    raise InvalidRequest(
                        f"subgraph {node.type[:64]!r} {problem}",
                        field=f"{field}.definitions.subgraphs",
                    )
                child = Instance(definition, prefix, (instance, node))
                instance.children[node.id] = child
                pending_instances.append((child, (*enclosing_types, node.type)))
            yield instance, node


class LinkResolver:
    """Follows links through reroutes, bypassed nodes and the borders of subgraphs.

    Args:
        classes: the classes of the graph's nodes, by name, as far as the pool has them.
    """

    def __init__(
        self, document: EditorDocument, classes: Mapping[str, NodeClass], field: str
    ) -> None:
        self._subgraphs = document.subgraphs
        self._classes = classes
        self._path = field
        self._steps = 0
        self._slots: dict[int, Sequence[Slot]] = {}

    def list_inputs(self, node: EditorNode) -> Sequence[Slot]:
        """Return the input slots of a node, with their links.

        The slots of the node's class or subgraph come first, then those that only the node has.
        """
        input_slots = self._slots.get(id(node))
        if input_slots is None:
            input_slots = self._slots[id(node)] = list(self._merge_inputs(node))
            self._count_steps(len(input_slots))
        return input_slots

    def resolve_input(self, instance: Instance, node: EditorNode, slot: int) -> Any:
        """Return where an input gets its value from: an `Origin` or a `Constant`.

        Returns `REMOVED` if the link comes from a node that is not executed, and None if the input
        gets no value from any link.

        Raises:
            InvalidRequest: the links form a circle, or there are too many to follow.
        """
        wanted_type = self.list_inputs(node)[slot].type
        current_input = _Input(instance, node, slot)
        # A widget of a subgraph's node sets the input if nothing is linked to it further out.
        promoted_value: Constant | None = None
        visited_inputs = set()
        while True:
            key = (current_input.instance.prefix, current_input.node.id, current_input.slot)
            if key in visited_inputs:
                raise InvalidRequest(
                    f"the links of node {instance.prefix}{node.id} must not form a circle",
                    field=f"{self._path}.links",
                )
            visited_inputs.add(key)
            self._count_steps(1)
            if current_input.node.mode != BYPASSED:
                promoted_value = (
                    self._find_promoted_value(current_input.node, current_input.slot)
                    or promoted_value
                )
            inputs = self.list_inputs(current_input.node)
            link_id = (
                inputs[current_input.slot].link if 0 <= current_input.slot < len(inputs) else None
            )
            link = None if link_id is None else current_input.instance.graph.links.get(link_id)
            source = (
                None
                if link is None
                else self._follow_link(current_input.instance, link, wanted_type)
            )
            if not isinstance(source, _Input):
                return promoted_value if source is None else source
            current_input = source

    def _follow_link(self, instance: Instance, link: Link, wanted_type: str) -> Any:
        """Return the result of `resolve_input`, or the next input whose link must be followed."""
        while link.origin != INPUT_NODE or instance.user is None:
            child = instance.children.get(link.origin)
            if child is None:
                origin = instance.graph.nodes.get(link.origin)
                return origin and self._find_source(instance, origin, link.origin_slot, wanted_type)
            self._count_steps(1)
            inner_link = child.graph.output_links.get(link.origin_slot)
            if inner_link is None:
                return None
            instance, link = child, inner_link
        return _Input(*instance.user, link.origin_slot)

    def _find_source(
        self, instance: Instance, origin: EditorNode, slot: int, wanted_type: str
    ) -> Any:
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
            passed_slot = self._find_passed_input(origin, slot, wanted_type)
            return None if passed_slot is None else _Input(instance, origin, passed_slot)
        return Origin(f"{instance.prefix}{origin.id}", slot)

    def _merge_inputs(self, node: EditorNode) -> Iterator[Slot]:
        saved_slots = {slot.name: slot for slot in node.inputs}
        subgraph, node_class = self._subgraphs.get(node.type), self._classes.get(node.type)
        if subgraph is not None:
            defined_slots = [(slot.name, slot.type, slot.has_widget) for slot in subgraph.inputs]
        elif node_class is not None:
            defined_slots = [
                (name, kind, name in node_class.widgets) for name, kind in node_class.sockets
            ]
        else:
            yield from node.inputs
            return
        for name, kind, has_widget in defined_slots:
            link = saved_slots[name].link if name in saved_slots else None
            yield Slot(name=name, type=kind, link=link, has_widget=has_widget)
        names = {name for name, _, _ in defined_slots}
        for slot in node.inputs:
            # The editor drops the slot of a widget that the class no longer has.
            if slot.name not in names and not (slot.has_widget and node_class is not None):
                yield slot

    def _find_promoted_value(self, node: EditorNode, slot: int) -> Constant | None:
        """Return the value that a node sets for an input of its subgraph.

        The editor shows a widget of an inner node as an input of the subgraph, and saves its value
        with the outer node. Returns None if ``node`` uses no subgraph or sets no value.
        """
        subgraph = self._subgraphs.get(node.type)
        if subgraph is None or not 0 <= slot < len(subgraph.inputs):
            return None
        name = subgraph.inputs[slot].name
        values = node.values
        if isinstance(values, Mapping):
            return Constant(values[name]) if name in values else None
        self._count_steps(len(node.inputs))
        for names in (
            self._list_shown_inputs(node),
            [slot.name for slot in node.inputs if slot.has_widget],
        ):
            index = names.index(name) if name in names else len(values)
            if index < len(values) and values[index] is not None:
                return Constant(values[index])
        return None

    def _list_shown_inputs(self, node: EditorNode) -> Sequence[str | None]:
        """Return the name of the subgraph's input for each saved value of the node.

        The name is None for a value that belongs to no input. The result is empty if an older
        version of the editor, which did not save these names, has saved the graph.
        """
        proxy_widgets = node.properties.get("proxyWidgets")
        if not isinstance(proxy_widgets, list):
            return ()
        self._count_steps(len(proxy_widgets))
        return [
            item[1]
            if isinstance(item, list)
            and len(item) == 2
            and item[0] == "-1"
            and isinstance(item[1], str)
            else None
            for item in proxy_widgets
        ]

    def _find_passed_input(self, node: EditorNode, slot: int, wanted_type: str) -> int | None:
        """Return the number of the input that a bypassed node passes on as its output ``slot``.

        Returns None if no input has a fitting type.
        """
        inputs = self.list_inputs(node)
        self._count_steps(len(inputs) + len(node.outputs))
        node_class = self._classes.get(node.type)
        outputs = [output.type for output in node.outputs]
        if node_class is not None:
            outputs[: len(node_class.outputs)] = node_class.outputs
        if not 0 <= slot < len(outputs):
            return None
        character_count = len(wanted_type) + len(outputs[slot])
        self._count_steps(
            sum(character_count + len(item.type) for item in inputs) // _STEP_CHARACTERS
        )
        if wanted_type in ("*", ""):
            return slot if len(inputs) > slot else (0 if inputs else None)

        def is_fitting(index: int) -> bool:
            kind = inputs[index].type
            return is_connectable(kind, outputs[slot]) and is_connectable(kind, wanted_type)

        if slot < len(inputs) and is_fitting(slot):
            return slot
        for index, item in enumerate(inputs):
            if item.type == wanted_type:
                return index
        return next(filter(is_fitting, range(len(inputs))), None)

    def _count_steps(self, step_count: int) -> None:
        self._steps += step_count
        if self._steps > _MAX_STEPS:
            raise InvalidRequest(
                "the links of the graph are too complicated: too many reroutes, bypassed nodes or"
                " nested subgraphs follow each other; remove some of them",
                field=f"{self._path}.links",
            )


def is_connectable(first_type: str, second_type: str) -> bool:
    """Return True if the editor connects slots of these types; each may be a comma-separated list."""
    if first_type in ("", "*") or second_type in ("", "*") or first_type == second_type:
        return True
    return not set(first_type.lower().split(",")).isdisjoint(second_type.lower().split(","))
