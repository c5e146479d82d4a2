"""Runs a gateway that has only a route table on a real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvicorn

from deployments.gateway.app import ProxyOrApp
from deployments.gateway.config import GatewayConfig
from moyin.access.gatekeeper import render_problem_details
from moyin.access.gatekeeper.asgi import Receive, Scope, Send, TrustedProxies
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import NoObserver
from moyin.domain.identity import Identity
from moyin.errors import RouteNotFound
from moyin.proxy.engine import Proxy
from moyin.testing.fakes import StaticAuthenticator
from tests.waiting import eventually

SIGNING_KEY = b"0123456789abcdef0123456789abcdef"
MAX_BODY_BYTES = 128 * 1024 * 1024
KEYS = {
    "ann-key": Identity(owner="ann", key_id="k1"),
    "eve-key": Identity(owner="eve", key_id="k2", scopes=frozenset({"player"})),
}


async def _respond(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond to ``/jobs`` with the body ``ours``, in place of the gateway's own routes."""
    if scope["path"] != "/jobs":
        raise RouteNotFound(f"there is no route {scope['path']}")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ours"})


class ProxyServer:
    """A running proxy, and a client with Ann's key; `set_routes` replaces the route table.

    Attributes:
        keys: the valid keys, which a test may change.
    """

    def __init__(
        self, proxy: Proxy, url: str, client: aiohttp.ClientSession, keys: StaticAuthenticator
    ) -> None:
        self.proxy = proxy
        self.keys = keys
        self.url = url
        self.client = client

    def set_routes(self, *routes: dict[str, Any]) -> None:
        config = GatewayConfig.model_validate({"routes": routes})
        self.proxy.configure(config.to_route_table("http://127.0.0.1:1"))


@asynccontextmanager
async def proxy_serving(
    *routes: dict[str, Any], meter: RequestMeter | None = None, trusted_proxies: str = ""
) -> AsyncIterator[ProxyServer]:
    proxy = Proxy(
        signing_key=SIGNING_KEY, meter=meter, trusted_proxies=TrustedProxies(trusted_proxies)
    )
    await proxy.start()
    keys = StaticAuthenticator(KEYS)
    app = Gatekeeper(
        ProxyOrApp(proxy, limited_proxy=proxy, app=_respond),
        service="gateway",
        authenticator=keys,
        error_renderer=render_problem_details,
        max_body_bytes=MAX_BODY_BYTES,
        observer=NoObserver(),
        keeps_encoding=lambda scope: proxy.match(scope) is not None,
    )
    config = uvicorn.Config(
        app, port=0, log_config=None, lifespan="off",
        timeout_graceful_shutdown=1, timeout_keep_alive=300, proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server_task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    headers = {"authorization": "Bearer ann-key"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, headers=headers, connector=connector) as client:
        proxy_server = ProxyServer(proxy, url, client, keys)
        proxy_server.set_routes(*routes)
        yield proxy_server
    server.should_exit = True
    await server_task
    await proxy.close()
