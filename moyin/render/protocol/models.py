"""Which model files a graph loads, read from the inputs of its loader nodes; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["models_of"]

# Inputs of ComfyUI's own loaders, and of most that others write, by the folder they choose from.
_INPUTS = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "vae_name": "vae",
    "lora_name": "loras",
    "control_net_name": "controlnet",
    "style_model_name": "style_models",
    "gligen_name": "gligen",
    "hypernetwork_name": "hypernetworks",
    "model_name": "upscale_models",
}
# The same input name, another folder.
_CLASSES = {("CLIPVisionLoader", "clip_name"): "clip_vision"}
# ``clip_name1``, ``lora_name_2``.
_NUMBER = re.compile(r"_?\d+$")


def models_of(graph: Mapping[str, Any]) -> frozenset[str]:
    """``<folder>/<file name>`` of every model that a node of the graph names."""
    found = set()
    for node in graph.values():
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if not isinstance(inputs, Mapping):
            continue
        for name, value in inputs.items():
            # What is not text is a link to another node.
            folder = _folder(str(node.get("class_type")), name)
            if folder is not None and isinstance(value, str) and value:
                found.add(f"{folder}/{value}")
    return frozenset(found)


def _folder(class_type: str, name: str) -> str | None:
    plain = _NUMBER.sub("", name)
    return _CLASSES.get((class_type, plain)) or _INPUTS.get(plain)
