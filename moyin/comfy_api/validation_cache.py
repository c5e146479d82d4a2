"""Caches the results of ComfyUI's graph validation, so that similar graphs share one result.

Most graphs differ from an earlier graph only in a seed, a size or a text. ComfyUI checks only the
type and the range of such inputs, and Moyin's bridge reports which inputs these are. A validation
in ComfyUI takes a twentieth of a small picture's render time, and must wait while a node runs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from moyin.system.bounded import BoundedDict

# A result expires soon, because models and input files can be deleted.
_TTL_SECONDS = 5.0
_MAX_ENTRIES = 1024
_SCALARS = (str, int, float, bool)
_TYPES: dict[str, tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (float, int),
    "STRING": (str,),
    "BOOLEAN": (bool,),
}
# Inputs that ComfyUI checks only for type and range, as type, minimum and maximum by node and
# input.
# A minimum or maximum of None means that there is no limit.
UncheckedInputs = Mapping[str, Mapping[str, Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class _CachedResult:
    expires_at: float
    body: Mapping[str, Any]


class ValidationCache:
    """Caches ComfyUI's responses to valid graphs; errors are not cached."""

    def __init__(self, ttl_seconds: float = _TTL_SECONDS) -> None:
        self._ttl_seconds = ttl_seconds
        # The unchecked inputs by the graph's shape, which is a digest without its scalar values.
        self._unchecked: BoundedDict[str, UncheckedInputs] = BoundedDict(_MAX_ENTRIES)
        # The results by a digest of the shape and the values of all checked inputs.
        self._results: BoundedDict[str, _CachedResult] = BoundedDict(_MAX_ENTRIES)

    def find(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None
    ) -> Mapping[str, Any] | None:
        """Return ComfyUI's cached response to a valid graph, or None if there is none.

        Args:
            targets: ids of the output nodes to execute, or None for all.
        """
        shape = _digest_shape(pool, graph, targets)
        unchecked_inputs = None if shape is None else self._unchecked.get(shape)
        if shape is None or unchecked_inputs is None:
            return None
        checked_values = []
        for node_id, name, value in _iterate_scalars(graph):
            bounds = unchecked_inputs.get(node_id, {}).get(name)
            if bounds is None:
                checked_values.append(value)
            elif not _is_within_bounds(value, *bounds):
                return None
        key = _digest([shape, checked_values])
        result = None if key is None else self._results.get(key)
        return result.body if result is not None and time.monotonic() < result.expires_at else None

    def store(
        self,
        pool: str,
        graph: Mapping[str, Any],
        targets: Sequence[str] | None,
        body: Mapping[str, Any],
        unchecked_inputs: UncheckedInputs,
    ) -> None:
        """Cache ComfyUI's response ``body``, unless the response reports errors of nodes.

        Args:
            targets: ids of the output nodes to execute, or None for all.
            unchecked_inputs: the inputs that ComfyUI checks only for their type and range.
        """
        shape = _digest_shape(pool, graph, targets)
        if shape is None or body.get("node_errors"):
            return
        checked_values = [
            value
            for node_id, name, value in _iterate_scalars(graph)
            if name not in unchecked_inputs.get(node_id, {})
        ]
        if (key := _digest([shape, checked_values])) is not None:
            self._unchecked[shape] = unchecked_inputs
            self._results[key] = _CachedResult(time.monotonic() + self._ttl_seconds, body)


def _digest_shape(pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None) -> str | None:
    """Return a digest of the graph without its scalar values, or None if the graph is malformed."""
    nodes: list[Any] = []
    for node_id, node in graph.items():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if not isinstance(inputs, Mapping):
            return None
        inputs_without_scalars = [
            [name, None if isinstance(value, _SCALARS) else [value]]
            for name, value in inputs.items()
        ]
        nodes.append([node_id, node.get("class_type"), inputs_without_scalars])
    return _digest([pool, targets, nodes])


def _iterate_scalars(graph: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the node id, the input name and the value of every scalar input."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, _SCALARS):
                yield node_id, name, value


def _is_within_bounds(value: Any, kind: str, minimum: Any, maximum: Any) -> bool:
    # A bool is an int in Python, but nodes may treat booleans and numbers differently.
    if isinstance(value, bool) != (kind == "BOOLEAN") or not isinstance(value, _TYPES[kind]):
        return False
    return (minimum is None or value >= minimum) and (maximum is None or value <= maximum)


def _digest(value: Any) -> str | None:
    """Return a digest of the value, or None if JSON cannot represent the value."""
    try:
        json_value = to_json(value, inf_nan_mode="constants")
    except ValueError:
        return None
    return hashlib.blake2b(json_value, digest_size=16).hexdigest()
