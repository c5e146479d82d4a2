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
# Types whose value is something that the page itself makes, such as a picture of a camera.
_PAGE_TYPES = frozenset({"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ANIMATION"})
_SEEDS = frozenset({"seed", "noise_seed"})
_DEFAULTS: Mapping[str, Any] = {"INT": 0, "FLOAT": 0, "BOOLEAN": False, "STRING": ""}


@dataclass(frozen=True, kw_only=True, slots=True)
class Widget:
    """An input whose value is set in the editor.

    Attributes:
        places: how many values it has in the node's list of values.
        is_page_made: True if only the editor's page can make its value.
        is_dynamic: True if the editor chooses among the alternatives in its text, as in ``{a|b}``.
    """

    name: str
    type: str
    default: Any
    places: int = 1
    is_page_made: bool = False
    is_dynamic: bool = False


@dataclass(frozen=True, kw_only=True)
class NodeClass:
    """The inputs of a node class as the editor arranges them.

    Attributes:
        sockets: the names and types of the inputs, which are also the slots of the node.
        widgets: the inputs that have a widget, by name, in the order of their values.
        forced: the places at which old versions of the editor saved values of inputs without a
            widget.
    """

    title: str
    sockets: Sequence[tuple[str, str]]
    widgets: Mapping[str, Widget]
    outputs: Sequence[str]
    forced: frozenset[int]


def derive_class(name: str, info: Mapping[str, Any]) -> NodeClass:
    """Return a node class from its ``/object_info``."""
    sockets, widget_sockets = [], []
    widgets: dict[str, Widget] = {}
    forced = set()
    place = 0
    for input_name, spec in _iterate_inputs(info):
        options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
        slot_type = spec[0] if isinstance(spec[0], str) else "COMBO"
        kind = options.get("widgetType") or slot_type
        is_widget = kind in _VALUE_TYPES or kind in _PAGE_TYPES
        if options.get("forceInput"):
            if is_widget:
                forced.add(place)
                place += 1
            is_widget = False
        if not is_widget:
            sockets.append((input_name, slot_type))
            continue
        widget = _derive_widget(input_name, kind, spec, options)
        widgets[input_name] = widget
        place += widget.places
        widget_sockets.append((input_name, slot_type))
    outputs = info.get("output")
    return NodeClass(
        title=str(info.get("display_name") or name),
        sockets=[*sockets, *widget_sockets],
        widgets=widgets,
        outputs=[kind if isinstance(kind, str) else "COMBO" for kind in outputs or ()],
        forced=frozenset(forced),
    )


def read_values(node_class: NodeClass, node: EditorNode) -> dict[str, Any]:
    """Return the values of the node's widgets by name; values that were not saved are defaults."""
    values = {
        widget.name: widget.default
        for widget in node_class.widgets.values()
        if not widget.is_page_made
    }
    if isinstance(node.values, Mapping):
        saved = node.values
        return {name: saved.get(name, default) for name, default in values.items()}
    count = sum(widget.places for widget in node_class.widgets.values())
    forced = node_class.forced
    places: Sequence[Any] = node.values[: count + len(forced)]
    if forced and len(node.values) == count + len(forced):
        places = [value for at, value in enumerate(places) if at not in forced]
    at = 0
    for widget in node_class.widgets.values():
        if at < len(places) and not widget.is_page_made:
            values[widget.name] = places[at]
        at += widget.places
    return values


def _derive_widget(name: str, kind: str, spec: Sequence[Any], options: Mapping[str, Any]) -> Widget:
    default = options.get("default", _DEFAULTS.get(kind))
    places = 1
    if kind == "COMBO":
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        if default is None and isinstance(choices, list) and choices:
            default = choices[0]
        # The second and third values say how the editor changes the choice after each render.
        places = 3 if options.get("control_after_generate") else 1
    elif kind == "INT" and options.get("control_after_generate", name in _SEEDS):
        places = 2
    return Widget(
        name=name,
        type=kind,
        default=default,
        places=places,
        is_page_made=kind in _PAGE_TYPES,
        is_dynamic=options.get("dynamicPrompts") is True,
    )


def _iterate_inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the name and specification of the inputs, in the order of the editor's widgets."""
    inputs = info.get("input")
    order = info.get("input_order")
    seen = set()
    for kind in ("required", "optional"):
        specs = inputs.get(kind) if isinstance(inputs, Mapping) else None
        if not isinstance(specs, Mapping):
            continue
        names = order.get(kind) if isinstance(order, Mapping) else None
        for name in (*(names or ()), *specs):
            spec = specs.get(name)
            if name not in seen and isinstance(spec, list) and spec:
                seen.add(name)
                yield name, spec
