"""Finds the files that a graph names, replaces references to artifacts, and reports refused nodes.

A reference is the string ``artifact:<id>`` or, in the Comfy API v2, the object
``{"__type": "core/ASSET", "info": {"id": "<id>", …}}``. Moyin replaces a reference by the name of a
file in ComfyUI's input folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from moyin.domain.artifact import Artifact
from moyin.errors import InputNotFound

# A subfolder, because ComfyUI lists the files directly in its input folder to every client.
INPUT_FOLDER = "moyin"
# The same message for a missing file and for another tenant's file, so that names do not leak.
NOT_YOUR_FILE = "you have no file with this name; upload it first"
_REFERENCE = re.compile(r"artifact:(art_[0-9a-f]{32})")
_ASSET = "core/ASSET"
_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_FILE = re.compile(r"\.\w{1,8}( \[(input|output|temp)\])?$")
_INPUT_NAME = re.compile(rf"{INPUT_FOLDER}/[0-9a-f]{{64}}(\.[a-z0-9]{{1,8}})?")
# The folder of the model file that an input names, by the name of the input.
_MODEL_FOLDERS = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "vae_name": "vae",
    "lora_name": "loras",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "model_name": "upscale_models",
}
# Exceptions to `_MODEL_FOLDERS`, by node class and name of the input.
_CLASS_FOLDERS = {("CLIPVisionLoader", "clip_name"): "clip_vision"}
# The number in ``clip_name1`` and ``lora_name_2``.
_NUMBER = re.compile(r"_?\d+$")


class RefusedInput(NamedTuple):
    """A node input that Moyin refuses; ``input`` is empty if the whole node is refused."""

    node: str
    class_type: str
    input: str
    reason: str


def find_artifact_ids(graph: Mapping[str, Any]) -> set[str]:
    """Return the ids of the artifacts to which the inputs of the graph's nodes refer."""
    return set(_find_references(_list_inputs(graph)))


def make_missing_error(graph: Mapping[str, Any], missing_id: str) -> InputNotFound:
    """Return an error that lists the inputs that refer to the artifact with the id ``missing_id``."""
    refused_inputs = [
        RefusedInput(node_id, str(node.get("class_type")), name, NOT_YOUR_FILE)
        for node_id, node in graph.items()
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
        for name, value in node["inputs"].items()
        if missing_id in _find_references(value)
    ]
    if not refused_inputs:
        return InputNotFound(
            f"the graph refers to artifact {missing_id!r}, which does not exist: upload the file and "
            "use its id"
        )
    first_input = refused_inputs[0]
    return InputNotFound(
        f"node {first_input.node!r} ({first_input.class_type}), input {first_input.input!r}: {NOT_YOUR_FILE}",
        field=f"{first_input.node}.inputs.{first_input.input}",
        details=make_refusal_body(refused_inputs),
    )


def make_refusal_body(refused_inputs: Iterable[RefusedInput]) -> dict[str, Any]:
    """Return the response body of ComfyUI's ``POST /prompt`` that reports the refused inputs."""
    node_errors: dict[str, Any] = {}
    for refusal in refused_inputs:
        input_and_reason = (
            f"{refusal.input} - {refusal.reason}" if refusal.input else refusal.reason
        )
        error = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": input_and_reason,
            "extra_info": {"input_name": refusal.input} if refusal.input else {},
        }
        node_error = {"errors": [], "dependent_outputs": [], "class_type": refusal.class_type}
        node_errors.setdefault(refusal.node, node_error)["errors"].append(error)
    details = "\n".join(
        f"{error['message']}: {error['details']}"
        for node in node_errors.values()
        for error in node["errors"]
    )
    error = {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": details,
        "extra_info": {},
    }
    return {"error": error, "node_errors": node_errors}


def find_file_names(graph: Mapping[str, Any]) -> set[str]:
    """Return the strings in the graph's inputs that look like names of uploaded files."""
    return find_file_texts(_list_inputs(graph))


def find_file_texts(value: Any) -> set[str]:
    """Return the strings in ``value``, at any depth, that look like names of uploaded files."""
    return {text for text in _find_strings(value) if len(text) < 512 and _FILE.search(text)}


