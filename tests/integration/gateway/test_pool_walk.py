"""Tests that a pool which is kept for one tenant is as if it did not exist for all others.

Each route of the gateway is called on two farms: one with the kept pool, and one without it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.comfy_api.pages import render_waiting_page
from moyin.domain.identity import JOBS_READ, JOBS_WRITE, TEXT
from moyin.store.keys import KeyStore
from tests.integration.gateway.fixtures import Farm, ScriptedService
from tests.integration.gateway.pool_walk import (
    GRAPH,
    KEPT_POOL,
    KEPT_THINGS,
    WEBSOCKET,
    WalkedPools,
    WalkedRequest,
    list_walk,
    normalize,
    normalize_headers,
    place,
)
from tests.integration.servers import TemporalServer, ValkeyServer

pytestmark = pytest.mark.timeout(300)
_SCOPES = (JOBS_READ, JOBS_WRITE, TEXT)


@dataclass
class Walker:
    """Sends the requests of a walk with one key, and records the normalized responses."""

    farm: Farm
    session: aiohttp.ClientSession
    ids: Mapping[str, str]
    responses: list[tuple[str, str]] = field(default_factory=list)

    async def walk(self) -> None:
        for request in list_walk(self.farm.gateway_services):
            name = f"{request.method} {request.path} {request.json or ''}"
            if request.method == WEBSOCKET:
                response = await self._open_websocket(self._fill(request.path))
            else:
                response = await self._send(request)
            self.responses.append((name, normalize(response, self.farm.url)))

    async def _send(self, request: WalkedRequest) -> str:
        data = None
        if request.form is not None:
            data = aiohttp.FormData()
            for name, file_name in request.form.items():
                data.add_field(name, b"a picture", filename=file_name)
        body = None if request.json is None else json.loads(self._fill(json.dumps(request.json)))
        arguments: dict[str, Any] = {"data": data} if data is not None else {"json": body}
        async with self.session.request(
            request.method, self._fill(request.path), allow_redirects=False, **arguments
        ) as response:
            if request.is_stream and response.status == 200:
                content = await _read_first_event(response)
            else:
                content = (await response.read()).decode(errors="replace")
            headers = normalize_headers(response.headers, self.farm.url)
            return f"{response.status} {json.dumps(headers, sort_keys=True)}\n{content}"

    async def _open_websocket(self, path: str) -> str:
        try:
            async with self.session.ws_connect(path) as websocket:
                await websocket.send_json({"type": "feature_flags", "data": {}})
                message = await websocket.receive(timeout=10)
                return f"{message.type.name} {message.data}"
        except aiohttp.WSServerHandshakeError as error:
            return f"{error.status}"

    def _fill(self, text: str) -> str:
        for name, value in self.ids.items():
            text = text.replace(f"{{{name}}}", value)
        return text


async def _read_first_event(response: aiohttp.ClientResponse) -> str:
    """Return the stream up to its first event, without heartbeats, which come if it is late."""
    content = ""
    async for line in response.content:
        content += line.decode()
        if "data:" in content and content.endswith("\n\n"):
            break
    return content.replace(": still here\n\n", "")


async def open_farm(
    folder: Path, temporal: TemporalServer, valkey: ValkeyServer, *pools: str
) -> Farm:
    folder.mkdir()
    farm = Farm(folder, temporal, valkey, ScriptedService())
    farm.scripted_pools = WalkedPools(*pools)
    await farm.open()
    return farm


@pytest.fixture
async def farms(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
) -> AsyncIterator[tuple[Farm, Farm]]:
    """Run a farm that keeps its first pool for the tenant Ann, and one without that pool.

    The other pool is open to all. The parameter of the fixture is its name, by default "default".
    """
    servers, open_pool = (temporal_server, valkey_server), getattr(request, "param", "default")
    farm = await open_farm(tmp_path / "a", *servers, KEPT_POOL, open_pool)
    farm_without = await open_farm(tmp_path / "b", *servers, open_pool)
    yield farm, farm_without
    await farm.close()
    await farm_without.close()


def get_pools(farm: Farm) -> WalkedPools:
    assert isinstance(farm.scripted_pools, WalkedPools)
    return farm.scripted_pools


async def submit(session: aiohttp.ClientSession, body: Mapping[str, Any]) -> str:
    async with session.post("/jobs", json=body) as response:
        assert response.status == 202, await response.text()
        return str((await response.json())["id"])


async def walk_as(farm: Farm, owner: str | None, foreign_id: str) -> Walker:
    """Walk as the tenant, or without a key if it is None, with a job of the tenant's own."""
    key = None if owner is None else await create_key(farm, owner)
    async with farm.open_session(key or "") as session:
        ids = {"foreign": foreign_id, "chosen": str(uuid.uuid4()), "job": foreign_id}
        if key is None:
            session.headers.pop("authorization")
        else:
            ids["job"] = await submit(session, {"kind": "render", "workflow": GRAPH})
        get_pools(farm).read_paths.clear()
        walker = Walker(farm, session, ids)
        await walker.walk()
        return walker


