from __future__ import annotations

from typing import Any

import pytest

from moyin.render.protocol.models import models_of


def test_every_kind_of_loader_is_read() -> None:
    graph = {
        "1": _node("CheckpointLoaderSimple", ckpt_name="sdxl.safetensors"),
        "2": _node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "3": _node("DualCLIPLoader", clip_name1="t5.safetensors", clip_name2="l.safetensors"),
        "4": _node("VAELoader", vae_name="ae.safetensors"),
        "5": _node("LoraLoader", lora_name="style/ink.safetensors", model=["1", 0]),
        "6": _node("ControlNetLoader", control_net_name="depth.safetensors"),
        "7": _node("UpscaleModelLoader", model_name="4x.pth"),
        "8": _node("CLIPVisionLoader", clip_name="vit.safetensors"),
        "9": _node("KSampler", sampler_name="euler", model=["5", 0]),
        "10": _node("Lora Stack", lora_name_1="a.safetensors", lora_name_2="b.safetensors"),
    }
    assert models_of(graph) == {
        "checkpoints/sdxl.safetensors",
        "diffusion_models/flux.safetensors",
        "text_encoders/t5.safetensors",
        "text_encoders/l.safetensors",
        "vae/ae.safetensors",
        "loras/style/ink.safetensors",
        "controlnet/depth.safetensors",
        "upscale_models/4x.pth",
        "clip_vision/vit.safetensors",
        "loras/a.safetensors",
        "loras/b.safetensors",
    }


@pytest.mark.parametrize(
    "node", [5, None, {}, {"class_type": "X"}, {"inputs": []}, {"inputs": {"ckpt_name": ["1", 0]}}]
)
def test_what_names_no_model_needs_none(node: Any) -> None:
    assert models_of({"1": node}) == frozenset()


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
