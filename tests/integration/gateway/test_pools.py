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
from tests.integration.gateway.fixtures import Farm, ScriptedPools, Services
from tests.integration.servers import TemporalServer, ValkeyServer

NODES_PATH = {
    name: {"input": {}, "output": [], "output_node": True}
    for name in ("EmptyImage", "Secret", "SaveLoRA")
}
MODEL = {"input": {"required": {"ckpt_name": [["sea.safetensors"], {}]}}, "output": ["MODEL"]}
LOAD = {"input": {"required": {"image": [[], {"image_upload": True}]}}, "output": ["IMAGE"]}
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


class Pools(ScriptedPools):
    """``fast`` belongs to the tenant Ann, and forbids ``Secret`` and ``SaveLoRA`` to everyone."""

    rules: Mapping[str, PoolRules] = {
        "fast": PoolRules(tenants=("ann",), deny=("Secret", "SaveLoRA"))
    }

    async def get(self, pool: str, path: str) -> PoolResponse:
        content = None
        if path == RULES_PATH:
            content = encode(self.rules.get(pool, PoolRules()))
        elif path == "/object_info":
            content = json.dumps({**NODES_PATH, "Load": LOAD, "Model": MODEL}).encode()
        return PoolResponse(version="1", state="up", content=content)


@pytest.fixture
async def farm(
    tmp_path: Path, temporal_server: TemporalServer, valkey_server: ValkeyServer
) -> AsyncIterator[Farm]:
    farm = Farm(tmp_path, temporal_server, valkey_server, Services())
    farm.scripted_pools = Pools()
    await farm.open()
    yield farm
    await farm.close()


async def post_json(
    session: aiohttp.ClientSession, path: str, body: Any
) -> tuple[int, dict[str, Any]]:
    async with session.post(path, json=body) as response:
        return response.status, await response.json()


def job(graph: Mapping[str, Any], **members: Any) -> dict[str, Any]:
    return {"kind": "render", "workflow": graph, **members}


async def find_pool(farm: Farm, job_id: str) -> str:
    spec = await farm.blobs.get((await farm.jobs.find(job_id)).spec)
    return str(json.loads(spec)["steps"][0]["pool"])


async def list_nodes(session: aiohttp.ClientSession) -> set[str]:
    async with session.get("/object_info") as response:
        return set(await response.json())


async def test_a_pool_of_other_tenants_is_not_found(farm: Farm) -> None:
    status, _ = await post_json(farm.client, "/jobs", job(GRAPH, pool="fast"))
    assert status == 202
    pipeline = {"kind": "pipeline", "steps": [job(GRAPH), job(GRAPH, pool="fast")]}
    batch = job(GRAPH, pool="fast") | {"batch": {"sweep": {"workflow.1.inputs.x": [1]}}}
    graph = {"1": {"class_type": "EmptyImage", "inputs": {"x": 1}}}
    for body, field in (
        (job(GRAPH, pool="fast"), "pool"),
        (pipeline, "steps.1.pool"),
        ({**batch, "workflow": graph}, "pool"),
    ):
        status, problem = await post_json(farm.other, "/jobs", body)
        assert (status, problem["code"], problem["field"]) == (400, "invalid_request", field)
        assert problem["detail"] == "there is no render pool 'fast'; available pools: default"


