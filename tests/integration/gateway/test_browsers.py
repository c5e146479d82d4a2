"""Tests the security and CORS headers of every app of a whole farm, in successes and errors."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import aiohttp
import pytest

from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.stack import PAGE_ORIGIN, RunningStack

# One route of each app.
APPS = ("/jobs", "/v1/models", "/accounts/whoami")
EVIL = "https://evil.example"


@pytest.fixture
async def client(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(gateway.url) as client:
        yield client


@pytest.mark.parametrize("path", APPS)
async def test_cors_allows_only_configured_origins(
    gateway: RunningStack, client: aiohttp.ClientSession, path: str
) -> None:
    preflight_headers = {
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization",
    }
    async with client.options(
        path, headers={"origin": PAGE_ORIGIN, **preflight_headers}
    ) as response:
        assert response.status == 200
        assert response.headers["access-control-allow-origin"] == PAGE_ORIGIN
        assert "authorization" in response.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in response.headers
    async with client.options(path, headers={"origin": EVIL, **preflight_headers}) as response:
        assert response.status == 400
        assert "access-control-allow-origin" not in response.headers
    for origin, allowed_origin in ((PAGE_ORIGIN, PAGE_ORIGIN), (EVIL, None)):
        for key, status in ((gateway.api_key, 200), ("wrong", 401)):
            headers = {"origin": origin, "authorization": f"Bearer {key}"}
            async with client.get(path, headers=headers) as response:
                assert response.status == status
                assert response.headers.get("access-control-allow-origin") == allowed_origin
                assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("path", APPS)
async def test_every_response_forbids_sniffing_and_framing(
    gateway: RunningStack, client: aiohttp.ClientSession, path: str
) -> None:
    good_headers = {"authorization": f"Bearer {gateway.api_key}"}
    for requested_path, headers, status in (
        (path, good_headers, 200),
        (path, {}, 401),
        (f"{path}/no/such/thing", good_headers, 404),
    ):
        async with client.get(requested_path, headers=headers) as response:
            assert response.status == status
            assert response.headers.getall("x-content-type-options") == ["nosniff"]
            assert response.headers.getall("x-frame-options") == ["DENY"]
            assert response.headers.getall("referrer-policy") == ["no-referrer"]


async def test_rate_limit_headers_count_requests_of_all_apps(
    gateway: RunningStack, client: aiohttp.ClientSession
) -> None:
    database = Database(gateway.settings.sql_url)
    owner = f"limited-{secrets.token_hex(4)}"
    key_id, key = await KeyStore(database).create(owner, "limited")
    await database.close()
    operator_headers = {"authorization": f"Bearer {gateway.api_key}"}
    limits = {"requests_per_minute": 3}
    async with client.put(
        f"/accounts/limits/key:{key_id}", json=limits, headers=operator_headers
    ) as response:
        assert response.status == 200, await response.text()
    limited_headers = {"authorization": f"Bearer {key}"}
    remaining_headers = []
    for path in APPS:
        async with client.get(path, headers=limited_headers) as response:
            assert response.status == 200, path
            assert response.headers["ratelimit-limit"] == "3"
            assert response.headers["ratelimit-policy"] == "3;w=60"
            assert 0 < int(response.headers["ratelimit-reset"]) <= 60
            remaining_headers.append(response.headers["ratelimit-remaining"])
    assert remaining_headers == ["2", "1", "0"]
    for path in APPS:
        async with client.get(path, headers=limited_headers) as response:
            assert response.status == 429, path
            assert 0 < int(response.headers["retry-after"]) <= 60
            assert response.headers["ratelimit-remaining"] == "0"
            assert "rate_limit_exceeded" in await response.text()
