"""Input files in a graph: references to artifacts become names in ComfyUI's input folder.

A reference is the string ``artifact:<id>``, or what the Comfy API v2 puts in its place:
``{"__type": "core/ASSET", "info": {"id": "<id>", …}}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from moyin.domain.artifact import Artifact
from moyin.errors import InputNotFound
from moyin.render.protocol.refusals import NOT_YOURS, Refused, refused_body

__all__ = [
    "INPUT_FOLDER",
    "artifact_ids",
    "artifacts_missing",
    "file_names",
    "input_name",
    "is_input_name",
    "loaded_names",
    "with_inputs",
]

# A folder of its own: ComfyUI lists what lies in the input folder itself to everybody.
INPUT_FOLDER = "moyin"
_REFERENCE = re.compile(r"artifact:(art_[0-9a-f]{32})")
_ASSET = "core/ASSET"
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_FILE = re.compile(r"\.\w{1,8}( \[(input|output|temp)\])?$")
_NAME = re.compile(rf"{INPUT_FOLDER}/[0-9a-f]{{64}}(\.[a-z0-9]{{1,8}})?")


def artifact_ids(graph: Mapping[str, Any]) -> set[str]:
    """Ids of the artifacts that the inputs of the graph's nodes refer to."""
    return set(_references(_inputs(graph)))


def artifacts_missing(graph: Mapping[str, Any], missing: str) -> InputNotFound:
    """The error that says where the graph refers to an artifact that the caller does not have."""
    refused = [
        Refused(node_id, str(node.get("class_type")), name, NOT_YOURS)
        for node_id, node in graph.items()
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
        for name, value in node["inputs"].items()
        if missing in _references(value)
    ]
    if not refused:
        return InputNotFound(f"there is no artifact {missing!r}")
    first = refused[0]
    return InputNotFound(
        f"node {first.node!r} ({first.class_type}): {first.input}: {NOT_YOURS}",
        field=f"{first.node}.inputs.{first.input}",
        details=refused_body(refused),
    )


def file_names(graph: Mapping[str, Any]) -> set[str]:
    """Strings in the nodes' inputs that may be names of uploaded files."""
    return {text for text in _strings(_inputs(graph)) if _FILE.search(text) and len(text) < 512}


def with_inputs(
    graph: Mapping[str, Any], names: Mapping[str, str], texts: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A copy of the graph with other inputs.

    Args:
        names: what to put in the place of references, by artifact id.
        texts: what to put in the place of whole strings.
    """
    texts = texts or {}
    return {
        node_id: {**node, "inputs": _replace(node["inputs"], names, texts)}
        if isinstance(node, Mapping) and "inputs" in node
        else node
        for node_id, node in graph.items()
    }


def input_name(artifact: Artifact) -> str:
    """Under which name a graph loads the artifact.

    Equal content has an equal name, so that ComfyUI's cache knows it again; nothing of what the
    uploader called it gets into a path, but for the suffix, by which nodes tell formats apart.
    """
    suffix = PurePosixPath(artifact.name).suffix.lower()
    return f"{INPUT_FOLDER}/{artifact.sha256}{suffix if _SUFFIX.fullmatch(suffix) else ''}"


def loaded_names(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names of input files in the graph, as `input_name` makes them, each with its node's id."""
    for node_id, node in graph.items():
        if isinstance(node, Mapping) and "inputs" in node:
            for text in _strings(node["inputs"]):
                name = text.strip().removesuffix(" [input]")
                if _NAME.fullmatch(name):
                    yield node_id, name


def is_input_name(name: str) -> bool:
    """Whether `input_name` could have made it."""
    return _NAME.fullmatch(name) is not None


def _inputs(graph: Mapping[str, Any]) -> list[Any]:
    return [
        node["inputs"] for node in graph.values() if isinstance(node, Mapping) and "inputs" in node
    ]


def _replace(value: Any, names: Mapping[str, str], texts: Mapping[str, str]) -> Any:
    artifact_id = _reference(value)
    if artifact_id is not None:
        return names[artifact_id]
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, Mapping):
        return {key: _replace(item, names, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, names, texts) for item in value]
    return value


def _references(value: Any) -> Iterator[str]:
    artifact_id = _reference(value)
    if artifact_id is not None:
        yield artifact_id
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _references(item)


def _reference(value: Any) -> str | None:
    """The id that ``value`` refers to: one that no artifact has where the reference is malformed."""
    if isinstance(value, str):
        match = _REFERENCE.fullmatch(value)
        return match[1] if match else None
    if isinstance(value, Mapping) and value.get("__type") == _ASSET:
        info = value.get("info")
        return str(info.get("id", "")) if isinstance(info, Mapping) else ""
    return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
