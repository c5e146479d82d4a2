"""Runs a real ComfyUI for tests, creates graphs for it, and finds its remaining processes."""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
import subprocess
import uuid
from array import array
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from moyin.domain.renderer import ExecutionFinished, RenderEvent, RenderRequest, RenderSucceeded
from moyin.render.comfyui.install import ComfyUI
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.renderer import ComfyRenderer
from moyin.store.blobs import BlobStore
from tests.nodes import write_nodes
from tests.processes import is_bubblewrap, with_lines

# Nodes that sleep, fail and report progress; ComfyUI's own tests use them.
TEST_NODES = "tests/execution/testing_nodes/testing-pack"
PNG = b"\x89PNG\r\n\x1a\n"
_WRITE_MODELS = """
import sys
import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact

for seed, path in enumerate(sys.argv[1:]):
    torch.manual_seed(seed)
    model = Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=1, upscale=2)
    save_file(model.state_dict(), path)
"""
# Stable Diffusion 3's transformer with one block of one head, by which ComfyUI knows it.
_TRANSFORMER = {
    "x_embedder.proj": (64, 16, 2, 2),
    "t_embedder.mlp.0": (64, 256),
    "t_embedder.mlp.2": (64, 64),
    "context_embedder": (64, 64),
    "joint_blocks.0.context_block.adaLN_modulation.1": (128, 64),
    "joint_blocks.0.context_block.attn.qkv": (192, 64),
    "joint_blocks.0.x_block.adaLN_modulation.1": (384, 64),
    "joint_blocks.0.x_block.attn.qkv": (192, 64),
    "joint_blocks.0.x_block.attn.proj": (64, 64),
    "joint_blocks.0.x_block.mlp.fc1": (256, 64),
    "joint_blocks.0.x_block.mlp.fc2": (64, 256),
    "final_layer.adaLN_modulation.1": (128, 64),
    "final_layer.linear": (64, 64),
}
_colors = itertools.count(0x102030)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


@pytest.fixture
def bad_nodes(tmp_path: Path) -> Path:
    return write_nodes(tmp_path)


@pytest.fixture(scope="module")
def options(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> ComfyOptions:
    folder = tmp_path_factory.mktemp("comfyui")
    return ComfyOptions(
        home=comfyui.home,
        python=comfyui.python,
        folder=folder / "run",
        models=folder / "models",
        custom_nodes=(comfyui.home / TEST_NODES,),
        cpu=True,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def renderer(options: ComfyOptions, blobs: BlobStore) -> AsyncIterator[ComfyRenderer]:
    """Run a ComfyUI, which a module shares because its start takes seconds."""
    renderer = ComfyRenderer(options, blobs)
    await renderer.start()
    await render_successfully(renderer, build_picture_graph())
    yield renderer
    await renderer.close()


def build_picture_graph(color: int | None = None, size: int = 8) -> dict[str, Any]:
    """Return a graph for a picture of one colour, by default of a new colour.

    Args:
        size: the width and height in pixels.
    """
    inputs = {
        "width": size,
        "height": size,
        "batch_size": 1,
        "color": next(_colors) if color is None else color,
    }
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "p"}},
    }


def build_sleepy_graph(seconds: float) -> dict[str, Any]:
    """Return a graph for a picture that takes ``seconds``."""
    graph = build_picture_graph()
    graph["3"] = {"class_type": "TestSleep", "inputs": {"value": ["1", 0], "seconds": seconds}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def build_upscaled_graph(model: str) -> dict[str, Any]:
    """Return a graph for a picture that goes through an upscale model; see `write_models`."""
    graph = build_picture_graph()
    graph["3"] = {"class_type": "UpscaleModelLoader", "inputs": {"model_name": model}}
    graph["4"] = {
        "class_type": "ImageUpscaleWithModel",
        "inputs": {"upscale_model": ["3", 0], "image": ["1", 0]},
    }
    graph["5"] = {"class_type": "TestSleep", "inputs": {"value": ["4", 0], "seconds": 0.3}}
    graph["2"]["inputs"]["images"] = ["5", 0]
    return graph


def write_models(python: Path, folder: Path, *names: str) -> None:
    """Write upscale models of a few kB, with random weights, below the models folder ``folder``."""
    target_folder = folder / "upscale_models"
    target_folder.mkdir(parents=True)
    paths = [str(target_folder / name) for name in names]
    subprocess.run([str(python), "-c", _WRITE_MODELS, *paths], check=True)
    for path in paths:
        # As safetensors writes them they are their owner's alone, and a confined ComfyUI is another.
        Path(path).chmod(0o644)


def build_loading_graph(model: str) -> dict[str, Any]:
    """Return a graph whose node 3 loads a diffusion model; see `write_transformers`."""
    graph = build_sleepy_graph(0.1)
    graph["4"] = graph.pop("3")
    graph["2"]["inputs"]["images"] = ["4", 0]
    inputs = {"unet_name": model, "weight_dtype": "default"}
    graph["3"] = {"class_type": "UNETLoader", "inputs": inputs}
    graph["5"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    return graph


def write_transformers(folder: Path, *names: str) -> None:
    """Write real diffusion models of half a MB, with random weights, as safetensors."""
    folder.mkdir(parents=True)
    for name in names:
        rng = random.Random(name)
        header: dict[str, Any] = {}
        tensors = bytearray()
        for layer, shape in _TRANSFORMER.items():
            for parameter, parameter_shape in (("weight", shape), ("bias", shape[:1])):
                offset = len(tensors)
                weights = (rng.uniform(-0.1, 0.1) for _ in range(math.prod(parameter_shape)))
                tensors += array("f", weights).tobytes()
                tensor_layout = {"shape": parameter_shape, "data_offsets": (offset, len(tensors))}
                header[f"{layer}.{parameter}"] = {"dtype": "F32", **tensor_layout}
        header_json = json.dumps(header).encode()
        folder.joinpath(name).write_bytes(
            struct.pack("<Q", len(header_json)) + header_json + tensors
        )


def build_failing_graph() -> dict[str, Any]:
    """Return a graph whose node 3 raises an error."""
    graph = build_picture_graph()
    graph["3"] = {"class_type": "TestSyncError", "inputs": {"value": ["1", 0]}}
    graph["2"]["inputs"]["images"] = ["3", 0]
    return graph


def build_request(graph: dict[str, Any], prompt_id: str | None = None) -> RenderRequest:
    return RenderRequest(prompt_id=prompt_id or str(uuid.uuid4()), graph=graph)


async def render_events(
    renderer: ComfyRenderer, graph: dict[str, Any], prompt_id: str | None = None
) -> list[RenderEvent]:
    async with aclosing(renderer.render(build_request(graph, prompt_id))) as stream:
        return [event async for event in stream]


async def render_successfully(
    renderer: ComfyRenderer, graph: dict[str, Any], prompt_id: str | None = None
) -> RenderSucceeded:
    seen_events = await render_events(renderer, graph, prompt_id)
    assert isinstance(seen_events[-1], RenderSucceeded)
    assert ExecutionFinished() in seen_events
    return seen_events[-1]


def list_comfyui_pids(folder: Path) -> list[int]:
    """Return the pids of the ComfyUIs that use ``folder``, without their sandbox processes."""
    return [
        process.pid
        for process, line in with_lines(psutil.process_iter())
        if "--base-directory" in line and str(folder) in line and not is_bubblewrap(line)
    ]
