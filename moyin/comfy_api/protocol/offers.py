"""Which graphs a pool's ComfyUIs have all parts for: their nodes, and the files they load; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.comfy_api.protocol.node_info import choices, inputs_of, is_upload

__all__ = ["Offer", "has_all", "has_nodes", "offer_of"]

# By node class and input: what a graph may choose there.
Offer = Mapping[str, Mapping[str, frozenset[str]]]


def offer_of(nodes: Mapping[str, Any]) -> Offer:
    """Out of ``/object_info``. Files that people upload are every pool's, so they miss."""
    return {
        name: {
            key: frozenset(item for item in found if isinstance(item, str))
            for _, key, spec in inputs_of(node)
            if not is_upload(spec) and (found := choices(spec)) is not None
        }
        for name, node in nodes.items()
    }


def has_all(offer: Offer, graph: Mapping[str, Any]) -> bool:
    """Whether nothing in ``graph`` is unknown there."""
    return all(_has(offer, node) for node in graph.values() if isinstance(node, Mapping))


def has_nodes(offer: Offer, graph: Mapping[str, Any]) -> bool:
    """Whether its nodes are known there, whatever they shall load."""
    return all(
        str(node.get("class_type")) in offer for node in graph.values() if isinstance(node, Mapping)
    )


def _has(offer: Offer, node: Mapping[str, Any]) -> bool:
    choices_of = offer.get(str(node.get("class_type")))
    if choices_of is None:
        return False
    inputs = node.get("inputs")
    if not isinstance(inputs, Mapping):
        return True
    # What is not text is a number, or a link to another node.
    return all(
        value in choices_of[name]
        for name, value in inputs.items()
        if name in choices_of and isinstance(value, str)
    )
