"""Tests that the gateway's public paths are not public on a host name that belongs to a service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from deployments.gateway.config import GatewayConfig
from tests.integration.gateway.fixtures import Farm
from tests.integration.proxy.upstream import Service, serving

PUBLIC = (
    "/", "/healthz", "/readyz", "/docs", "/openapi.json", "/docs/swagger-ui.css",
    "/docs/swagger-ui-bundle.js", "/comfy", "/comfy/", "/comfy/session", "/comfy/assets/x.js", "/artifacts/signed/x/y",
)  # fmt: skip
HOSTS = ("wiki.studio", "WIKI.Studio:8000")


@pytest.fixture
async def wiki(farm: Farm) -> AsyncIterator[Service]:
    """Run a service that has its own host name and accepts every path."""
    service = Service()
    async with serving(service) as url:
        route = {"name": "wiki", "hosts": ["wiki.studio"], "prefix": "/", "upstreams": [url]}
        farm.proxy.configure(
            GatewayConfig.model_validate({"routes": [route]}).to_route_table("http://x")
        )
        yield service


async def test_a_public_path_is_public_on_the_gateways_own_host_alone(
    farm: Farm, wiki: Service
) -> None:
    async with aiohttp.ClientSession(farm.url) as keyless_session:
        for path in PUBLIC:
            for host in HOSTS:
                async with keyless_session.get(path, headers={"host": host}) as response:
                    body = await response.json()
                    assert (response.status, body["code"]) == (401, "missing_api_key"), path
            async with keyless_session.get(
                path, headers={"host": "gateway.studio"}, allow_redirects=False
            ) as response:
                assert "missing_api_key" not in await response.text(), path
    assert wiki.seen == []
    for path in PUBLIC:
        async with farm.client.get(path, headers={"host": HOSTS[0]}) as response:
            assert response.headers["x-from"] == "one", path


async def test_gateway_paths_accept_a_key_only_in_a_header(farm: Farm, wiki: Service) -> None:
    cookie_headers = {"cookie": f"moyin_session={farm.key}"}
    async with aiohttp.ClientSession(farm.url) as keyless_session:
        for path, headers in (
            (f"/view?filename=x&api_key={farm.key}", {}),
            (f"/api/queue?api_key={farm.key}", {}),
            (f"/jobs?api_key={farm.key}", {}),
            ("/comfy/api/queue", cookie_headers),
            ("/comfy/", cookie_headers),
        ):
            async with keyless_session.get(path, headers={**headers, "host": HOSTS[0]}) as response:
                assert response.status == 401, path
        socket_headers = {**cookie_headers, "host": HOSTS[0], "origin": f"http://{HOSTS[0]}"}
        async with keyless_session.ws_connect("/comfy/ws", headers=socket_headers) as socket:
            message = await socket.receive(20)
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1008)
    assert wiki.seen == []
