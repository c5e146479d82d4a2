"""Tests which pools, nodes and files a caller's graphs may use, with two pools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.node_info import merge_lists
from moyin.domain.graph_bounds import GraphBounds
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit, PoolRules
from moyin.domain.serialization import encode
from moyin.errors import (
    GraphTooLarge,
    InputNotFound,
    InvalidGraph,
    InvalidRequest,
    NodeNotAllowed,
    NotFound,
    ServiceUnavailable,
)
from moyin.jobs.protocol.renders import DEFAULT_POOL
from moyin.render.comfyui.pool_client import RULES_PATH, PoolResponse

LOAD = {
    "input": {"required": {"image": [["moyin/x"], {"image_upload": True}]}},
    "output": ["IMAGE"],
}
FOLDER = {"input": {"required": {"kind": ["COMBO", {"options": ["moyin", "moyin/a", "x"]}]}}}
NODES_PATH = {"Load": LOAD, "Folder": FOLDER, "SaveLoRA": {"input": {}}}
OWN = f"moyin/{'a' * 64}.png"


class FakePools:
    """Two fake pools with the given rules; a pool without rules is unavailable."""

    pools = ("a", "b")
    nodes_are_known = True

    def __init__(self, **rules: PoolRules) -> None:
        self._rules = rules

    async def get(self, pool: str, path: str) -> PoolResponse:
        if pool not in self._rules or not (self.nodes_are_known or path == RULES_PATH):
            raise ServiceUnavailable("the pool is unavailable")
        content = (
            encode(self._rules[pool]) if path == RULES_PATH else json.dumps(NODES_PATH).encode()
        )
        return PoolResponse(version="1", state="up", content=content)

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {}


def make_admission(bounds: GraphBounds | None = None, **rules: PoolRules) -> GraphAdmission:
    return GraphAdmission(NodeInfoCache(FakePools(**rules)), bounds)


def make_caller(owner: str = "ann", **limits: Any) -> Identity:
    caller_limits = (Limit(subject=f"owner:{owner}", **limits),) if limits else ()
    return Identity(owner=owner, key_id="k", limits=caller_limits)


def make_graph(node_class: str, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": node_class, "inputs": inputs}}


async def test_a_pool_serves_only_its_tenants() -> None:
    graph_admission = make_admission(a=PoolRules(tenants=("ann",)), b=PoolRules())
    for caller, names in (
        (make_caller("ann"), ("a", "b")),
        (make_caller("bob"), ("b",)),
        (make_caller("ann", pools=("a",)), ("a",)),
    ):
        pools = await graph_admission.find_pools(caller)
        assert (pools.names, pools.are_all_known) == (names, True)
    assert await graph_admission.choose_pool(make_caller("bob"), make_graph("Load")) == "b"


async def test_a_tenant_without_a_pool_gets_an_error() -> None:
    graph_admission = make_admission(a=PoolRules(tenants=("ann",)), b=PoolRules(tenants=("ann",)))
    with pytest.raises(InvalidRequest, match="no render pool runs your jobs"):
        await graph_admission.choose_pool(make_caller("bob"), make_graph("Load"))
    assert await graph_admission.list_nodes(make_caller("bob")) == {}


async def test_a_pool_is_closed_to_all_until_it_has_reported_whose_jobs_it_runs() -> None:
    graph_admission = make_admission(b=PoolRules())
    pools = await graph_admission.find_pools(make_caller("ann"))
    assert (pools.names, pools.are_all_known) == (("b",), False)
    assert await graph_admission.choose_pool(make_caller("ann"), make_graph("Load")) == "b"
    responses = []
    for name in ("a", "nowhere", DEFAULT_POOL):
        with pytest.raises(ServiceUnavailable, match="not reported yet") as exc_info:
            pools.assign(name)
        responses.append((exc_info.value.message, exc_info.value.retry_after))
    assert len(set(responses)) == 1, "the response does not tell which pools exist"
    with pytest.raises(ServiceUnavailable):
        await graph_admission.check_graph(make_caller(), "a", make_graph("Load"), ())
    graph_admission = make_admission()
    with pytest.raises(ServiceUnavailable, match="not reported yet"):
        await graph_admission.choose_pool(make_caller("ann"), make_graph("Load"))
    with pytest.raises(ServiceUnavailable, match="not reported yet"):
        await graph_admission.list_nodes(make_caller("ann"))


async def test_a_render_without_a_pool_of_the_default_name_goes_to_the_first() -> None:
    graph_admission = make_admission(a=PoolRules(tenants=("ann",)), b=PoolRules())
    assert (await graph_admission.find_pools(make_caller("bob"))).assign(DEFAULT_POOL) == "b"
    ann_pools = await graph_admission.find_pools(make_caller("ann"))
    assert (ann_pools.assign(DEFAULT_POOL), ann_pools.assign("b")) == ("a", "b")
    with pytest.raises(InvalidRequest, match="no render pool 'c'; available pools: a, b"):
        ann_pools.assign("c")


async def test_a_caller_without_pools_asks_none() -> None:
    graph_admission = make_admission(a=PoolRules(tenants=("ann",)), b=PoolRules(tenants=("ann",)))
    pools = await graph_admission.find_pools(make_caller("bob"))
    assert await pools.fetch_merged("/models", merge_lists, []) == []
    assert await pools.fetch_from_renderers("/system_stats") == []
    for fetch in (pools.fetch_first("/extensions/a.js"), pools.fetch_merged("/x", merge_lists)):
        with pytest.raises(NotFound):
            await fetch


async def test_a_graph_goes_to_a_pool_that_allows_its_nodes() -> None:
    graph_admission = make_admission(a=PoolRules(deny=("Load",)), b=PoolRules())
    assert await graph_admission.choose_pool(make_caller(), make_graph("Load")) == "b"
    assert await graph_admission.choose_pool(make_caller(), make_graph("Folder")) == "a"


async def test_denied_nodes_are_neither_listed_nor_accepted() -> None:
    graph_admission = make_admission(a=PoolRules())
    assert (await graph_admission.list_nodes(make_caller())).keys() == {"Load", "Folder"}
    limited_caller = make_caller(denied_nodes=("Fold*",))
    assert (await graph_admission.list_nodes(limited_caller)).keys() == {"Load"}
    assert (await graph_admission.list_nodes(make_caller(allowed_nodes=()))) == {}
    for identity, node_class, reason in (
        (make_caller(), "SaveLoRA", "this render pool does not allow nodes of class SaveLoRA"),
        (limited_caller, "Folder", "your limits do not allow nodes of class Folder"),
    ):
        with pytest.raises(NodeNotAllowed, match=reason) as exc_info:
            await graph_admission.check_graph(identity, "a", make_graph(node_class), ())
        assert exc_info.value.field == "1.class_type"
        assert exc_info.value.details["node_errors"]["1"]["class_type"] == node_class
    admission_without_denials = make_admission(a=PoolRules(deny=()))
    assert "SaveLoRA" in await admission_without_denials.list_nodes(make_caller())
    assert await admission_without_denials.check_graph(
        make_caller(), "a", make_graph("SaveLoRA"), ()
    )


async def test_the_nodes_of_one_pool_are_listed_for_its_tenants_only() -> None:
    graph_admission = make_admission(a=PoolRules(tenants=("ann",), deny=("Load",)), b=PoolRules())
    assert "Load" not in await graph_admission.list_nodes(make_caller("ann"), "a")
    assert "Load" in await graph_admission.list_nodes(make_caller("ann"), "b")
    for pool in ("a", "other"):
        with pytest.raises(InvalidRequest, match=f"no render pool '{pool}'.* pools: b") as exc_info:
            await graph_admission.list_nodes(make_caller("bob"), pool)
        assert exc_info.value.field == "pool"


async def test_the_input_folder_is_not_listed_as_a_choice() -> None:
    nodes = await make_admission(a=PoolRules()).list_nodes(make_caller())
    assert nodes["Folder"]["input"]["required"]["kind"][1]["options"] == ["x"]


async def test_a_file_name_that_is_not_the_callers_is_rejected_by_node_and_input() -> None:
    graph_admission = make_admission(a=PoolRules())
    assert await graph_admission.check_graph(
        make_caller(), "a", make_graph("Load", image=OWN), {OWN}
    )
    errors = []
    for name in ("/etc/passwd", "/etc/nope", OWN):
        with pytest.raises(InputNotFound, match="you have no file") as exc_info:
            await graph_admission.check_graph(
                make_caller(), "a", make_graph("Load", image=name), ()
            )
        errors.append((exc_info.value.message, exc_info.value.field, exc_info.value.details))
    assert errors[0] == errors[1] == errors[2]
    assert errors[0][1] == "1.inputs.image"
    unchecking_admission = make_admission(a=PoolRules(unchecked=("Load.ima*",)))
    assert await unchecking_admission.check_graph(
        make_caller(), "a", make_graph("Load", image="/data/x"), ()
    )


async def test_a_control_character_is_named() -> None:
    graph_admission = make_admission(a=PoolRules())
    for value in ("a\0b", {"lines": ["a\0b"]}):
        with pytest.raises(InvalidGraph, match=r"control character U\+0000.*remove it") as exc_info:
            await graph_admission.check_graph(
                make_caller(), "a", make_graph("Folder", prompt=value), ()
            )
        assert exc_info.value.field == "1.inputs.prompt"
        assert "U+0000" in str(exc_info.value.details["node_errors"]["1"])
    with pytest.raises(InputNotFound, match="image: you have no file"):
        await graph_admission.check_graph(
            make_caller(), "a", make_graph("Load", prompt="a\0b", image="/etc/nope"), ()
        )


async def test_a_pool_with_unknown_nodes_only_rejects_paths() -> None:
    pools = FakePools(a=PoolRules())
    pools.nodes_are_known = False
    graph_admission = GraphAdmission(NodeInfoCache(pools))
    assert (
        await graph_admission.check_graph(make_caller(), "a", make_graph("Load", image="x.png"), ())
        is False
    )
    with pytest.raises(InputNotFound):
        await graph_admission.check_graph(
            make_caller(), "a", make_graph("Load", image="../x.png"), ()
        )
    with pytest.raises(NodeNotAllowed):
        await graph_admission.check_graph(make_caller(), "a", make_graph("SaveLoRA"), ())


async def test_the_size_of_graphs_is_bounded_per_tenant() -> None:
    admission = make_admission(GraphBounds(nodes=2), a=PoolRules())
    graph = {str(number): {"class_type": "Load", "inputs": {}} for number in range(3)}
    with pytest.raises(GraphTooLarge) as exc_info:
        await admission.check_size(make_caller("ann"), [("workflow", graph)])
    assert exc_info.value.details == {"bound": "nodes", "max": 2, "actual": 3}
    assert exc_info.value.field == "workflow"
    await admission.check_size(make_caller("bob", graph_nodes=3), [("workflow", graph)])