async def test_a_tenant_that_is_bound_to_pools_runs_nowhere_else(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:ann", pools=("fast",)))
    status, problem = await post_json(farm.client, "/jobs", job(GRAPH, pool="default"))
    assert status == 202, "the default is the first that it may use"
    assert await find_pool(farm, problem["id"]) == "fast"
    status, answer = await post_json(farm.client, "/prompt", {"prompt": GRAPH})
    assert (status, await find_pool(farm, answer["prompt_id"])) == (200, "fast")
    status, answer = await post_json(farm.client, "/api/v2/jobs", {"workflow": GRAPH})
    assert (status, await find_pool(farm, answer["id"])) == (201, "fast")
    status, answer = await post_json(farm.client, "/prompt", {"prompt": {"1": {
        "class_type": "Secret", "inputs": {}}}})  # fmt: skip
    assert (status, answer["code"]) == (400, "node_not_allowed"), "another pool would take it"


async def test_a_tenant_without_any_pool_renders_nothing(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:bob", pools=("fast",)))
    status, problem = await post_json(farm.other, "/jobs", job(GRAPH))
    assert (status, problem["field"]) == (400, "pool")
    status, answer = await post_json(farm.other, "/prompt", {"prompt": GRAPH})
    assert (status, answer["code"]) == (400, "invalid_request")
    assert await list_nodes(farm.other) == set()


async def test_a_node_that_is_denied_is_not_shown_and_not_taken(farm: Farm) -> None:
    assert await list_nodes(farm.client) == {"EmptyImage", "Secret", "Load", "Model"}
    limit = Limit(subject="owner:bob", denied_nodes=("Sec*",))
    await LimitStore(farm.database).set(limit)
    assert await list_nodes(farm.other) == {"EmptyImage", "Load", "Model"}
    async with farm.other.get("/object_info/Secret") as response:
        assert await response.json() == {}
    for session, kind in ((farm.client, "SaveLoRA"), (farm.other, "Secret")):
        graph = {"7": {"class_type": kind, "inputs": {}}}
        status, answer = await post_json(session, "/prompt", {"prompt": graph})
        assert (status, answer["code"]) == (400, "node_not_allowed")
        assert answer["node_errors"]["7"]["class_type"] == kind
        status, problem = await post_json(session, "/jobs", job(graph))
        assert (status, problem["code"]) == (400, "node_not_allowed")
        assert problem["field"] == "workflow.7.class_type"
        assert kind in problem["detail"] and "'7'" in problem["detail"]
        status, answer = await post_json(session, "/api/v2/jobs", {"workflow": graph})
        assert (status, answer["error"]["code"]) == (422, "invalid_workflow")
        assert answer["error"]["details"]["code"] == "node_not_allowed"


async def test_a_limit_of_pools_and_nodes_is_kept(farm: Farm) -> None:
    store = LimitStore(farm.database)
    limit = Limit(subject="owner:x", pools=("a", "b"), allowed_nodes=(), denied_nodes=("C*",))
    await store.set(limit)
    assert await store.list_for(["owner:x"]) == (limit,)
    await store.set(Limit(subject="owner:x", open_jobs=1))
    assert await store.list_for(["owner:x"]) == (Limit(subject="owner:x", open_jobs=1),)


async def test_a_graph_of_the_editor_is_converted_for_the_pools_of_its_tenant(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:bob", denied_nodes=("Sec*",)))
    async with farm.other.post("/upload/image", data={"image": b"picture"}) as response:
        assert response.status == 200
    upload = (await response.json())["name"]
    nodes = [
        node(1, "Secret"),
        node(2, "Model", ["sea.safetensors"]),
        node(3, "Model", ["lake.safetensors"]),
        node(4, "Load", ["mine.png", "image"]),
        node(5, "Load", [upload, "image"]),
        node(6, "Note", ["Hello"]),
    ]
    saved = graph(nodes, [])
    status, body = await post_json(farm.other, "/graphs/convert", {"graph": saved})
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
    status, again = await post_json(
        farm.other, "/graphs/convert", {"graph": {"prompt": body["graph"]}}
    )
    assert (status, again["format"], again["left_out"]) == (200, "api", [])
    assert (again["graph"], again["missing"]) == (body["graph"], body["missing"])
    for request, field in (
        ({}, "graph"),
        ({"graph": saved, "pool": "fast"}, "pool"),
        ({"graph": {"nodes": [{"id": 1}]}}, "graph.nodes.0.type"),
        ({"graph": {"1": {"inputs": {}}}}, "graph.1.class_type"),
        ({"graph": {}}, "graph"),
    ):
        status, problem = await post_json(farm.other, "/graphs/convert", request)
        assert (status, problem["code"], problem["field"]) == (400, "invalid_request", field)
    big = {"1": {"class_type": "EmptyImage", "inputs": {"seed": 2**64 - 1}}}
    status, body = await post_json(farm.client, "/graphs/convert", {"graph": big, "pool": "fast"})
    assert (status, body["graph"], body["pool"]) == (200, big, "fast")
