"""Which pools, nodes and files a caller's graphs may have, by what two pools say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from moyin.comfy_api.admission import Admission
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.domain.pools import PoolRules
from moyin.domain.serialization import encode
from moyin.errors import InputNotFound, InvalidRequest, NodeNotAllowed, ServiceUnavailable
from moyin.render.comfyui.pool_client import RULES, PoolAnswer

LOAD = {
    "input": {"required": {"image": [["moyin/x"], {"image_upload": True}]}},
    "output": ["IMAGE"],
}
FOLDER = {"input": {"required": {"kind": ["COMBO", {"options": ["moyin", "moyin/a", "x"]}]}}}
NODES = {"Load": LOAD, "Folder": FOLDER, "SaveLoRA": {"input": {}}}
OWN = f"moyin/{'a' * 64}.png"


class Pools:
    """Two pools with rules of their own; one without is not up."""

    pools = ("a", "b")

    def __init__(self, **rules: PoolRules) -> None:
        self._rules = rules

    async def ask(self, pool: str, path: str) -> PoolAnswer:
        if pool not in self._rules:
            raise ServiceUnavailable("it is down")
        content = encode(self._rules[pool]) if path == RULES else json.dumps(NODES).encode()
        return PoolAnswer(version="1", state="up", content=content)

    async def ask_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {}


def admission(**rules: PoolRules) -> Admission:
    return Admission(NodeInfoCache(Pools(**rules)))


def caller(owner: str = "ann", **limits: Any) -> Identity:
    found = (Limit(subject=f"owner:{owner}", **limits),) if limits else ()
    return Identity(owner=owner, key_id="k", limits=found)


def graph(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"1": {"class_type": kind, "inputs": inputs}}


async def test_a_pool_of_some_tenants_is_there_for_them_alone() -> None:
    guard = admission(a=PoolRules(tenants=("ann",)), b=PoolRules())
    assert await guard.pools(caller("ann")) == ["a", "b"]
    assert await guard.pools(caller("bob")) == ["b"]
    assert await guard.pools(caller("ann", pools=("a",))) == ["a"]
    assert await guard.pool_for(caller("bob"), graph("Load")) == "b"


async def test_a_tenant_without_a_pool_is_told_so() -> None:
    guard = admission(a=PoolRules(tenants=("ann",)), b=PoolRules(tenants=("ann",)))
    with pytest.raises(InvalidRequest, match="no render pool runs your jobs"):
        await guard.pool_for(caller("bob"), graph("Load"))
    assert await guard.nodes(caller("bob")) == {}


async def test_a_graph_goes_to_a_pool_that_allows_its_nodes() -> None:
    guard = admission(a=PoolRules(deny=("Load",)), b=PoolRules())
    assert await guard.pool_for(caller(), graph("Load")) == "b"
    assert await guard.pool_for(caller(), graph("Folder")) == "a"


async def test_nodes_that_are_not_allowed_are_neither_shown_nor_taken() -> None:
    guard = admission(a=PoolRules())
    assert (await guard.nodes(caller())).keys() == {"Load", "Folder"}
    limited = caller(denied_nodes=("Fold*",))
    assert (await guard.nodes(limited)).keys() == {"Load"}
    assert (await guard.nodes(caller(allowed_nodes=()))) == {}
    for who, kind, why in (
        (caller(), "SaveLoRA", "this render pool allows no nodes of the class SaveLoRA"),
        (limited, "Folder", "your limits allow no nodes of the class Folder"),
    ):
        with pytest.raises(NodeNotAllowed, match=why) as refused:
            await guard.check(who, "a", graph(kind), ())
        assert refused.value.field == "1.class_type"
        assert refused.value.details["node_errors"]["1"]["class_type"] == kind
    everything = admission(a=PoolRules(deny=()))
    assert "SaveLoRA" in await everything.nodes(caller())
    assert await everything.check(caller(), "a", graph("SaveLoRA"), ())


async def test_the_folder_of_input_files_is_not_offered() -> None:
    nodes = await admission(a=PoolRules()).nodes(caller())
    assert nodes["Folder"]["input"]["required"]["kind"][1]["options"] == ["x"]


async def test_a_name_that_is_not_the_callers_is_refused_by_node_and_input() -> None:
    guard = admission(a=PoolRules())
    assert await guard.check(caller(), "a", graph("Load", image=OWN), {OWN})
    answers = []
    for name in ("/etc/passwd", "/etc/nope", OWN):
        with pytest.raises(InputNotFound, match="no file of yours") as refused:
            await guard.check(caller(), "a", graph("Load", image=name), ())
        answers.append((refused.value.message, refused.value.field, refused.value.details))
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][1] == "1.inputs.image"
    free = admission(a=PoolRules(unchecked=("Load.ima*",)))
    assert await free.check(caller(), "a", graph("Load", image="/data/x"), ())


async def test_of_a_pool_that_never_said_what_it_has_only_paths_are_refused() -> None:
    guard = admission()
    assert await guard.check(caller(), "a", graph("Load", image="x.png"), ()) is False
    with pytest.raises(InputNotFound):
        await guard.check(caller(), "a", graph("Load", image="../x.png"), ())
    with pytest.raises(NodeNotAllowed):
        await guard.check(caller(), "a", graph("SaveLoRA"), ())
