"""ComfyUI's own way to say that nodes of a graph may not be; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["NOT_YOURS", "Refused", "refused_body"]

# Whether there is no such file, or whether it is somebody else's: nobody is told which.
NOT_YOURS = "no file of yours has this name"


class Refused(NamedTuple):
    """What is refused: a node, or one of its inputs (empty: the node itself), and why."""

    node: str
    class_type: str
    input: str
    why: str


def refused_body(refused: Iterable[Refused]) -> dict[str, Any]:
    """``{"error", "node_errors"}`` as ``POST /prompt`` answers when nothing of a graph is left."""
    nodes: dict[str, Any] = {}
    for one in refused:
        error = {
            "type": "custom_validation_failed",
            "message": "Custom validation failed for node",
            "details": f"{one.input} - {one.why}" if one.input else one.why,
            "extra_info": {"input_name": one.input} if one.input else {},
        }
        told = {"errors": [], "dependent_outputs": [], "class_type": one.class_type}
        nodes.setdefault(one.node, told)["errors"].append(error)
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
