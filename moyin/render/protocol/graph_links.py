"""Finds the links between the nodes of a graph in the API format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def list_sources(graph: Mapping[str, Any], node: Any) -> set[str]:
    """Return the ids of the graph's nodes to which the inputs of a node are linked."""
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    if not isinstance(inputs, Mapping):
        return set()
    return {value[0] for value in inputs.values() if is_link(value) and value[0] in graph}


def is_link(value: Any) -> bool:
    """Return whether a value of a node's input has the form of a link to another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
