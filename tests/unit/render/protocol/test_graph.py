from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.artifact import Artifact
from moyin.render.protocol.graph import (
    find_artifact_ids,
    find_model_files,
    is_input_name,
    make_input_name,
    replace_inputs,
)

ID = f"art_{'1' * 32}"
OTHER = f"art_{'2' * 32}"


def make_artifact(name: str) -> Artifact:
    return Artifact(id=ID, name=name, media_type="image/png", size=1, sha256="a" * 64)


def test_references_are_replaced_only_in_inputs() -> None:
    graph = {
        "1": {
            "class_type": "LoadImage",
            "inputs": {"image": f"artifact:{ID}", "list": [f"artifact:{OTHER}", {"a": 1}]},
            "_meta": {"title": f"artifact:{'x'}"},
        },
        "2": {"class_type": "Text", "inputs": {"text": f"about artifact:{ID}", "link": ["1", 0]}},
        "3": "not a node",
    }
    assert find_artifact_ids(graph) == {ID, OTHER}
    new_graph = replace_inputs(graph, {ID: "one.png", OTHER: "two.png"})
    assert new_graph["1"]["inputs"] == {"image": "one.png", "list": ["two.png", {"a": 1}]}
    assert new_graph["2"] == graph["2"]
    assert new_graph["3"] == "not a node"
    assert graph["1"]["inputs"]["image"] == f"artifact:{ID}", "the original graph is unchanged"  # type: ignore[index]


def test_asset_of_the_api_v2_is_a_reference() -> None:
    asset = {"__type": "core/ASSET", "info": {"id": ID, "file_path": "cat.png"}}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": asset, "more": [asset]}}}
    assert find_artifact_ids(graph) == {ID}
    new_graph = replace_inputs(graph, {ID: "one.png"})
    assert new_graph["1"]["inputs"] == {"image": "one.png", "more": ["one.png"]}


@pytest.mark.parametrize("info", [None, "x", {}, {"id": ""}])
def test_malformed_reference_has_an_unused_id(info: object) -> None:
    graph = {"1": {"class_type": "A", "inputs": {"image": {"__type": "core/ASSET", "info": info}}}}
    assert find_artifact_ids(graph) == {""}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("cat.PNG", ".png"),
        ("cat", ""),
        ("cat.tar.gz", ".gz"),
        ("../../etc/passwd", ""),
        ("a.p\nng", ""),
        ("a.averylongsuffix", ""),
        (".png", ""),
    ],
)
def test_input_name_keeps_only_a_plain_suffix(name: str, suffix: str) -> None:
    assert make_input_name(make_artifact(name)) == f"moyin/{'a' * 64}{suffix}"


@given(st.text())
def test_every_input_name_is_valid_and_stays_in_its_folder(name: str) -> None:
    generated_name = make_input_name(make_artifact(name))
    assert is_input_name(generated_name)
    assert ".." not in generated_name


@pytest.mark.parametrize(
    "name", ["moyin/x.png", f"{'a' * 64}.png", f"moyin/{'a' * 64}/..", f"moyin/{'a' * 64}\n"]
)
def test_other_names_are_not_input_names(name: str) -> None:
    assert not is_input_name(name)


def test_model_files_of_every_loader_are_found() -> None:
    graph = {
        "1": _make_node("CheckpointLoaderSimple", ckpt_name="sdxl.safetensors"),
        "2": _make_node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "3": _make_node("DualCLIPLoader", clip_name1="t5.safetensors", clip_name2="l.safetensors"),
        "4": _make_node("VAELoader", vae_name="ae.safetensors"),
        "5": _make_node("LoraLoader", lora_name="style/ink.safetensors", model=["1", 0]),
        "6": _make_node("ControlNetLoader", control_net_name="depth.safetensors"),
        "7": _make_node("UpscaleModelLoader", model_name="4x.pth"),
        "8": _make_node("CLIPVisionLoader", clip_name="vit.safetensors"),
        "9": _make_node("KSampler", sampler_name="euler", model=["5", 0]),
        "10": _make_node("Lora Stack", lora_name_1="a.safetensors", lora_name_2="b.safetensors"),
    }
    assert find_model_files(graph) == {
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
def test_node_without_a_model_name_loads_no_model(node: Any) -> None:
    assert find_model_files({"1": node}) == frozenset()


def _make_node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
