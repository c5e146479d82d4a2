"""Tests pools that only some tenants may use, and forbidden nodes, in every API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.domain.limits import Limit, PoolRules
from moyin.domain.serialization import encode
from moyin.render.comfyui.pool_client import RULES_PATH, PoolResponse
from moyin.store.limits import LimitStore
from tests.editor_graphs import graph, node
from tests.integration.gateway.fixtures import Farm, ScriptedPools, ScriptedService
from tests.integration.servers import TemporalServer, ValkeyServer

NODE_DESCRIPTIONS = {
    name: {"input": {}, "output": [], "output_node": True}
    for name in ("EmptyImage", "Secret", "SaveLoRA")
}
MODEL = {"input": {"required": {"ckpt_name": [["sea.safetensors"], {}]}}, "output": ["MODEL"]}
LOAD = {"input": {"required": {"image": [[], {"image_upload": True}]}}, "output": ["IMAGE"]}
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


class RestrictedPools(ScriptedPools):
    """Simulates two pools: ``fast`` serves only the tenant Ann, and forbids two node classes."""

    rules: Mapping[str, PoolRules] = {
        "fast": PoolRules(tenants=("ann",), deny=("Secret", "SaveLoRA"))
    }

    async def get(self, pool: str, path: str) -> PoolResponse:
        content = None
        if path == RULES_PATH:
            content = encode(self.rules.get(pool, PoolRules()))
        elif path == "/object_info":
            content = json.dumps({**NODE_DESCRIPTIONS, "Load": LOAD, "Model": MODEL}).encode()
        return PoolResponse(version="1", state="up", content=content)


@pytest.fixture
async def farm(
    tmp_path: Path, temporal_server: TemporalServer, valkey_server: ValkeyServer
) -> AsyncIterator[Farm]:
    farm = Farm(tmp_path, temporal_server, valkey_server, ScriptedService())
    farm.scripted_pools = RestrictedPools()
    await farm.open()
    yield farm
    await farm.close()


async def post_json(
    session: aiohttp.ClientSession, path: str, body: Any
) -> tuple[int, dict[str, Any]]:
    async with session.post(path, json=body) as response:
        return response.status, await response.json()


def build_render_body(graph: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    return {"kind": "render", "workflow": graph, **members}


async def find_pool(farm: Farm, job_id: str) -> str:
    spec = await farm.blobs.get((await farm.jobs.find(job_id)).spec)
    return str(json.loads(spec)["steps"][0]["pool"])


async def list_nodes(session: aiohttp.ClientSession) -> set[str]:
    async with session.get("/object_info") as response:
        return set(await response.json())


async def test_a_pool_of_other_tenants_is_not_found(farm: Farm) -> None:
    status, _ = await post_json(farm.client, "/jobs", build_render_body(GRAPH, pool="fast"))
    assert status == 202
    pipeline = {
        "kind": "pipeline",
        "steps": [build_render_body(GRAPH), build_render_body(GRAPH, pool="fast")],
    }
    batch = build_render_body(GRAPH, pool="fast") | {
        "batch": {"sweep": {"workflow.1.inputs.x": [1]}}
    }
    graph = {"1": {"class_type": "EmptyImage", "inputs": {"x": 1}}}
    for body, field in (
        (build_render_body(GRAPH, pool="fast"), "pool"),
        (pipeline, "steps.1.pool"),
        ({**batch, "workflow": graph}, "pool"),
    ):
        status, problem = await post_json(farm.other, "/jobs", body)
        assert (status, problem["code"], problem["field"]) == (400, "invalid_request", field)
        assert problem["detail"] == "there is no render pool 'fast'; available pools: default"


async def test_tenant_limited_to_some_pools_renders_only_there(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:ann", pools=("fast",)))
    status, job_body = await post_json(
        farm.client, "/jobs", build_render_body(GRAPH, pool="default")
    )
    assert status == 202, "the default is the first that it may use"
    assert await find_pool(farm, job_body["id"]) == "fast"
    status, response_body = await post_json(farm.client, "/prompt", {"prompt": GRAPH})
    assert (status, await find_pool(farm, response_body["prompt_id"])) == (200, "fast")
    status, response_body = await post_json(farm.client, "/api/v2/jobs", {"workflow": GRAPH})
    assert (status, await find_pool(farm, response_body["id"])) == (201, "fast")
    status, response_body = await post_json(farm.client, "/prompt", {"prompt": {"1": {
        "class_type": "Secret", "inputs": {}}}})  # fmt: skip
    assert (status, response_body["code"]) == (400, "node_not_allowed"), (
        "a pool outside the limit would accept this node"
    )


async def test_a_tenant_without_any_pool_renders_nothing(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:bob", pools=("fast",)))
    status, problem = await post_json(farm.other, "/jobs", build_render_body(GRAPH))
    assert (status, problem["field"]) == (400, "pool")
    status, response_body = await post_json(farm.other, "/prompt", {"prompt": GRAPH})
    assert (status, response_body["code"]) == (400, "invalid_request")
    assert await list_nodes(farm.other) == set()


async def test_denied_node_is_hidden_and_refused(farm: Farm) -> None:
    assert await list_nodes(farm.client) == {"EmptyImage", "Secret", "Load", "Model"}
    limit = Limit(subject="owner:bob", denied_nodes=("Sec*",))
    await LimitStore(farm.database).set(limit)
    assert await list_nodes(farm.other) == {"EmptyImage", "Load", "Model"}
    async with farm.other.get("/object_info/Secret") as response:
        assert await response.json() == {}
    for session, node_class in ((farm.client, "SaveLoRA"), (farm.other, "Secret")):
        graph = {"7": {"class_type": node_class, "inputs": {}}}
        status, response_body = await post_json(session, "/prompt", {"prompt": graph})
        assert (status, response_body["code"]) == (400, "node_not_allowed")
        assert response_body["node_errors"]["7"]["class_type"] == node_class
        status, problem = await post_json(session, "/jobs", build_render_body(graph))
        assert (status, problem["code"]) == (400, "node_not_allowed")
        assert problem["field"] == "workflow.7.class_type"
        assert node_class in problem["detail"] and "'7'" in problem["detail"]
        status, response_body = await post_json(session, "/api/v2/jobs", {"workflow": graph})
        assert (status, response_body["error"]["code"]) == (422, "invalid_workflow")
        assert response_body["error"]["details"]["code"] == "node_not_allowed"


async def test_limits_of_pools_and_nodes_are_stored(farm: Farm) -> None:
    store = LimitStore(farm.database)
    limit = Limit(subject="owner:x", pools=("a", "b"), allowed_nodes=(), denied_nodes=("C*",))
    await store.set(limit)
    assert await store.list_for(["owner:x"]) == (limit,)
    await store.set(Limit(subject="owner:x", open_jobs=1))
    assert await store.list_for(["owner:x"]) == (Limit(subject="owner:x", open_jobs=1),)


async def test_a_graph_of_the_editor_is_converted_for_the_pools_of_its_tenant(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:bob", denied_nodes=("Sec*",)))
    form = aiohttp.FormData()
    form.add_field("image", b"picture", filename="own.png")
    async with farm.other.post("/upload/image", data=form) as response:
        assert response.status == 200
        file_name = (await response.json())["name"]
    nodes = [
        node(1, "Secret"),
        node(2, "Model", ["sea.safetensors"]),
        node(3, "Model", ["lake.safetensors"]),
        node(4, "Load", ["mine.png", "image"]),
        node(5, "Load", [file_name, "image"]),
        node(6, "Note", ["Hello"]),
    ]
    editor_graph = graph(nodes, [])
    status, body = await post_json(farm.other, "/graphs/convert", {"graph": editor_graph})
    assert (status, body["format"], body["pool"]) == (200, "editor", "default")
    assert body["graph"].keys() == {"1", "2", "3", "4", "5"}
    assert body["missing"] == {
        "nodes": [{"class_type": "Secret", "nodes": ["1"]}],
        "choices": [
            {"node": "3", "class_type": "Model", "input": "ckpt_name", "value": "lake.safetensors"}
        ],
        "files": [{"node": "4", "class_type": "Load", "input": "image", "value": "mine.png"}],
    }
    assert [(part["reason"], part["node"]) for part in body["left_out"]] == [("note", "6")]
    # The API format, and the body of a prompt, are taken as they are.
    status, second_body = await post_json(
        farm.other, "/graphs/convert", {"graph": {"prompt": body["graph"]}}
    )
    assert (status, second_body["format"], second_body["left_out"]) == (200, "api", [])
    assert (second_body["graph"], second_body["missing"]) == (body["graph"], body["missing"])
    for invalid_body, field in (
        ({}, "graph"),
        ({"graph": editor_graph, "pool": "fast"}, "pool"),
        ({"graph": {"nodes": [{"id": 1}]}}, "graph.nodes.0.type"),
        ({"graph": {"1": {"inputs": {}}}}, "graph.1.class_type"),
        ({"graph": {}}, "graph"),
    ):
        status, problem = await post_json(farm.other, "/graphs/convert", invalid_body)
        assert (status, problem["code"], problem["field"]) == (400, "invalid_request", field)
    large_seed_graph = {"1": {"class_type": "EmptyImage", "inputs": {"seed": 2**64 - 1}}}
    status, body = await post_json(
        farm.client, "/graphs/convert", {"graph": large_seed_graph, "pool": "fast"}
    )
    assert (status, body["graph"], body["pool"]) == (200, large_seed_graph, "fast")
