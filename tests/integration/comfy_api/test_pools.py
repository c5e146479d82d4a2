"""Tests which of two pools, whose ComfyUIs have different nodes and models, renders a graph.

The second pool is kept for the tenant of the farm's first key.
"""

from __future__ import annotations

import copy
import json
import struct
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from PIL import Image

from moyin.render.comfyui.install import ComfyUI
from moyin.stack.first_key import FIRST_OWNER
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.chaos.client import FINAL, StackClient
from tests.chaos.graphs import picture, sleepy
from tests.integration.comfy_api.test_native_api import ComfyClient
from tests.integration.render.fixtures import write_transformers
from tests.stack import RunningStack, farm_env
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)
_UP_SECONDS = 120
_PLAIN, _SPECIAL = "comfyui-default-0", "comfyui-special-0"
_MODELS = {"default": "plain.safetensors", "special": "special.safetensors"}
_PACKAGE = "special-pack"
_SCRIPT = "// only in the special pool"
# What ComfyUI returns of the special pool's package and models, by path.
_SPECIAL_CONTENTS = {
    "/object_info": "SpecialNode",
    "/object_info/SpecialNode": "SpecialNode",
    "/models/diffusion_models": "special.safetensors",
    "/models/loras": "special-lora.safetensors",
    "/embeddings": "special-embedding",
    "/experiment/models/loras": "special-lora.safetensors",
    "/view_metadata/loras?filename=special-lora.safetensors": "prompts of a training",
    "/experiment/models/preview/loras/0/special-lora.safetensors": "WEBP",
    "/extensions": f"/extensions/{_PACKAGE}/main.js",
    f"/extensions/{_PACKAGE}/main.js": _SCRIPT,
    "/workflow_templates": "special-flow",
    "/global_subgraphs": "special-subgraph",
    "/i18n": "special translation",
}


