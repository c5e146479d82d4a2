"""Tests how `NodeInfoCache` caches and merges the responses of pools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.node_info import merge_lists
from moyin.errors import BackendError, NotFound, ServiceUnavailable
from moyin.render.comfyui.pool_client import PoolResponse

POOLS = ["a", "b"]


class FakePools:
    """Two fake pools, a and b, with the given responses and a record of the requests."""

    def __init__(self, **responses: Any) -> None:
        self.responses = responses
        self.requests: list[tuple[str, str]] = []
        self.was_repeated = asyncio.Event()
        # By pool: the state of a pool whose renderers are not up.
        self.states: dict[str, Literal["starting", "down"]] = {}
        self.versions: dict[str, str] = {}
        self.may_respond = asyncio.Event()
        self.may_respond.set()

    @property
    def pools(self) -> list[str]:
        return POOLS

    async def get(self, pool: str, path: str) -> PoolResponse:
        if (pool, path) in self.requests:
            self.was_repeated.set()
        self.requests.append((pool, path))
        await self.may_respond.wait()
        version = self.versions.get(pool, "1")
        if pool in self.states:
            return PoolResponse(version=version, state=self.states[pool])
        if pool not in self.responses:
            raise ServiceUnavailable("the pool is unavailable")
        responses = self.responses[pool]
        if isinstance(responses, Exception):
            raise responses
        content = None if responses is None else json.dumps(responses).encode()
        return PoolResponse(version=version, state="up", content=content)

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {
            name: json.dumps(self.responses[name]).encode()
            for name in [pool]
            if name in self.responses
        }


async def fetch_merged_list(node_info: NodeInfoCache, path: str = "/models/x") -> list[Any]:
    return await node_info.fetch_merged_responses(path, merge_lists, POOLS)


async def test_pools_are_merged_and_concurrent_requests_share_a_call() -> None:
    pools = FakePools(a=["1"], b=["2"])
    node_info = NodeInfoCache(pools)
    assert (
        await asyncio.gather(*(fetch_merged_list(node_info) for _ in range(5))) == [["1", "2"]] * 5
    )
    assert pools.requests == [("a", "/models/x"), ("b", "/models/x")]
    assert await node_info.fetch_from_renderers("/x", POOLS) == [["1"], ["2"]]
    assert json.loads(await node_info.fetch_first("/models/x", POOLS)) == ["1"]


async def test_fetching_the_list_of_one_pool_does_not_change_the_merged_list() -> None:
    node_info = NodeInfoCache(FakePools(a=["1"], b=["2"]))
    assert await node_info.fetch_merged_responses("/models/x", merge_lists, ["b"]) == ["2"]
    assert await fetch_merged_list(node_info) == ["1", "2"]
    assert await node_info.fetch_merged_responses("/models/x", merge_lists, ["b"]) == ["2"]


async def test_an_old_response_is_served_while_a_new_one_is_fetched() -> None:
    pools = FakePools(a=["1"], b=None)
    node_info = NodeInfoCache(pools, fresh_seconds=0.0, wait_seconds=0.01)
    assert await fetch_merged_list(node_info) == ["1"]
    pools.responses["a"] = ["2"]
    pools.may_respond.clear()
    assert await fetch_merged_list(node_info) == ["1"]
    pools.may_respond.set()
    for _ in range(100):
        await asyncio.sleep(0.01)
        if await fetch_merged_list(node_info) == ["2"]:
            break
    assert await fetch_merged_list(node_info) == ["2"]
    await node_info.close()


async def test_the_response_of_a_pool_that_went_down_stays_cached() -> None:
    pools = FakePools(a=["1"])
    node_info = NodeInfoCache(pools, fresh_seconds=0.0)
    assert await fetch_merged_list(node_info) == ["1"]
    del pools.responses["a"]
    assert await fetch_merged_list(node_info) == ["1"]
    with pytest.raises(ServiceUnavailable):
        await fetch_merged_list(node_info, "/models/y")


async def test_a_pools_response_that_is_too_large_hides_no_other_pool() -> None:
    pools = FakePools(a=BackendError("the response exceeds the limit"), b=["2"])
    assert await fetch_merged_list(NodeInfoCache(pools)) == ["2"]
    pools.responses["b"] = BackendError("the response exceeds the limit")
    with pytest.raises(BackendError, match="exceeds the limit"):
        await fetch_merged_list(NodeInfoCache(pools))


async def test_a_path_that_no_pool_has_is_not_found() -> None:
    with pytest.raises(NotFound):
        await fetch_merged_list(NodeInfoCache(FakePools(a=None, b=None)))


@pytest.mark.parametrize(
    "path", ["/models/..", "/models/%2E%2e/x", "/preview/a//etc/x", "/preview/a/./x", "/models/"]
)
async def test_no_path_reaches_another_route_of_the_worker(path: str) -> None:
    pools = FakePools(a=["1"], b=["1"])
    with pytest.raises(NotFound):
        await fetch_merged_list(NodeInfoCache(pools), path)
    assert pools.requests == []


async def test_large_files_of_node_packages_are_not_cached() -> None:
    pools = FakePools(a="x", b=None)
    node_info = NodeInfoCache(pools)
    for size in (1, 2**18):
        pools.responses["a"], pools.requests = "x" * size, []
        path = f"/extensions/pack/{size}.js"
        for _ in range(2):
            assert len(await node_info.fetch_first(path, POOLS)) == size + 2
        assert pools.requests.count(("a", path)) == (1 if size == 1 else 2)


async def test_requests_for_many_paths_do_not_displace_what_pools_report() -> None:
    pools = FakePools(a=make_nodes("Load"), b=None)
    node_info = NodeInfoCache(pools)
    for _ in range(2):
        await node_info.fetch_nodes(["a"])
        for number in range(300):
            await node_info.fetch_first(f"/models/{number}", ["a"])
    assert pools.requests.count(("a", "/object_info")) == 1


async def test_malformed_responses_are_not_forwarded() -> None:
    class MalformedPools(FakePools):
        async def get(self, pool: str, path: str) -> PoolResponse:
            return PoolResponse(version="1", state="up", content=b"<html>")

    with pytest.raises(ServiceUnavailable):
        await fetch_merged_list(NodeInfoCache(MalformedPools()))


async def test_nodes_survive_a_restart(tmp_path: Path) -> None:
    assert await NodeInfoCache(FakePools(a={"N": {}}), folder=tmp_path / "nodes").fetch_nodes(
        POOLS
    ) == {"N": {}}
    restarted_cache = NodeInfoCache(FakePools(), folder=tmp_path / "nodes")
    assert await restarted_cache.fetch_nodes(POOLS) == {"N": {}}
    with pytest.raises(ServiceUnavailable):
        await restarted_cache.fetch_merged_responses("/models", merge_lists, POOLS)


def make_graph(node_class: str, model_file: str) -> dict[str, Any]:
    return {
        "1": {"class_type": node_class, "inputs": {"ckpt": model_file, "n": 1, "image": ["2", 0]}}
    }


async def test_a_graph_gets_the_first_pool_that_has_its_nodes_and_files() -> None:
    def make_loader_node(*files: str) -> dict[str, Any]:
        return {"input": {"required": {"ckpt": [list(files)], "n": ["INT", {}]}}}

    pools = FakePools(
        a={"Load": make_loader_node("x", "y")},
        b={"Load": make_loader_node("y", "z"), "New": make_loader_node("z")},
    )
    node_info = NodeInfoCache(pools)
    assert await node_info.choose_pool(make_graph("Load", "y"), POOLS) == "a"
    assert await node_info.choose_pool(make_graph("Load", "z"), POOLS) == "b"
    assert await node_info.choose_pool(make_graph("New", "z"), POOLS) == "b"
    assert await node_info.choose_pool(make_graph("New", "unlisted"), POOLS) == "b", (
        "it may still have the file"
    )
    assert await node_info.choose_pool(make_graph("Load", "unlisted"), POOLS) == "a"
    assert await node_info.choose_pool(make_graph("None", "z"), POOLS) == "a", (
        "its error is the most useful"
    )
    assert (
        await NodeInfoCache(FakePools(b=pools.responses["b"])).choose_pool(
            make_graph("Load", "y"), POOLS
        )
        == "b"
    )
    assert await NodeInfoCache(FakePools()).choose_pool(make_graph("Load", "y"), POOLS) == "a"


def make_nodes(name: str) -> dict[str, Any]:
    return {name: {"input": {"required": {"ckpt": [["x"]], "n": ["INT", {}]}}}}


async def test_a_graph_waits_for_an_earlier_pool_that_is_starting() -> None:
    pools = FakePools(a=make_nodes("Load"), b=make_nodes("Load"))
    pools.states["a"] = "starting"
    node_info = NodeInfoCache(pools)
    choosing_task = asyncio.create_task(node_info.choose_pool(make_graph("Load", "x"), POOLS))
    await pools.was_repeated.wait()
    assert not choosing_task.done()
    del pools.states["a"]
    assert await choosing_task == "a"


async def test_a_graph_does_not_wait_for_a_later_pool() -> None:
    pools = FakePools(a=make_nodes("Load"))
    pools.states["b"] = "starting"
    assert await NodeInfoCache(pools).choose_pool(make_graph("Load", "x"), POOLS) == "a"
    assert {pool for pool, _ in pools.requests} == {"a"}


async def test_a_graph_is_rejected_when_an_earlier_pool_takes_too_long_to_start() -> None:
    pools = FakePools(b=make_nodes("Load"))
    pools.states["a"] = "starting"
    with pytest.raises(ServiceUnavailable, match="'a' is starting") as exc_info:
        await NodeInfoCache(pools, start_seconds=0.01).choose_pool(make_graph("Load", "x"), POOLS)
    assert exc_info.value.retry_after


async def test_a_slow_pool_is_not_skipped() -> None:
    pools = FakePools(a=make_nodes("Load"), b=make_nodes("Load"))
    pools.may_respond.clear()
    node_info, impatient_cache = NodeInfoCache(pools), NodeInfoCache(pools, start_seconds=0.05)
    waiting_task = asyncio.create_task(node_info.choose_pool(make_graph("Load", "x"), POOLS))
    with pytest.raises(ServiceUnavailable, match="'a' is starting"):
        await impatient_cache.choose_pool(make_graph("Load", "x"), POOLS)
    pools.may_respond.set()
    assert await waiting_task == "a"
    for cache in (node_info, impatient_cache):
        await cache.close()


async def test_a_pool_that_is_down_and_never_responded_is_skipped() -> None:
    pools = FakePools(b=make_nodes("Load"))
    pools.states["a"] = "down"
    assert await NodeInfoCache(pools).choose_pool(make_graph("Load", "x"), POOLS) == "b"


async def test_cached_nodes_end_with_the_pools_configuration(tmp_path: Path) -> None:
    pools = FakePools(a=make_nodes("Load"), b=make_nodes("Load"))
    folder = tmp_path / "nodes"
    node_info = NodeInfoCache(pools, fresh_seconds=0.0, folder=folder)
    assert await node_info.choose_pool(make_graph("Load", "x"), POOLS) == "a"
    pools.states["a"] = "starting"
    assert await node_info.choose_pool(make_graph("Load", "x"), POOLS) == "a", (
        "the configuration is the same"
    )
    pools.versions["a"] = "2"
    waiting_task = asyncio.create_task(node_info.choose_pool(make_graph("Load", "x"), POOLS))
    restarted_cache = NodeInfoCache(pools, start_seconds=0.05, folder=folder)
    with pytest.raises(ServiceUnavailable, match="'a' is starting"):
        await restarted_cache.choose_pool(make_graph("Load", "x"), POOLS)
    assert not waiting_task.done()
    del pools.states["a"]
    pools.responses["a"] = make_nodes("Other")
    assert await waiting_task == "b"


async def test_input_rules_are_refetched_only_for_new_nodes() -> None:
    load_node = {"input": {"required": {"image": [[], {"image_upload": True}]}}}
    pools = FakePools(a={"Load": load_node})
    node_info = NodeInfoCache(pools, fresh_seconds=0.0)
    for _ in range(3):
        rules = await node_info.fetch_input_rules("a", {"Load"})
        assert rules is not None and rules["Load"]["image"].kind == "file"
    assert pools.requests == [("a", "/object_info")]
    pools.responses["a"]["New"] = load_node
    rules = await node_info.fetch_input_rules("a", {"Load", "New"})
    assert rules is not None and rules.keys() == {"Load", "New"}
    assert await node_info.fetch_input_rules("b", {"Load"}) is None


TARIFF = {"price": {"usd_per_gpu_hour": "3600"}, "seconds": 2.0, "shapes": {}}


async def test_tariff_of_a_pool_that_went_down_stays_known(tmp_path: Path) -> None:
    pools = FakePools(a=TARIFF, b=None)
    node_info = NodeInfoCache(pools, folder=tmp_path, fresh_seconds=0.0)
    assert (await node_info.fetch_tariff("a")).estimate_cost("x", 1) == 2
    del pools.responses["a"]
    assert (await node_info.fetch_tariff("a")).estimate_cost("x", 1) == 2
    restarted_cache = NodeInfoCache(pools, folder=tmp_path)
    assert (await restarted_cache.fetch_tariff("a")).estimate_cost("x", 1) == 2


async def test_unknown_tariff_is_an_error_and_not_free() -> None:
    # "c" has another version, which describes its prices differently.
    node_info = NodeInfoCache(FakePools(a=None, c={"price": "dear"}))
    for pool in ("a", "b", "c"):
        with pytest.raises(ServiceUnavailable):
            await node_info.fetch_tariff(pool)
