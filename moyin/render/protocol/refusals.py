"""Writes ComfyUI's error body for nodes that Moyin refuses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["NOT_YOURS", "Refused", "refused_body"]

# The same message for a missing file and for another tenant's file, so that names do not leak.
NOT_YOURS = "you have no file with this name; upload it first"


class Refused(NamedTuple):
    """A node, or one of its inputs, that Moyin refuses; ``input`` is empty for the whole node."""

    node: str
    class_type: str
    input: str
    reason: str


def refused_body(refused: Iterable[Refused]) -> dict[str, Any]:
    """Return the body of ComfyUI's ``POST /prompt`` for a graph that fails validation."""
    nodes: dict[str, Any] = {}
    for refusal in refused:
        named = f"{refusal.input} - {refusal.reason}" if refusal.input else refusal.reason
        error = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": named,
            "extra_info": {"input_name": refusal.input} if refusal.input else {},
        }
        node_error = {"errors": [], "dependent_outputs": [], "class_type": refusal.class_type}
        nodes.setdefault(refusal.node, node_error)["errors"].append(error)
    details = "\n".join(
        f"{error['message']}: {error['details']}"
        for node in nodes.values()
        for error in node["errors"]
    )
    error = {
        "type": "prompt_outputs_failed_validation",
        "message": "Prompt outputs failed validation",
        "details": details,
        "extra_info": {},
    }
    return {"error": error, "node_errors": nodes}
