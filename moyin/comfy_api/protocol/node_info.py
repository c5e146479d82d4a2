"""Merges what several ComfyUIs report into the report of one server; pure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from moyin.render.protocol.graph import INPUT_FOLDER

__all__ = [
    "FEATURES",
    "PoolInventory",
    "has_graph",
    "has_node_classes",
    "inventory_of",
    "permitted_nodes",
    "union_of_lists",
    "union_of_nodes",
    "union_of_objects",
    "with_uploads",
    "without_input_folder",
    "without_paths",
]

# By node class and input: the values that a graph may choose there.
PoolInventory = Mapping[str, Mapping[str, frozenset[str]]]

# Feature flags of the server; the route adds the upload limit.
FEATURES: Mapping[str, Any] = {"supports_preview_metadata": True}
# Input options for which the frontend shows an upload button.
_UPLOAD_OPTIONS = ("image_upload", "audio_upload", "video_upload", "file_upload")


def union_of_nodes(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge ``/object_info``: the first definition of a node counts, with the choices of all."""
    merged: dict[str, Any] = {}
    for report in reports:
        for name, node in report.items():
            if name in merged:
                _add_choices(merged[name], node)
            else:
                merged[name] = copy.deepcopy(node)
    return merged


def union_of_lists(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """Merge lists in order; an item that repeats (by its ``name``, if any) is dropped."""
    merged: list[Any] = []
    known: set[Any] = set()
    for items in lists:
        for item in items:
            key = item.get("name") if isinstance(item, Mapping) else item
            if key not in known:
                known.add(key)
                merged.append(item)
    return merged


def union_of_objects(objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge objects; the first value of a member counts."""
    merged: dict[str, Any] = {}
    for members in objects:
        for name, value in members.items():
            merged.setdefault(name, value)
    return merged


def with_uploads(nodes: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """Return the nodes with ``files``, sorted, as the only choices of upload inputs."""
    sorted_files = sorted(files)
    return {name: _with_uploads(node, sorted_files) for name, node in nodes.items()}


def permitted_nodes(nodes: Mapping[str, Any], permits: Callable[[str], bool]) -> Mapping[str, Any]:
    """Return the nodes whose class ``permits`` accepts."""
    return {name: node for name, node in nodes.items() if permits(name)}


def without_input_folder(nodes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the nodes without choices from the renderer's folder of all tenants' input files."""
    return {name: _without_input_folder(node) for name, node in nodes.items()}


def without_paths(folders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the model folders without their paths on the machines."""
    return [{"name": folder["name"], "folders": [folder["name"]]} for folder in folders]


def _without_input_folder(node: Mapping[str, Any]) -> Mapping[str, Any]:
    changed = None
    for kind, name, spec in _inputs(node):
        choices = _choices(spec)
        if choices is not None and any(map(_is_in_input_folder, choices)):
            changed = copy.deepcopy(dict(node)) if changed is None else changed
            others = [choice for choice in choices if not _is_in_input_folder(choice)]
            _set_choices(changed["input"][kind][name], others)
    return node if changed is None else changed


def _is_in_input_folder(choice: Any) -> bool:
    return isinstance(choice, str) and choice.partition("/")[0] == INPUT_FOLDER


def _with_uploads(node: Mapping[str, Any], files: Sequence[str]) -> Mapping[str, Any]:
    uploads = [(kind, name) for kind, name, spec in _inputs(node) if _is_upload(spec)]
    if not uploads:
        return node
    changed = copy.deepcopy(dict(node))
    for kind, name in uploads:
        _set_choices(changed["input"][kind][name], list(files))
    return changed


def _add_choices(node: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    other_specs = {(kind, name): spec for kind, name, spec in _inputs(other)}
    for kind, name, spec in _inputs(node):
        choices, more = _choices(spec), _choices(other_specs.get((kind, name)))
        if choices is not None and more:
            _set_choices(spec, union_of_lists((choices, more)))


def _inputs(node: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield the kind (such as ``required``), the name and ComfyUI's spec of every input."""
    for kind, inputs in (node.get("input") or {}).items():
        if isinstance(inputs, Mapping):
            for name, spec in inputs.items():
                if isinstance(spec, list) and spec:
                    yield kind, name, spec


def _choices(spec: list[Any] | None) -> list[Any] | None:
    """Return the choices in ``[[…], {…}]`` or ``["COMBO", {"options": […]}]``; None: free input."""
    if not spec:
        return None
    if isinstance(spec[0], list):
        return spec[0]
    if spec[0] == "COMBO" and len(spec) > 1 and isinstance(spec[1], Mapping):
        options = spec[1].get("options")
        return options if isinstance(options, list) else None
    return None


def _set_choices(spec: list[Any], choices: list[Any]) -> None:
    if isinstance(spec[0], list):
        spec[0] = choices
    else:
        spec[1] = {**spec[1], "options": choices}


def _is_upload(spec: list[Any]) -> bool:
    """Return whether the input takes uploaded files; ``remote`` choices come from elsewhere."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    return any(options.get(name) for name in _UPLOAD_OPTIONS) and "remote" not in options


def inventory_of(nodes: Mapping[str, Any]) -> PoolInventory:
    """Return what ``/object_info`` lists, except uploads, which every pool can load."""
    return {
        name: {
            key: frozenset(item for item in choices if isinstance(item, str))
            for _, key, spec in _inputs(node)
            if not _is_upload(spec) and (choices := _choices(spec)) is not None
        }
        for name, node in nodes.items()
    }


def has_graph(inventory: PoolInventory, graph: Mapping[str, Any]) -> bool:
    """Return whether the inventory has every node and file of the graph."""
    return all(_has_node(inventory, node) for node in graph.values() if isinstance(node, Mapping))


def has_node_classes(inventory: PoolInventory, graph: Mapping[str, Any]) -> bool:
    """Return whether the inventory has the class of every node, whatever files the nodes load."""
    return all(
        str(node.get("class_type")) in inventory
        for node in graph.values()
        if isinstance(node, Mapping)
    )


def _has_node(inventory: PoolInventory, node: Mapping[str, Any]) -> bool:
    choices = inventory.get(str(node.get("class_type")))
    if choices is None:
        return False
    inputs = node.get("inputs")
    if not isinstance(inputs, Mapping):
        return True
    # Only strings can be choices; other values are numbers or links to other nodes.
    return all(
        value in choices[name]
        for name, value in inputs.items()
        if name in choices and isinstance(value, str)
    )
