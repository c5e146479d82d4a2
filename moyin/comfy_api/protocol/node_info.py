"""What several ComfyUIs say of themselves, as one that can do what any of them can; pure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from moyin.render.protocol.graph import INPUT_FOLDER

__all__ = [
    "FEATURES",
    "choices",
    "inputs_of",
    "is_upload",
    "permitted_nodes",
    "union_of_lists",
    "union_of_nodes",
    "union_of_objects",
    "with_uploads",
    "without_input_folder",
    "without_paths",
]

# What a server tells of itself before anybody asked for more; the upload limit comes with it.
FEATURES: Mapping[str, Any] = {"supports_preview_metadata": True}
# Options of an input that the frontend puts an upload button beside.
_UPLOADS = ("image_upload", "audio_upload", "video_upload", "file_upload")


def union_of_nodes(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``/object_info`` of all: a node is the first one's, with the choices of every other."""
    merged: dict[str, Any] = {}
    for answer in answers:
        for name, node in answer.items():
            if name in merged:
                _add_choices(merged[name], node)
            else:
                merged[name] = copy.deepcopy(node)
    return merged


def union_of_lists(answers: Iterable[Sequence[Any]]) -> list[Any]:
    """Every item once, in the order in which they come."""
    merged: list[Any] = []
    known: set[Any] = set()
    for answer in answers:
        for item in answer:
            key = item.get("name") if isinstance(item, Mapping) else item
            if key not in known:
                known.add(key)
                merged.append(item)
    return merged


def union_of_objects(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Members of all; of those that several have, the first one's."""
    merged: dict[str, Any] = {}
    for answer in answers:
        for name, value in answer.items():
            merged.setdefault(name, value)
    return merged


def with_uploads(nodes: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """``nodes`` whose inputs with an upload button offer ``files`` and nobody else's, by name."""
    offered = sorted(files)
    return {name: _offering(node, offered) for name, node in nodes.items()}


def permitted_nodes(nodes: Mapping[str, Any], permits: Callable[[str], bool]) -> Mapping[str, Any]:
    """``nodes`` without those of which ``permits`` says no, by class."""
    return {name: node for name, node in nodes.items() if permits(name)}


def without_input_folder(nodes: Mapping[str, Any]) -> Mapping[str, Any]:
    """``nodes`` whose inputs don't offer the folder of everybody's input files."""
    return {name: _without_input_folder(node) for name, node in nodes.items()}


def without_paths(folders: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``/experiment/models`` without where the folders lie on the machines."""
    return [{"name": folder["name"], "folders": [folder["name"]]} for folder in folders]


def _without_input_folder(node: Mapping[str, Any]) -> Mapping[str, Any]:
    changed = None
    for kind, name, spec in inputs_of(node):
        offered = choices(spec)
        if offered is not None and any(map(_is_input_folder, offered)):
            changed = copy.deepcopy(dict(node)) if changed is None else changed
            kept = [choice for choice in offered if not _is_input_folder(choice)]
            _set_choices(changed["input"][kind][name], kept)
    return node if changed is None else changed


def _is_input_folder(choice: Any) -> bool:
    return isinstance(choice, str) and choice.partition("/")[0] == INPUT_FOLDER


def _offering(node: Mapping[str, Any], files: Sequence[str]) -> Mapping[str, Any]:
    touched = [(kind, name) for kind, name, options in inputs_of(node) if is_upload(options)]
    if not touched:
        return node
    changed = copy.deepcopy(dict(node))
    for kind, name in touched:
        _set_choices(changed["input"][kind][name], list(files))
    return changed


def _add_choices(node: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    theirs = {(kind, name): spec for kind, name, spec in inputs_of(other)}
    for kind, name, spec in inputs_of(node):
        mine, more = choices(spec), choices(theirs.get((kind, name)))
        if mine is not None and more:
            _set_choices(spec, union_of_lists((mine, more)))


def inputs_of(node: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """A node's inputs: ``required`` or such, name, and how ComfyUI describes it."""
    for kind, inputs in (node.get("input") or {}).items():
        if isinstance(inputs, Mapping):
            for name, spec in inputs.items():
                if isinstance(spec, list) and spec:
                    yield kind, name, spec


def choices(spec: list[Any] | None) -> list[Any] | None:
    """Of an input that is one of a list: ``[[…], {…}]``, or ``["COMBO", {"options": […]}]``."""
    if not spec:
        return None
    if isinstance(spec[0], list):
        return spec[0]
    if spec[0] == "COMBO" and len(spec) > 1 and isinstance(spec[1], Mapping):
        found = spec[1].get("options")
        return found if isinstance(found, list) else None
    return None


def _set_choices(spec: list[Any], choices: list[Any]) -> None:
    if isinstance(spec[0], list):
        spec[0] = choices
    else:
        spec[1] = {**spec[1], "options": choices}


def is_upload(spec: list[Any]) -> bool:
    """Whether it takes files of the input folder; those that are fetched when needed stay."""
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    return any(options.get(name) for name in _UPLOADS) and "remote" not in options
