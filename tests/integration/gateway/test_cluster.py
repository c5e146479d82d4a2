"""Tests the routes below ``/cluster``, with pools that the test configures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import aiohttp
from pydantic_core import from_json

from moyin.domain.cluster import PoolSummary, RendererState, RendererSummary
from moyin.store.keys import KeyStore
from tests.integration.gateway.fixtures import Farm

POOL = PoolSummary(
    name="fast", waiting=2, running=1, oldest_wait=None, wait_p50=1.5, wait_p90=4.0, minimum=1,
    maximum=2, renderers=(RendererSummary(name="comfyui-fast-0", state=RendererState.BUSY),),
)  # fmt: skip


async def get_json(session: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with session.get(path) as response:
        return response.status, await response.json()


async def open_member_session(farm: Farm) -> aiohttp.ClientSession:
    key = (await KeyStore(farm.database).create("ann", "m", scopes=frozenset({"jobs:read"})))[1]
    return farm.open_session(key)


async def test_members_see_load_and_operators_everything(farm: Farm) -> None:
    farm.scripted_pools.summaries = {"fast": POOL}
    status, cluster = await get_json(farm.client, "/cluster")
    assert status == 200
    default_pool, fast_pool = cluster["pools"]
    assert (default_pool["name"], default_pool["is_responding"], default_pool["queued"]) == (
        "default", False, None,
    )  # fmt: skip
    assert (fast_pool["queued"], fast_pool["running"], fast_pool["ready"]) == (2, 1, 1)
    assert [renderer["name"] for renderer in fast_pool["renderers"]] == ["comfyui-fast-0"]
    assert cluster["nodes"] == []
    async with await open_member_session(farm) as session:
        status, member_view = await get_json(session, "/cluster")
        assert (status, member_view["nodes"], member_view["problems"]) == (200, None, None)
        assert member_view["pools"][1] == {**fast_pool, "renderers": None}
        status, error = await get_json(session, "/cluster/problems")
        assert (status, error["code"]) == (403, "insufficient_scope")
    assert (await get_json(farm.client, "/cluster/problems"))[0] == 200


async def test_events_follow_changes(farm: Farm) -> None:
    farm.scripted_pools.summaries = {"fast": POOL}
    async with (
        await open_member_session(farm) as session,
        session.get("/cluster/events") as response,
    ):
        assert response.content_type == "text/event-stream"
        assert await read_queue_length(response) == 2
        # Members do not see renderers, so this is no change for them.
        farm.scripted_pools.summaries = {"fast": replace(POOL, renderers=())}
        farm.scripted_pools.summaries = {"fast": replace(POOL, waiting=5)}
        assert await read_queue_length(response) == 5


async def read_queue_length(response: aiohttp.ClientResponse) -> int:
    """Return the queue length of the pool ``fast`` in the next event."""
    while True:
        line = await response.content.readline()
        assert line, "the stream ended"
        if line.startswith(b"data: "):
            queue_length: int = from_json(line[6:])["pools"][1]["queued"]
            return queue_length