def replace_texts(value: Any, replacements: Mapping[str, str]) -> Any:
    """Return a copy of ``value`` in which each string that is a key of the mapping is replaced."""
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, Mapping):
        return {key: replace_texts(item, replacements) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_texts(item, replacements) for item in value]
    return value


def replace_inputs(
    graph: Mapping[str, Any],
    file_names: Mapping[str, str],
    replacements: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a copy of the graph with artifact references and strings in its inputs replaced.

    The mapping ``file_names`` has the replacements of references, by artifact id. The mapping
    ``replacements`` has the replacements of strings.
    """
    replacements = replacements or {}
    return {
        node_id: {**node, "inputs": _replace_values(node["inputs"], file_names, replacements)}
        if isinstance(node, Mapping) and "inputs" in node
        else node
        for node_id, node in graph.items()
    }


def make_input_name(artifact: Artifact) -> str:
    """Return the name of the input file under which a graph loads the artifact.

    The name depends on the content, so that ComfyUI's cache works across uploads of the same file.
    It has the suffix of the uploaded file, because nodes recognise formats by suffix.
    """
    suffix = PurePosixPath(artifact.name).suffix.lower()
    return f"{INPUT_FOLDER}/{artifact.sha256}{suffix if _SUFFIX.fullmatch(suffix) else ''}"


def find_input_names(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the node id and the file name of each graph input that names one of Moyin's files."""
    for node_id, node in graph.items():
        if isinstance(node, Mapping) and "inputs" in node:
            for text in _find_strings(node["inputs"]):
                name = text.strip().removesuffix(" [input]")
                if _INPUT_NAME.fullmatch(name):
                    yield node_id, name


def is_input_name(name: str) -> bool:
    """Return whether the name has the form of the names that `make_input_name` returns."""
    return _INPUT_NAME.fullmatch(name) is not None


def find_model_files(graph: Mapping[str, Any]) -> frozenset[str]:
    """Return ``<folder>/<file name>`` for each model file that the graph loads."""
    model_files = set()
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if not isinstance(inputs, Mapping):
            continue
        for name, value in inputs.items():
            # A value of another type is a link to another node.
            folder = _find_model_folder(str(node.get("class_type")), name)
            if folder is not None and isinstance(value, str) and value:
                model_files.add(f"{folder}/{value}")
    return frozenset(model_files)


def _find_model_folder(class_type: str, name: str) -> str | None:
    base_name = _NUMBER.sub("", name)
    return _CLASS_FOLDERS.get((class_type, base_name)) or _MODEL_FOLDERS.get(base_name)


def _list_inputs(graph: Mapping[str, Any]) -> list[Any]:
    return [
        node["inputs"] for node in graph.values() if isinstance(node, Mapping) and "inputs" in node
    ]


def _replace_values(
    value: Any, file_names: Mapping[str, str], replacements: Mapping[str, str]
) -> Any:
    artifact_id = _parse_reference(value)
    if artifact_id is not None:
        return file_names[artifact_id]
    if isinstance(value, str):
        return replacements.get(value, value)
    if isinstance(value, Mapping):
        return {key: _replace_values(item, file_names, replacements) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_values(item, file_names, replacements) for item in value]
    return value


def _find_references(value: Any) -> Iterator[str]:
    artifact_id = _parse_reference(value)
    if artifact_id is not None:
        yield artifact_id
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _find_references(item)
    elif isinstance(value, list):
        for item in value:
            yield from _find_references(item)


def _parse_reference(value: Any) -> str | None:
    """Return the artifact id in a reference, or None if ``value`` is not a reference.

    For a malformed reference, return a text that is not the id of any artifact.
    """
    if isinstance(value, str):
        match = _REFERENCE.fullmatch(value)
        return match[1] if match else None
    if isinstance(value, Mapping) and value.get("__type") == _ASSET:
        info = value.get("info")
        return str(info.get("id", "")) if isinstance(info, Mapping) else ""
    return None


def _find_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _find_strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _find_strings(item)
