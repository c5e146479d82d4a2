from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from moyin.access.accounts.oidc import OpenIdSignIn
from moyin.access.accounts.rules import OpenIdProvider
from moyin.access.accounts.throttle import Throttle
from moyin.errors import ServiceUnavailable
from tests.unit.access.accounts.test_throttle import NOWHERE

METADATA = {"issuer": "x", "claims_supported": [f"claim{number}" for number in range(400)]}


@pytest.fixture
async def open_id() -> AsyncIterator[OpenIdSignIn]:
    open_id = OpenIdSignIn(NOWHERE, throttle := Throttle(NOWHERE))
    yield open_id
    await open_id.close()
    await throttle.close()


def make_provider_server(body: bytes, pause_seconds: float = 0) -> TestServer:
    """Return a server that sends ``body`` in two halves, with a pause in between."""

    async def respond_in_halves(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        await asyncio.sleep(pause_seconds)
        await response.write(body[len(body) // 2 :])
        return response

    app = web.Application()
    app.router.add_get("/", respond_in_halves)
    return TestServer(app)


async def test_a_provider_response_in_two_parts_is_read_completely(open_id: OpenIdSignIn) -> None:
    async with make_provider_server(json.dumps(METADATA).encode(), pause_seconds=0.05) as server:
        assert await open_id._fetch_json(str(server.make_url("/"))) == METADATA


@pytest.mark.parametrize(
    ("body", "expected_reason"),
    [(b'"' + b"x" * 600_000 + b'"', "more than 524288 bytes"), (b"[" * 100_000, "not JSON")],
    ids=["large", "deep"],
)
async def test_an_invalid_provider_response_is_an_outage(
    open_id: OpenIdSignIn, body: bytes, expected_reason: str
) -> None:
    async with make_provider_server(body) as server:
        with pytest.raises(ServiceUnavailable, match=expected_reason):
            await open_id._fetch_json(str(server.make_url("/")))


ENDPOINTS = {"authorization_endpoint": "https://a/", "token_endpoint": "https://t/"}


@pytest.mark.parametrize(
    ("metadata", "keys"),
    [
        ({}, {"keys": []}),
        (ENDPOINTS | {"jwks_uri": 7}, {"keys": []}),
        (ENDPOINTS, {"keys": []}),
        (ENDPOINTS, {"keys": [7]}),
        (ENDPOINTS, {"keys": [{"kty": "none of ours"}]}),
        (ENDPOINTS, {}),
    ],
)
async def test_incomplete_provider_metadata_is_an_outage(
    open_id: OpenIdSignIn, metadata: dict[str, object], keys: dict[str, object]
) -> None:
    async def serve_metadata(request: web.Request) -> web.Response:
        document = {"issuer": issuer, "jwks_uri": f"{issuer}/keys", **metadata}
        return web.json_response(document)

    async def serve_keys(request: web.Request) -> web.Response:
        return web.json_response(keys)

    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", serve_metadata)
    app.router.add_get("/keys", serve_keys)
    async with TestServer(app) as server:
        issuer = str(server.make_url("")).rstrip("/")
        provider = OpenIdProvider(
            name="p", issuer=issuer, client_id="m", redirect_uris=("https://b/",)
        )
        open_id.providers = {"p": provider}
        with pytest.raises(ServiceUnavailable, match=r"metadata|JWK Set"):
            await open_id.begin_sign_in("p", "https://b/", "")
