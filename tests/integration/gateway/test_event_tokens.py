"""Tests event tokens and previews on a real gateway, and which paths accept keys in the query."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import aiohttp
import pytest

from moyin.access.gatekeeper.tokens import create_event_token
from moyin.domain.identity import Identity
from moyin.store.keys import KeyStore
from moyin.store.previews import Preview, PreviewStore
from moyin_client import AsyncClient, Picture
from tests.integration.gateway.fixtures import SIGNING_KEY, Farm
from tests.integration.gateway.test_jobs import CHAT, read_frames
from tests.integration.servers import ValkeyServer
from tests.waiting import eventually

RENDER = {"kind": "render", "workflow": {"1": {"class_type": "EmptyImage", "inputs": {}}}}
PNG = b"\x89PNG\r\n\x1a\n a picture"


@pytest.fixture
async def keyless_client(farm: Farm) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client without a key, like a web page."""
    async with aiohttp.ClientSession(farm.url) as client:
        yield client


async def create_token(client: aiohttp.ClientSession, job_id: str, **body: Any) -> str:
    async with client.post(f"/jobs/{job_id}/token", json=body) as response:
        assert response.status == 200, await response.text()
        assert response.headers["cache-control"] == "no-store"
        return str((await response.json())["token"])


async def read_refusal(client: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    async with client.get(path) as response:
        return response.status, (await response.json())["code"]


async def test_a_token_follows_its_job_and_no_other(
    working_farm: Farm, keyless_client: aiohttp.ClientSession
) -> None:
    farm = working_farm
    job_id, other_job_id = [(await farm.submit_job(CHAT))["id"] for _ in range(2)]
    token = await create_token(farm.client, job_id)
    job_frames = await read_frames(farm.client, job_id)
    async with keyless_client.get(f"/jobs/{job_id}/events?token={token}") as response:
        stream_text = await response.text()
    assert re.findall(r"^id: (.*)$", stream_text, re.M) == [frame["id"] for frame in job_frames]
    # An EventSource that reconnects repeats the query as it was, and adds the header.
    resume_headers = {"Last-Event-ID": job_frames[1]["id"]}
    async with keyless_client.get(
        f"/jobs/{job_id}/events?token={token}", headers=resume_headers
    ) as response:
        stream_text = await response.text()
    assert re.findall(r"^id: (.*)$", stream_text, re.M) == [frame["id"] for frame in job_frames[2:]]
    async with keyless_client.ws_connect(
        f"/jobs/{job_id}/ws?token={token}&after={job_frames[1]['id']}"
    ) as socket:
        event_ids = [json.loads(message.data)["id"] async for message in socket]
    assert (event_ids, socket.close_code) == ([frame["id"] for frame in job_frames[2:]], 1000)
    for path in (
        f"/jobs/{other_job_id}/events",
        f"/jobs/{other_job_id}/preview",
        "/jobs/none/events",
    ):
        assert await read_refusal(keyless_client, f"{path}?token={token}") == (
            404,
            "job_not_found",
        ), path
    async with keyless_client.ws_connect(f"/jobs/{other_job_id}/ws?token={token}") as socket:
        message = await socket.receive(10)
        assert (message.data, message.extra) == (4404, "job_not_found")


async def test_wrong_and_expired_tokens_are_refused(
    farm: Farm, keyless_client: aiohttp.ClientSession
) -> None:
    job_id = (await farm.submit_job(CHAT))["id"]
    creator = Identity(owner="ann", key_id="none")
    wrong_tokens = {
        "x": "invalid_token",
        create_event_token(b"t" * 32, creator, job_id, 60): "invalid_token",
        create_event_token(SIGNING_KEY, creator, job_id, -1): "invalid_token",
        create_event_token(SIGNING_KEY, creator, job_id, 60): "invalid_api_key",
    }
    for token, code in wrong_tokens.items():
        assert await read_refusal(keyless_client, f"/jobs/{job_id}/events?token={token}") == (
            401,
            code,
        )
        async with keyless_client.ws_connect(f"/jobs/{job_id}/ws?token={token}") as socket:
            message = await socket.receive(10)
            assert (message.data, (message.extra or "").partition(":")[0]) == (1008, code)
    assert await read_refusal(keyless_client, f"/jobs/{job_id}/events") == (401, "missing_api_key")
    for expires_in in (0, 3601, -1, "60", True, 1.5, None):
        async with farm.client.post(
            f"/jobs/{job_id}/token", json={"expires_in": expires_in}
        ) as response:
            body = await response.json()
            assert (response.status, body["field"]) == (400, "expires_in"), expires_in
    _, key = await KeyStore(farm.database).create("other tenant", "k")
    async with (
        farm.open_session(key) as other_session,
        other_session.post(f"/jobs/{job_id}/token") as response,
    ):
        assert (response.status, (await response.json())["code"]) == (404, "job_not_found")


async def test_a_token_and_its_streams_end_with_the_key_that_made_it(
    farm: Farm, keyless_client: aiohttp.ClientSession
) -> None:
    job_id = (await farm.submit_job(CHAT))["id"]
    keys = KeyStore(farm.database)
    key_id, key = await keys.create("ann", "short-lived")
    async with farm.open_session(key) as client:
        token = await create_token(client, job_id)
        short_token = await create_token(client, job_id, expires_in=8)
    async with (
        keyless_client.get(f"/jobs/{job_id}/events?token={token}") as long_response,
        keyless_client.get(f"/jobs/{job_id}/events?token={short_token}") as short_response,
        keyless_client.ws_connect(f"/jobs/{job_id}/ws?token={token}") as socket,
    ):
        assert (long_response.status, short_response.status) == (200, 200)
        assert json.loads((await socket.receive(10)).data)["type"] == "queued"
        path = f"/jobs/{job_id}/events?token={short_token}"

        async def has_expired() -> bool:
            async with keyless_client.get(path) as response:
                return response.status == 401

        await eventually(has_expired, 60)
        # Longer than the time between two checks: a stream outlives its token.
        await asyncio.sleep(4)
        assert not short_response.content.at_eof()
        await keys.revoke(key_id)
        async with asyncio.timeout(20):
            for response in (long_response, short_response):
                assert "invalid_api_key" in (await response.text()).rpartition("event: error")[2]
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                continue
        assert message.data == 1008
    assert await read_refusal(keyless_client, f"/jobs/{job_id}/events?token={token}") == (
        401,
        "invalid_api_key",
    )


async def test_only_listed_routes_accept_credentials_in_queries(
    farm: Farm, keyless_client: aiohttp.ClientSession
) -> None:
    job_id = (await farm.submit_job(CHAT))["id"]
    token = await create_token(farm.client, job_id)
    async with keyless_client.get("/openapi.json") as response:
        paths = (await response.json())["paths"]
    accepting_routes: dict[str, set[str]] = {"api_key": set(), "token": set(), "key": set()}
    described_routes: dict[str, set[str]] = {"api_key": set(), "token": set(), "key": set()}
    for path, methods in paths.items():
        for method, operation in methods.items():
            schemes = {
                name
                for requirement in operation.get("security", [{"x": []}])
                for name in requirement
            }
            if not schemes or path.startswith("/comfy/session"):
                continue
            route = f"{method.upper()} {path}"
            described_routes["api_key"] |= {route} if "queryKey" in schemes else set()
            described_routes["token"] |= {route} if "eventToken" in schemes else set()
            for name, secret in (("api_key", farm.key), ("token", token), ("key", farm.key)):
                url = f"{re.sub(r'{[^}]+}', 'x', path)}?{name}={secret}"
                async with keyless_client.request(method, url, allow_redirects=False) as response:
                    body = await response.read()
                    assert secret.encode() not in body, route
                    if response.status != 401:
                        accepting_routes[name].add(route)
    assert accepting_routes == described_routes
    assert accepting_routes["token"] == {
        "GET /jobs/{job_id}/events", "GET /jobs/{job_id}/preview", "GET /artifacts/{artifact_id}",
    }  # fmt: skip
    own_route_pattern = re.compile(r"\w+ /(jobs|artifacts|templates|api/v2)\b")
    assert len(accepting_routes["api_key"]) > 30
    assert not [route for route in accepting_routes["api_key"] if own_route_pattern.match(route)]
    for socket_path, name, secret, code in (
        (f"/jobs/{job_id}/ws", "api_key", farm.key, "missing_api_key"),
        (f"/jobs/{job_id}/ws", "key", farm.key, "missing_api_key"),
        ("/ws", "token", farm.key, "missing_api_key"),
        ("/ws", "token", token, "missing_api_key"),
        ("/ws", "api_key", token, "invalid_api_key"),
        (f"/jobs/{job_id}/ws", "token", farm.key, "invalid_token"),
    ):
        async with keyless_client.ws_connect(f"{socket_path}?{name}={secret}") as socket:
            message = await socket.receive(10)
            assert (message.extra or "").partition(":")[0] == code, (socket_path, name)
    async with keyless_client.ws_connect(f"/ws?api_key={farm.key}") as socket:
        assert (await socket.receive(10)).type is aiohttp.WSMsgType.TEXT
    bearer_headers = {"authorization": f"Bearer {token}"}
    async with keyless_client.get(f"/jobs/{job_id}", headers=bearer_headers) as response:
        assert (response.status, (await response.json())["code"]) == (401, "invalid_api_key")


async def test_previews_are_events_for_clients_that_request_them(
    farm: Farm, keyless_client: aiohttp.ClientSession, valkey_server: ValkeyServer
) -> None:
    job_id = (await farm.submit_job(RENDER))["id"]
    token = await create_token(farm.client, job_id)
    preview_store = PreviewStore(valkey_server.url)
    preview = Preview(step=0, node="7", media_type="image/png")
    await preview_store.publish(job_id, preview, b"for nobody")
    path = f"/jobs/{job_id}/preview?token={token}"
    assert await read_refusal(keyless_client, path) == (404, "preview_not_found")

    async def publish_preview(picture: bytes) -> bool:
        await preview_store.publish(job_id, preview, picture)
        return await preview_store.find(job_id) is not None

    async with (
        keyless_client.get(
            f"/jobs/{job_id}/events?token={token}&previews=true"
        ) as preview_response,
        keyless_client.get(f"/jobs/{job_id}/events?token={token}") as plain_response,
        keyless_client.ws_connect(f"/jobs/{job_id}/ws?token={token}&previews=true") as socket,
        asyncio.timeout(30),
    ):
        await eventually(lambda: publish_preview(PNG), 20)
        stream_text = ""
        while "event: preview" not in stream_text or not stream_text.endswith("\n\n"):
            stream_text += (await preview_response.content.readany()).decode()
        preview_block = next(item for item in stream_text.split("\n\n") if "event: preview" in item)
        assert "id:" not in preview_block, "nobody can resume after a preview"
        data = json.loads(preview_block.partition("data: ")[2])
        assert (data["step"], data["node"], data["media_type"]) == (0, "7", "image/png")
        async with keyless_client.get(f"{data['url']}&token={token}") as response:
            assert (response.status, response.content_type) == (200, "image/png")
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert await response.read() == PNG
        messages = [json.loads((await socket.receive()).data)]
        while messages[-1]["type"] != "preview":
            messages.append(json.loads((await socket.receive()).data))
        assert (messages[-1]["id"], messages[-1]["data"]["node"]) == (None, "7")
        assert "preview" not in (await plain_response.content.readany()).decode()
    await preview_store.close()
    assert await read_refusal(keyless_client, f"/jobs/{job_id}/events?previews=perhaps&token={token}") == (
        400, "invalid_request",
    )  # fmt: skip


async def test_the_python_client_creates_tokens_and_reads_previews(
    farm: Farm, keyless_client: aiohttp.ClientSession, valkey_server: ValkeyServer
) -> None:
    job_id = (await farm.submit_job(RENDER))["id"]
    preview_store = PreviewStore(valkey_server.url)

    async def publish_previews() -> None:
        while True:
            await preview_store.publish(
                job_id, Preview(step=0, node="7", media_type="image/png"), PNG
            )
            await asyncio.sleep(0.2)

    async with AsyncClient(farm.url, farm.key) as client, asyncio.timeout(60):
        token = await client.create_token(job_id, expires_in=60)
        async with keyless_client.get(f"/jobs/{job_id}/events?token={token.token}") as response:
            assert response.status == 200
        # The first call asks the renderer for previews.
        assert await client.preview(job_id) is None
        publish_task = asyncio.create_task(publish_previews())
        try:
            async with aclosing(client.events(job_id, previews=True)) as events:
                seen_events = [await anext(events)]
                while seen_events[-1].type != "preview":
                    seen_events.append(await anext(events))
            assert await client.preview(job_id) == Picture(content=PNG, media_type="image/png")
        finally:
            publish_task.cancel()
            await asyncio.gather(publish_task, return_exceptions=True)
    assert (seen_events[0].type, seen_events[-1].id, seen_events[-1].raw["node"]) == (
        "queued",
        None,
        "7",
    )
    await preview_store.close()
