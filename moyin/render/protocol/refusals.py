"""Writes ComfyUI's own error body for refused nodes of a graph. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["NOT_YOURS", "Refused", "refused_body"]

# The same message for a missing file and for a file of another owner, so that names do not leak.
NOT_YOURS = "no file of yours has this name"


class Refused(NamedTuple):
    """A refused node, or one of its inputs (empty: the node itself), with the reason."""

    node: str
    class_type: str
    input: str
    reason: str


def refused_body(refused: Iterable[Refused]) -> dict[str, Any]:
    """Return ``{"error", "node_errors"}`` as ``POST /prompt`` does when it refuses a whole graph."""
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
