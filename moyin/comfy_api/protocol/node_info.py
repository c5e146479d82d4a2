"""Merges and filters the ``/object_info`` and the lists that several ComfyUI servers return."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from moyin.render.protocol.graph import INPUT_FOLDER

# The values that a graph may choose for an input, by node class and input name.
PoolInventory = Mapping[str, Mapping[str, frozenset[str]]]

# The server's feature flags; the route adds the upload limit.
FEATURE_FLAGS: Mapping[str, Any] = {"supports_preview_metadata": True}
# Options of inputs for which the frontend shows an upload button.
_UPLOAD_OPTIONS = ("image_upload", "audio_upload", "video_upload", "file_upload")


def merge_nodes(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge several ``/object_info``: the first definition of a node gets the choices of all."""
    merged_nodes: dict[str, Any] = {}
    for report in reports:
        for name, node in report.items():
            if name in merged_nodes:
                _add_choices(merged_nodes[name], node)
            else:
                merged_nodes[name] = copy.deepcopy(node)
    return merged_nodes


def merge_lists(lists: Iterable[Sequence[Any]]) -> list[Any]:
    """Concatenate lists without duplicates; objects with the same ``name`` are duplicates."""
    merged_items: list[Any] = []
    seen_keys: set[Any] = set()
    for items in lists:
        for item in items:
            key = item.get("name") if isinstance(item, Mapping) else item
            if key not in seen_keys:
                seen_keys.add(key)
                merged_items.append(item)
    return merged_items


def merge_objects(objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the members of objects; keep the first value of a member that several objects have."""
    merged_members: dict[str, Any] = {}
    for members in objects:
        for name, value in members.items():
            merged_members.setdefault(name, value)
    return merged_members


def set_upload_choices(nodes: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """Return the nodes with the sorted ``files`` as the only choices of upload inputs."""
    sorted_files = sorted(files)
    return {name: _set_upload_choices(node, sorted_files) for name, node in nodes.items()}


def filter_nodes(nodes: Mapping[str, Any], permits: Callable[[str], bool]) -> Mapping[str, Any]:
    """Return the nodes for whose class name ``permits`` returns True."""
    return {name: node for name, node in nodes.items() if permits(name)}


def remove_input_folder_choices(nodes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the nodes without choices that name tenants' files in the renderer's input folder."""
    return {name: _remove_input_folder_choices(node) for name, node in nodes.items()}


def remove_folder_paths(folders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the model folders without their paths on the pools' machines."""
    return [{"name": folder["name"], "folders": [folder["name"]]} for folder in folders]


def _remove_input_folder_choices(node: Mapping[str, Any]) -> Mapping[str, Any]:
    changed_node = None
    for kind, name, spec in iterate_inputs(node):
        choices = get_choices(spec)
        if choices is not None and any(map(_is_in_input_folder, choices)):
            changed_node = copy.deepcopy(dict(node)) if changed_node is None else changed_node
            other_choices = [choice for choice in choices if not _is_in_input_folder(choice)]
            _set_choices(changed_node["input"][kind][name], other_choices)
    return node if changed_node is None else changed_node


def _is_in_input_folder(choice: Any) -> bool:
    return isinstance(choice, str) and choice.partition("/")[0] == INPUT_FOLDER


def _set_upload_choices(node: Mapping[str, Any], files: Sequence[str]) -> Mapping[str, Any]:
    upload_inputs = [
        (kind, name) for kind, name, spec in iterate_inputs(node) if is_upload_input(spec)
    ]
    if not upload_inputs:
        return node
    changed_node = copy.deepcopy(dict(node))
    for kind, name in upload_inputs:
        _set_choices(changed_node["input"][kind][name], list(files))
    return changed_node


def _add_choices(node: Mapping[str, Any], other_node: Mapping[str, Any]) -> None:
    other_specs = {(kind, name): spec for kind, name, spec in iterate_inputs(other_node)}
    for kind, name, spec in iterate_inputs(node):
        choices, other_choices = get_choices(spec), get_choices(other_specs.get((kind, name)))
        if choices is not None and other_choices:
            _set_choices(spec, merge_lists((choices, other_choices)))


def iterate_inputs(node: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield the kind (such as ``required``), the name and the specification of every input."""
    for kind, inputs in (node.get("input") or {}).items():
        if isinstance(inputs, Mapping):
            for name, spec in inputs.items():
                if isinstance(spec, list) and spec:
                    yield kind, name, spec


def get_choices(spec: list[Any] | None) -> list[Any] | None:
    """Return the choices in ``[[…], {…}]`` or ``["COMBO", {"options": […]}]``, or None."""
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


def is_upload_input(spec: list[Any]) -> bool:
    """Return True if the input offers uploaded files, and not choices from a ``remote`` server."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    return any(options.get(name) for name in _UPLOAD_OPTIONS) and "remote" not in options


def build_inventory(nodes: Mapping[str, Any]) -> PoolInventory:
    """Return the node classes in ``/object_info``, with all choices of their inputs but uploads."""
    return {
        name: {
            key: frozenset(item for item in choices if isinstance(item, str))
            for _, key, spec in iterate_inputs(node)
            if not is_upload_input(spec) and (choices := get_choices(spec)) is not None
        }
        for name, node in nodes.items()
    }


def supports_graph(inventory: PoolInventory, graph: Mapping[str, Any]) -> bool:
    """Return True if the inventory has every node and every file of the graph."""
    return all(
        _supports_node(inventory, node) for node in graph.values() if isinstance(node, Mapping)
    )


def supports_node_classes(inventory: PoolInventory, graph: Mapping[str, Any]) -> bool:
    """Return True if the inventory has every node class of the graph. Files are not checked."""
    return all(
        str(node.get("class_type")) in inventory
        for node in graph.values()
        if isinstance(node, Mapping)
    )


def _supports_node(inventory: PoolInventory, node: Mapping[str, Any]) -> bool:
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
