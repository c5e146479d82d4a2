"""Keeps the models that a prompt has loaded for the next prompt, also for another tenant's.

The results of a node are shared by the tenants only if the node and all nodes before it are
*loaders*: their inputs are names of model files, other choices and numbers, and their results are
neither pictures nor other data. A tenant can only notice by the time that a model was loaded already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from .guard import NodeRules
from .input_rules import CHOICE, is_link

_MODEL_SUFFIXES = (
    ".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx"
)  # fmt: skip
# Types of results that may depend on what a tenant renders.
_DATA_TYPES = frozenset(
    {
        "*", "AUDIO", "BOOLEAN", "COMBO", "CONDITIONING", "FLOAT", "GUIDER", "IMAGE", "INT", "LATENT",
        "MASK", "MESH", "NOISE", "SIGMAS", "STRING", "SVG", "VIDEO", "VOXEL",
    }
)  # fmt: skip
_VOLATILE_METHODS = ("IS_CHANGED", "fingerprint_inputs")
# More loaders in a row than any workflow has.
_MAX_DEPTH = 64


class LoaderClasses:
    """Decides which node classes are loaders.

    Args:
        classes: the value of ComfyUI's ``NODE_CLASS_MAPPINGS``.
        rules: the rules of the classes' inputs.
    """

    def __init__(self, classes: Mapping[str, Any], rules: NodeRules) -> None:
        self._classes = classes
        self._rules = rules
        self._is_loader: dict[str, bool] = {}

    def is_loader(self, class_type: str) -> bool:
        """Return whether nodes of the class may be loaders; their inputs must be checked, too."""
        if class_type not in self._is_loader:
            try:
                self._is_loader[class_type] = _is_loader(self._classes[class_type])
            except Exception:
                return False  # an unknown class, or the class's own code failed
        return self._is_loader[class_type]

    def is_choice(self, class_type: str, name: str) -> bool:
        """Return whether an input takes one of the values of a list."""
        rule = self._rules.get_rules(class_type).get(name)
        return rule is not None and rule.kind == CHOICE


class LoadedModels:
    """Holds the results of the loaders of the latest prompt, by a key of their inputs."""

    def __init__(self) -> None:
        self._results: dict[str, Any] = {}
        self._keys: Mapping[str, str] = {}

    def begin_prompt(self, keys: Mapping[str, str]) -> None:
        """Drop all models but those of the prompt that begins, as ComfyUI's own cache does.

        Args:
            keys: the keys of the prompt's loaders, by node id.
        """
        self._keys = keys
        used_keys = set(keys.values())
        self._results = {key: value for key, value in self._results.items() if key in used_keys}

    def is_loader(self, node_id: str) -> bool:
        """Return whether a node of the prompt is a loader."""
        return node_id in self._keys

    def find(self, node_id: str) -> Any:
        """Return what `keep` has kept for the node's inputs, or None."""
        key = self._keys.get(node_id)
        return None if key is None else self._results.get(key)

    def keep(self, node_id: str, result: Any) -> None:
        """Keep what ``execution.get_output_data`` has returned for a loader without side effects."""
        key = self._keys.get(node_id)
        _outputs, ui, *is_unfinished = result
        if key is not None and not ui and not any(is_unfinished):
            self._results[key] = result


def compute_loader_keys(graph: Mapping[str, Any], loaders: LoaderClasses) -> dict[str, str]:
    """Return a digest of the inputs of each loader, by node id; other nodes are left out."""
    keys: dict[str, str | None] = {}
    for node_id in graph:
        _compute_key(graph, node_id, loaders, keys, depth=0)
    return {node_id: key for node_id, key in keys.items() if key is not None}


def _compute_key(
    graph: Mapping[str, Any],
    node_id: str,
    loaders: LoaderClasses,
    keys: dict[str, str | None],
    depth: int,
) -> str | None:
    """Return the digest of a node's inputs, or None if the node is no loader."""
    if node_id not in keys:
        keys[node_id] = None  # also the value for a cycle
        node = graph.get(node_id)
        if depth < _MAX_DEPTH and node is not None and loaders.is_loader(node["class_type"]):
            keys[node_id] = _digest_inputs(graph, node, loaders, keys, depth)
    return keys[node_id]


def _digest_inputs(
    graph: Mapping[str, Any],
    node: Mapping[str, Any],
    loaders: LoaderClasses,
    keys: dict[str, str | None],
    depth: int,
) -> str | None:
    parts: list[Any] = [node["class_type"]]
    names_model = False
    for name, value in sorted(node["inputs"].items()):
        if is_link(value):
            key = _compute_key(graph, value[0], loaders, keys, depth + 1)
            if key is None:
                return None
            parts.append((name, key, value[1]))
            continue
        if isinstance(value, str):
            if not loaders.is_choice(node["class_type"], name):
                return None
            names_model = names_model or value.lower().endswith(_MODEL_SUFFIXES)
        elif not isinstance(value, (int, float)):
            return None
        parts.append((name, value))
    return hashlib.sha256(repr(parts).encode()).hexdigest() if names_model else None


def _is_loader(node_class: Any) -> bool:
    if getattr(node_class, "OUTPUT_NODE", False) or getattr(node_class, "NOT_IDEMPOTENT", False):
        return False
    # Hidden inputs are the node's id, the graph and its metadata.
    if node_class.INPUT_TYPES().get("hidden") or _is_volatile(node_class):
        return False
    kinds = [kind if isinstance(kind, str) else "*" for kind in node_class.RETURN_TYPES]
    return bool(kinds) and _DATA_TYPES.isdisjoint(str.__str__(kind) for kind in kinds)


def _is_volatile(node_class: Any) -> bool:
    """Return whether the class decides itself whether it must be executed again."""
    return any(
        name in vars(base)
        for base in node_class.__mro__
        if not base.__module__.startswith("comfy_api")
        for name in _VOLATILE_METHODS
    )