async def create_key(farm: Farm, owner: str) -> str:
    return (await KeyStore(farm.database).create(owner, "walker", scopes=_SCOPES))[1]


@pytest.mark.parametrize("farms", ["default", "open"], indirect=True)
async def test_a_pool_kept_for_another_tenant_is_as_if_it_did_not_exist(
    farms: tuple[Farm, Farm],
) -> None:
    farm, farm_without = farms
    body = {"kind": "render", "workflow": GRAPH, "pool": KEPT_POOL}
    job_id = await submit(farm.client, body)
    pools = get_pools(farm)
    pools.places[KEPT_POOL] = place(job_id)
    walker = await walk_as(farm, "bob", job_id)
    assert KEPT_POOL not in {pool for pool, _ in pools.read_paths}
    walker_without = await walk_as(farm_without, "bob", str(uuid.uuid4()))
    assert len(walker.responses) == len(walker_without.responses) > 200
    responses = zip(walker.responses, walker_without.responses, strict=True)
    differences = [
        f"{name}\n{text}\nand without the kept pool:\n{text_without}"
        for (name, text), (_, text_without) in responses
        if text != text_without
    ]
    assert not differences, "\n\n".join(differences)


async def test_the_tenant_of_a_kept_pool_sees_all_of_it(farms: tuple[Farm, Farm]) -> None:
    farm, _ = farms
    walker = await walk_as(farm, "ann", str(uuid.uuid4()))
    # Without the names, which a response may only repeat.
    responses = [content for name, content in walker.responses if name.startswith("GET")]
    missing_things = [
        thing for thing in KEPT_THINGS if not any(thing in response for response in responses)
    ]
    assert missing_things == []
    pools = get_pools(farm)
    contents = pools.contents[KEPT_POOL]
    read_paths = {path for pool, path in pools.read_paths if pool == KEPT_POOL}
    assert contents.keys() <= read_paths, "the walk reads all that the pool has"


async def test_no_pool_is_asked_for_anybody_without_a_key(farms: tuple[Farm, Farm]) -> None:
    farm, _ = farms
    walker = await walk_as(farm, None, str(uuid.uuid4()))
    assert get_pools(farm).read_paths == []
    for name, response in walker.responses:
        assert not any(thing in response for thing in ("kept script", "kept picture")), name


async def test_the_page_waits_for_the_pools_of_its_own_tenant(farms: tuple[Farm, Farm]) -> None:
    farm, _ = farms
    del get_pools(farm).contents["default"]["/object_info"]
    pages = {}
    for owner in ("ann", "bob"):
        body = {"key": await create_key(farm, owner)}
        cookies = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(farm.url, cookie_jar=cookies) as browser:
            async with browser.post("/comfy/session", json=body) as response:
                assert response.status == 200, await response.text()
            async with browser.get("/comfy/") as response:
                pages[owner] = await response.text()
    waiting_page = render_waiting_page().html
    assert pages["bob"] == waiting_page, "the open pool has not reported its nodes"
    assert pages["ann"] != waiting_page, "the kept pool has"
