"""Stores a batch as one graph and a patch per child, because graphs are large and children many.

A patch is ``{<node>: {<input>: <value>}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_CHILDREN", "apply_patch", "make_patch"]

MAX_CHILDREN = 256


def make_patch(base: Mapping[str, Any], graph: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the patch that turns ``base`` into ``graph``; both have the same nodes and inputs."""
    patch: dict[str, dict[str, Any]] = {}
    for node_id, node in graph.items():
        before = base[node_id].get("inputs", {})
        for name, value in node.get("inputs", {}).items():
            # 1, 1.0 and True are equal in Python, but not for a node.
            if value != before[name] or type(value) is not type(before[name]):
                patch.setdefault(node_id, {})[name] = value
    return patch


def apply_patch(base: Mapping[str, Any], patch: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a copy of ``base`` with the patch applied."""
    return {
        node_id: {**node, "inputs": {**node.get("inputs", {}), **patch[node_id]}}
        if node_id in patch
        else node
        for node_id, node in base.items()
    }
