"""What the farm's ComfyUIs say, kept for who asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.node_info import union_of_lists
from moyin.errors import NotFound, ServiceUnavailable
from moyin.render.comfyui.pool_client import PoolAnswer


class Pools:
    """Says what it is told to; counts the questions."""

    def __init__(self, **said: Any) -> None:
        self.said = said
        self.asked: list[tuple[str, str]] = []
        self.asked_again = asyncio.Event()
        # By pool; of those that are here, no renderer is up.
        self.states: dict[str, Literal["starting", "down"]] = {}
        self.versions: dict[str, str] = {}
        self.free = asyncio.Event()
        self.free.set()

    @property
    def pools(self) -> list[str]:
        return ["a", "b"]

    async def get(self, pool: str, path: str) -> PoolAnswer:
        if (pool, path) in self.asked:
            self.asked_again.set()
        self.asked.append((pool, path))
        await self.free.wait()
        version = self.versions.get(pool, "1")
        if pool in self.states:
            return PoolAnswer(version=version, state=self.states[pool])
        if pool not in self.said:
            raise ServiceUnavailable("it is down")
        said = self.said[pool]
        content = None if said is None else json.dumps(said).encode()
        return PoolAnswer(version=version, state="up", content=content)

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {name: json.dumps(self.said[name]).encode() for name in [pool] if name in self.said}


async def lists(facts: NodeInfoCache, path: str = "/models/x") -> list[Any]:
    return await facts.union(path, union_of_lists)


async def test_pools_are_put_together_and_asked_once_by_many() -> None:
    pools = Pools(a=["1"], b=["2"])
    facts = NodeInfoCache(pools)
    assert await asyncio.gather(*(lists(facts) for _ in range(5))) == [["1", "2"]] * 5
    assert pools.asked == [("a", "/models/x"), ("b", "/models/x")]
    assert await facts.each("/x") == [["1"], ["2"]]
    assert json.loads(await facts.first("/models/x")) == ["1"]


async def test_what_is_old_is_said_while_the_new_is_fetched() -> None:
    pools = Pools(a=["1"], b=None)
    facts = NodeInfoCache(pools, fresh=0.0, patience=0.01)
    assert await lists(facts) == ["1"]
    pools.said["a"] = ["2"]
    pools.free.clear()
    assert await lists(facts) == ["1"]
    pools.free.set()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if await lists(facts) == ["2"]:
            break
    assert await lists(facts) == ["2"]
    await facts.close()


async def test_a_pool_that_went_away_is_remembered_and_one_that_never_came_is_not() -> None:
    pools = Pools(a=["1"])
    facts = NodeInfoCache(pools, fresh=0.0)
    assert await lists(facts) == ["1"]
    del pools.said["a"]
    assert await lists(facts) == ["1"]
    with pytest.raises(ServiceUnavailable):
        await lists(facts, "/models/y")


async def test_what_no_pool_has_is_not_there() -> None:
    with pytest.raises(NotFound):
        await lists(NodeInfoCache(Pools(a=None, b=None)))


@pytest.mark.parametrize(
    "path", ["/models/..", "/models/%2E%2e/x", "/preview/a//etc/x", "/preview/a/./x", "/models/"]
)
async def test_no_path_leads_to_another_route_of_the_worker(path: str) -> None:
    pools = Pools(a=["1"], b=["1"])
    with pytest.raises(NotFound):
        await lists(NodeInfoCache(pools), path)
    assert pools.asked == []


async def test_large_files_of_node_packages_are_not_kept() -> None:
    pools = Pools(a="x", b=None)
    facts = NodeInfoCache(pools)
    for size in (1, 2**18):
        pools.said["a"], pools.asked = "x" * size, []
        path = f"/extensions/pack/{size}.js"
        for _ in range(2):
            assert len(await facts.first(path)) == size + 2
        assert pools.asked.count(("a", path)) == (1 if size == 1 else 2)


async def test_nonsense_is_not_passed_on() -> None:
    class Odd(Pools):
        async def get(self, pool: str, path: str) -> PoolAnswer:
            return PoolAnswer(version="1", state="up", content=b"<html>")

    with pytest.raises(ServiceUnavailable):
        await lists(NodeInfoCache(Odd()))


async def test_nodes_outlive_a_restart(tmp_path: Path) -> None:
    assert await NodeInfoCache(Pools(a={"N": {}}), folder=tmp_path / "nodes").nodes() == {"N": {}}
    later = NodeInfoCache(Pools(), folder=tmp_path / "nodes")
    assert await later.nodes() == {"N": {}}
    with pytest.raises(ServiceUnavailable):
        await later.union("/models", union_of_lists)


def graph(kind: str, file: str) -> dict[str, Any]:
    return {"1": {"class_type": kind, "inputs": {"ckpt": file, "n": 1, "image": ["2", 0]}}}


async def test_a_graph_is_for_the_first_pool_that_has_its_nodes_and_files() -> None:
    def loader(*files: str) -> dict[str, Any]:
        return {"input": {"required": {"ckpt": [list(files)], "n": ["INT", {}]}}}

    pools = Pools(a={"Load": loader("x", "y")}, b={"Load": loader("y", "z"), "New": loader("z")})
    facts = NodeInfoCache(pools)
    assert await facts.pool_for(graph("Load", "y")) == "a"
    assert await facts.pool_for(graph("Load", "z")) == "b"
    assert await facts.pool_for(graph("New", "z")) == "b"
    assert await facts.pool_for(graph("New", "unlisted")) == "b", "it may take it all the same"
    assert await facts.pool_for(graph("Load", "unlisted")) == "a"
    assert await facts.pool_for(graph("None", "z")) == "a", "it says best what it lacks"
    assert await NodeInfoCache(Pools(b=pools.said["b"])).pool_for(graph("Load", "y")) == "b"
    assert await NodeInfoCache(Pools()).pool_for(graph("Load", "y")) == "a"


def one_node(name: str) -> dict[str, Any]:
    return {name: {"input": {"required": {"ckpt": [["x"]], "n": ["INT", {}]}}}}


async def test_a_graph_waits_for_an_earlier_pool_that_is_starting() -> None:
    pools = Pools(a=one_node("Load"), b=one_node("Load"))
    pools.states["a"] = "starting"
    facts = NodeInfoCache(pools)
    choice = asyncio.create_task(facts.pool_for(graph("Load", "x")))
    await pools.asked_again.wait()
    assert not choice.done()
    del pools.states["a"]
    assert await choice == "a"


async def test_a_graph_does_not_wait_for_a_later_pool() -> None:
    pools = Pools(a=one_node("Load"))
    pools.states["b"] = "starting"
    assert await NodeInfoCache(pools).pool_for(graph("Load", "x")) == "a"
    assert {pool for pool, _ in pools.asked} == {"a"}


async def test_a_graph_is_refused_for_now_when_an_earlier_pool_starts_for_too_long() -> None:
    pools = Pools(b=one_node("Load"))
    pools.states["a"] = "starting"
    with pytest.raises(ServiceUnavailable, match="'a' is starting") as refused:
        await NodeInfoCache(pools, start=0.01).pool_for(graph("Load", "x"))
    assert refused.value.retry_after


async def test_a_pool_that_is_slow_to_answer_is_not_passed_over() -> None:
    pools = Pools(a=one_node("Load"), b=one_node("Load"))
    pools.free.clear()
    facts = NodeInfoCache(pools, start=0.05)
    with pytest.raises(ServiceUnavailable, match="'a' is starting"):
        await facts.pool_for(graph("Load", "x"))
    pools.free.set()
    assert await facts.pool_for(graph("Load", "x")) == "a"
    await facts.close()


async def test_a_pool_that_is_down_and_never_answered_is_passed_over() -> None:
    pools = Pools(b=one_node("Load"))
    pools.states["a"] = "down"
    assert await NodeInfoCache(pools).pool_for(graph("Load", "x")) == "b"


async def test_facts_end_with_the_configuration_that_they_were_told_by(tmp_path: Path) -> None:
    pools = Pools(a=one_node("Load"), b=one_node("Load"))
    facts = NodeInfoCache(pools, fresh=0.0, start=0.05, folder=tmp_path / "nodes")
    assert await facts.pool_for(graph("Load", "x")) == "a"
    pools.states["a"] = "starting"
    assert await facts.pool_for(graph("Load", "x")) == "a", "it has the same configuration"
    pools.versions["a"] = "2"
    with pytest.raises(ServiceUnavailable, match="'a' is starting"):
        await facts.pool_for(graph("Load", "x"))
    restarted = NodeInfoCache(pools, start=0.05, folder=tmp_path / "nodes")
    with pytest.raises(ServiceUnavailable, match="'a' is starting"):
        await restarted.pool_for(graph("Load", "x"))
    del pools.states["a"]
    pools.said["a"] = one_node("Other")
    assert await facts.pool_for(graph("Load", "x")) == "b"


async def test_a_pool_is_asked_again_about_nodes_only_when_one_is_new() -> None:
    load = {"input": {"required": {"image": [[], {"image_upload": True}]}}}
    pools = Pools(a={"Load": load})
    facts = NodeInfoCache(pools, fresh=0.0)
    for _ in range(3):
        known = await facts.inputs("a", {"Load"})
        assert known is not None and known["Load"]["image"].kind == "file"
    assert pools.asked == [("a", "/object_info")]
    pools.said["a"]["New"] = load
    known = await facts.inputs("a", {"Load", "New"})
    assert known is not None and known.keys() == {"Load", "New"}
    assert await facts.inputs("b", {"Load"}) is None
