"""Derives the inputs and widgets of a node class from ``/object_info``, and reads their values.

The editor saves the values of a node's widgets as a list, in the order in which it makes the
widgets. Some widgets, such as buttons, have a place in this list but no input in the API format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moyin.render.protocol.editor_graph.document import EditorNode

# Types of inputs for which the editor shows a widget that has a value.
_VALUE_TYPES = frozenset(
    {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "MARKDOWN", "TEXTAREA", "COLOR"}
)
# Types whose values only the editor's page can make, such as a picture of a camera.
_PAGE_TYPES = frozenset({"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION"})
_SEEDS = frozenset({"seed", "noise_seed"})
_DEFAULTS: Mapping[str, Any] = {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class Widget:
    """An input whose value is set in the editor.

    Attributes:
        value_count: number of values of the widget in the node's list of values.
        is_page_made: True if only the editor's page can create the value, such as a recording.
        is_dynamic: True if the editor chooses among the alternatives in its text, as in ``{a|b}``.
    """

    name: str
    type: str
    default: Any
    value_count: int = 1
    is_page_made: bool = False
    is_dynamic: bool = False


@dataclass(frozen=True, kw_only=True)
class NodeClass:
    """The inputs of a node class as the editor arranges them.

    Attributes:
        sockets: the name and type of each input, in the order of the node's slots.
        widgets: the inputs that have a widget, by name, in the order of their values.
        forced_indexes: indexes in a node's list of values that only old versions of the editor
            use, for inputs that have no widget because the class sets ``forceInput``.
    """

    title: str
    sockets: Sequence[tuple[str, str]]
    widgets: Mapping[str, Widget]
    outputs: Sequence[str]
    forced_indexes: frozenset[int]


def derive_class(name: str, info: Mapping[str, Any]) -> NodeClass:
    """Derive a node class from its entry in ComfyUI's ``/object_info``."""
    sockets, widget_sockets = [], []
    widgets: dict[str, Widget] = {}
    forced_indexes = set()
    value_index = 0
    for input_name, spec in _iterate_inputs(info):
        options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
        slot_type = spec[0] if isinstance(spec[0], str) else "COMBO"
        kind = options.get("widgetType") or slot_type
        is_widget = kind in _VALUE_TYPES or kind in _PAGE_TYPES
        if options.get("forceInput"):
            if is_widget:
                forced_indexes.add(value_index)
                value_index += 1
            is_widget = False
        if not is_widget:
            sockets.append((input_name, slot_type))
            continue
        widget = _derive_widget(input_name, kind, spec, options)
        widgets[input_name] = widget
        value_index += widget.value_count
        widget_sockets.append((input_name, slot_type))
    outputs = info.get("output")
    return NodeClass(
        title=str(info.get("display_name") or name),
        sockets=[*sockets, *widget_sockets],
        widgets=widgets,
        outputs=[kind if isinstance(kind, str) else "COMBO" for kind in outputs or ()],
        forced_indexes=frozenset(forced_indexes),
    )


def read_values(node_class: NodeClass, node: EditorNode) -> dict[str, Any]:
    """Return the values of the node's widgets by name; values that were not saved are defaults."""
    values = {
        widget.name: widget.default
        for widget in node_class.widgets.values()
        if not widget.is_page_made
    }
    if isinstance(node.values, Mapping):
        values_by_name = node.values
        return {name: values_by_name.get(name, default) for name, default in values.items()}
    value_count = sum(widget.value_count for widget in node_class.widgets.values())
    forced_indexes = node_class.forced_indexes
    saved_values: Sequence[Any] = node.values[: value_count + len(forced_indexes)]
    if forced_indexes and len(node.values) == value_count + len(forced_indexes):
        saved_values = [
            value for index, value in enumerate(saved_values) if index not in forced_indexes
        ]
    value_index = 0
    for widget in node_class.widgets.values():
        if value_index < len(saved_values) and not widget.is_page_made:
            values[widget.name] = saved_values[value_index]
        value_index += widget.value_count
    return values


def _derive_widget(name: str, kind: str, spec: Sequence[Any], options: Mapping[str, Any]) -> Widget:
    default = options.get("default", _DEFAULTS.get(kind))
    value_count = 1
    if kind == "COMBO":
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        if default is None and isinstance(choices, list) and choices:
            default = choices[0]
        # The second and third values determine how the editor changes the choice after each render.
        value_count = 3 if options.get("control_after_generate") else 1
    elif kind == "INT" and options.get("control_after_generate", name in _SEEDS):
        value_count = 2
    return Widget(
        name=name,
        type=kind,
        default=default,
        value_count=value_count,
        is_page_made=kind in _PAGE_TYPES,
        is_dynamic=options.get("dynamicPrompts") is True,
    )


def _iterate_inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the name and specification of the inputs, in the order of the editor's widgets."""
    inputs = info.get("input")
    input_order = info.get("input_order")
    seen_names = set()
    for kind in ("required", "optional"):
        specs = inputs.get(kind) if isinstance(inputs, Mapping) else None
        if not isinstance(specs, Mapping):
            continue
        names = input_order.get(kind) if isinstance(input_order, Mapping) else None
        for name in (*(names or ()), *specs):
            spec = specs.get(name)
            if name not in seen_names and isinstance(spec, list) and spec:
                seen_names.add(name)
                yield name, spec
