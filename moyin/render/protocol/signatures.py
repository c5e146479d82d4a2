"""Computes signatures of a graph's nodes, which tell what ComfyUI need not execute again.

ComfyUI caches the outputs of the nodes of its latest prompt. It uses those of a node again if its
class and its inputs are equal, and those of all nodes before it. The signature of a node is a digest
of the same. ComfyUI also asks some nodes whether they have changed, which a signature does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic_core import to_json

from moyin.render.protocol.graph_links import is_link, list_sources

# Larger graphs get no signatures, because each waiting render holds its own in memory.
_MAX_NODES = 512
_BYTES = 8


def compute_signatures(graph: Mapping[str, Any], owner: str) -> frozenset[int]:
    """Return the signatures of the graph's nodes; equal nodes have one signature.

    The result is empty for a graph of more than 512 nodes or with a circle.

    Args:
        owner: id of the tenant, because ComfyUI uses cached outputs for the same tenant only.
    """
    if len(graph) > _MAX_NODES:
        return frozenset()
    sources = {node_id: list_sources(graph, node) for node_id, node in graph.items()}
    signatures: dict[str, int] = {}
    try:
        for node_id in TopologicalSorter(sources).static_order():
            signatures[node_id] = _sign_node(graph[node_id], signatures, owner)
    except CycleError:
        return frozenset()
    return frozenset(signatures.values())


def _sign_node(node: Any, signatures: Mapping[str, int], owner: str) -> int:
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    class_type = node.get("class_type") if isinstance(node, Mapping) else None
    signed_inputs = [
        (name, ["link", signatures[value[0]], value[1]])
        if is_link(value) and value[0] in signatures
        else (name, ["value", value])
        for name, value in sorted(inputs.items() if isinstance(inputs, Mapping) else ())
    ]
    content = to_json([owner, class_type, signed_inputs], inf_nan_mode="constants")
    return int.from_bytes(hashlib.blake2b(content, digest_size=_BYTES).digest())