@pytest.fixture(scope="module")
def two_pools(comfyui: ComfyUI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Run a farm with two pools: one with ComfyUI's own nodes, and one that also has test nodes."""
    folder = tmp_path_factory.mktemp("two-pools")
    env = farm_env(comfyui, folder, cpus=0.1, gpus=0.5)
    config = Path(env["MOYIN_SERVE_CONFIG"])
    config.write_text(yaml.safe_dump(_add_second_pool(yaml.safe_load(config.read_text()), folder)))
    for name, model in _MODELS.items():
        write_transformers(folder / name / "diffusion_models", model)
    _write_special_models(folder / "special")
    _write_special_package(folder / _PACKAGE)
    with RunningStack(folder, env).running() as stack:
        yield stack


def _add_second_pool(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    apps = {app["name"]: app for app in config["applications"]}
    apps["gateway"]["args"]["pools"] = list(_MODELS)
    plain_app = apps["render-default"]
    special_app = copy.deepcopy(plain_app) | {"name": "render-special"}
    special_app["args"]["pool"] = "special"
    special_app["args"]["tenants"] = [FIRST_OWNER]
    special_app["args"]["comfyui"]["custom_nodes"].append(str(folder / _PACKAGE))
    plain_app["args"]["comfyui"]["custom_nodes"] = []
    for app in (plain_app, special_app):
        app["args"]["comfyui"]["models"] = str(folder / app["args"]["pool"])
    # Nobody is asked for text.
    kept_apps = [apps[name] for name in ("gateway", "workers")]
    return {**config, "applications": [*kept_apps, plain_app, special_app]}


def _write_special_models(folder: Path) -> None:
    header = json.dumps({"__metadata__": {"ss_tag_frequency": "prompts of a training"}}).encode()
    content = struct.pack("<Q", len(header)) + header
    for name in ("loras/special-lora.safetensors", "embeddings/special-embedding.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    picture = Image.new("RGB", (8, 8), (250, 0, 0))
    picture.save(folder / "loras" / "special-lora.preview.png")


def _write_special_package(folder: Path) -> None:
    """Write a package with a node, and with each kind of file that the frontend gets from one."""
    nodes = """
WEB_DIRECTORY = "./web"
class SpecialNode:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "run", "test"
    def run(self):
        return {}
NODE_CLASS_MAPPINGS = {"SpecialNode": SpecialNode}
"""
    for name, text in {
        "__init__.py": nodes,
        "web/main.js": _SCRIPT,
        "example_workflows/special-flow.json": "{}",
        "subgraphs/special-subgraph.json": "{}",
        "locales/en/main.json": json.dumps({"special": "special translation"}),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
async def farm(two_pools: RunningStack) -> AsyncIterator[ComfyClient]:
    """Yield a client of the farm without waiting for the pools."""
    headers = {"authorization": f"Bearer {two_pools.api_key}"}
    async with aiohttp.ClientSession(two_pools.url, headers=headers) as session:
        yield ComfyClient(session)


@pytest.fixture
async def comfy(farm: ComfyClient) -> ComfyClient:
    """Return a client of the farm, once both pools are ready."""
    await eventually(lambda: _are_up(farm, *_MODELS), _UP_SECONDS)
    return farm


async def _are_up(farm: ComfyClient, *pools: str) -> bool:
    """Return True if each of these pools lists its own model, which no other pool has."""
    async with farm.session.get("/models/diffusion_models") as response:
        listed_models = await response.json() if response.status == 200 else []
    return {_MODELS[pool] for pool in pools} <= set(listed_models)


def _pick_color() -> int:
    return uuid.uuid4().int & 0xFFFFFF


async def _render_and_find_renderer(comfy: ComfyClient, graph: dict[str, Any]) -> str:
    prompt_id = await comfy.queue_prompt(graph)
    assert (await comfy.wait_until_finished(prompt_id))["status"]["status_str"] == "success"
    return await _find_renderer(comfy, prompt_id)


async def _find_renderer(comfy: ComfyClient, prompt_id: str) -> str:
    return str((await comfy.get(f"/jobs/{prompt_id}"))["outputs"][0]["backend"])


async def test_a_graph_waits_for_the_first_pool_while_it_starts(farm: ComfyClient) -> None:
    """The first pool renders the graph, although usually only the second pool is ready yet."""
    await eventually(lambda: _are_up(farm, "special"), _UP_SECONDS)
    graph, response_bodies = picture(_pick_color()), []

    async def is_accepted() -> bool:
        status, body = await farm.post("/prompt", {"prompt": graph})
        assert status in (200, 503), body
        response_bodies.append(body)
        return status == 200

    # A pool that starts for very long is answered by 503, and the client tries again.
    await eventually(is_accepted, _UP_SECONDS)
    prompt_id = response_bodies[-1]["prompt_id"]
    assert (await farm.wait_until_finished(prompt_id))["status"]["status_str"] == "success"
    assert await _find_renderer(farm, prompt_id) == _PLAIN


async def test_a_graph_goes_to_the_pool_that_has_its_nodes(comfy: ComfyClient) -> None:
    graphs = [picture(_pick_color()), sleepy(0.1, _pick_color()), picture(_pick_color())]
    assert [await _render_and_find_renderer(comfy, graph) for graph in graphs] == [
        _PLAIN,
        _SPECIAL,
        _PLAIN,
    ]


async def test_a_graph_goes_to_the_pool_that_has_its_models(comfy: ComfyClient) -> None:
    assert (
        await _render_and_find_renderer(comfy, _build_graph_with_model(_MODELS["default"]))
        == _PLAIN
    )
    assert (
        await _render_and_find_renderer(comfy, _build_graph_with_model(_MODELS["special"]))
        == _SPECIAL
    )


async def test_clients_see_the_nodes_and_models_of_both_pools(comfy: ComfyClient) -> None:
    nodes = await comfy.get("/object_info")
    assert {"EmptyImage", "TestSleep", "Where"} <= set(nodes)
    [choices] = nodes["UNETLoader"]["input"]["required"]["unet_name"]
    listed_models = await comfy.get("/models/diffusion_models")
    assert sorted(choices) == sorted(listed_models) == sorted(_MODELS.values())
    assert any("bad-nodes" in path for path in await comfy.get("/extensions"))
    special_models = await comfy.get("/models/diffusion_models?pool=special")
    assert special_models == [_MODELS["special"]]
    assert "Where" not in await comfy.get("/object_info?pool=default")
    async with comfy.session.get("/models/diffusion_models?search=SAFE&limit=1") as response:
        assert await response.json() == sorted(_MODELS.values())[:1]
        assert response.headers["x-total-count"] == "2"
    path = "/object_info?pool=default&search=empty+image&limit=1&summary=true"
    async with comfy.session.get(path) as response:
        [(name, node)] = (await response.json()).items()
        assert name <= "EmptyImage"
        assert node.keys() == {"name", "display_name", "category", "description"}
        assert int(response.headers["x-total-count"]) >= 1
    async with comfy.session.get("/models?pool=none") as response:
        assert (response.status, (await response.json())["error"]["type"]) == (
            400,
            "invalid_request",
        )


async def test_unknown_nodes_are_refused_with_comfyuis_errors(comfy: ComfyClient) -> None:
    unknown_graph = {**picture(_pick_color()), "9": {"class_type": "NoSuchNode", "inputs": {}}}
    status, body = await comfy.post("/prompt", {"prompt": unknown_graph})
    assert (status, body["error"]["type"]) == (400, "invalid_prompt")
    assert "NoSuchNode" in body["error"]["message"]
    assert body["node_errors"] == {}
    partial_graph = {
        k: n for k, n in _build_graph_with_model("nobodys.safetensors").items() if k in ("3", "4")
    }
    status, body = await comfy.post("/prompt", {"prompt": partial_graph})
    assert (status, body["error"]["type"]) == (400, "prompt_outputs_failed_validation")
    [error] = body["node_errors"]["3"]["errors"]
    assert (error["type"], error["extra_info"]["received_value"]) == (
        "value_not_in_list", "nobodys.safetensors",
    )  # fmt: skip


async def test_output_that_no_single_pool_can_make_is_refused(
    comfy: ComfyClient,
) -> None:
    """The graph has a model of one pool and a node of the other; the model counts as unknown."""
    graph = _build_graph_with_model(_MODELS["default"])
    graph["9"] = {"class_type": "Where", "inputs": {"seconds": 0.0}}
    status, body = await comfy.post("/prompt", {"prompt": graph})
    assert status == 200, "its other output can be made"
    [error] = body["node_errors"]["3"]["errors"]
    assert error["type"] == "value_not_in_list"


async def test_the_special_pools_contents_are_its_tenants_only(
    two_pools: RunningStack, comfy: ComfyClient
) -> None:
    """Another tenant gets what the other pool has, also after the pool's own tenant has asked."""
    key = await _create_key(two_pools, "stranger")
    stranger_headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(two_pools.url, headers=stranger_headers) as stranger:
        for path, content in _SPECIAL_CONTENTS.items():
            own_status, own_text = await _read(comfy.session, path)
            assert (own_status, content in own_text) == (200, True), f"{path}: {own_text[:500]}"
            _, text = await _read(stranger, path)
            assert content not in text, path
            async with aiohttp.ClientSession(two_pools.url) as session:
                assert (await _read(session, path))[0] == 401
        devices = json.loads((await _read(comfy.session, "/system_stats"))[1])["devices"]
        own_devices = json.loads((await _read(stranger, "/system_stats"))[1])["devices"]
        assert (len(devices), len(own_devices)) == (2, 1)
        status, text = await _read(stranger, "/models?pool=special")
        assert (status, "available pools: default" in text) == (400, True)
        body = {"prompt": {"1": {"class_type": "SpecialNode", "inputs": {}}}}
        async with stranger.post("/prompt", json=body) as response:
            assert response.status == 400, "the default pool does not have the node"


async def _create_key(stack: RunningStack, owner: str) -> str:
    database = Database(stack.settings.sql_url)
    try:
        return (await KeyStore(database).create(owner, "test"))[1]
    finally:
        await database.close()


async def _read(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with session.get(path) as response:
        return response.status, (await response.read()).decode(errors="replace")


def _build_graph_with_model(name: str) -> dict[str, Any]:
    """Return a graph for a picture in which node 3 loads a model."""
    graph = picture(_pick_color())
    inputs = {"unet_name": name, "weight_dtype": "default"}
    graph["3"] = {"class_type": "UNETLoader", "inputs": inputs}
    graph["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    return graph


def test_jobs_name_their_pool(two_pools: RunningStack) -> None:
    client = StackClient(two_pools.url, two_pools.api_key)
    body = {"kind": "render", "workflow": sleepy(0.1, _pick_color()), "pool": "special"}
    job = client.wait(client.submit(body), FINAL, _UP_SECONDS)
    assert job["outputs"][0]["backend"] == _SPECIAL
