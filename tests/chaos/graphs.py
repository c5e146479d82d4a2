"""ComfyUI graphs without models, for pictures and for slow or failing renders."""

from __future__ import annotations

from typing import Any


def picture(color: int) -> dict[str, Any]:
    """Return a graph for a picture of 8 by 8 pixels in one colour (0xRRGGBB)."""
    size = {"width": 8, "height": 8, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }


def sleepy(seconds: float, color: int) -> dict[str, Any]:
    """Return a graph for a picture whose render sleeps for ``seconds`` in a test node."""
    graph = picture(color)
    graph["3"] = {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": seconds}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def busy(seconds: float, color: int, *, fails: bool = False) -> dict[str, Any]:
    """Return a graph that logs its work, so that `tests.chaos.busy` can measure its duration.

    Args:
        fails: True for a graph that fails at its end.
    """
    graph = picture(color)
    inputs = {"image": ["1", 0], "seconds": seconds, "fails": fails}
    graph["3"] = {"class_type": "Busy", "inputs": inputs}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def hungry(share: float, model: str) -> dict[str, Any]:
    """Return a graph that fails if the process may use less than ``share`` of a card's memory.

    Args:
        model: the file name of the model that the graph names.
    """
    inputs = {"share": share, "model_name": model}
    return {"1": {"class_type": "Hungry", "inputs": inputs}}
