"""Runs the servers of the proxy benchmark: a service, and the gateway's proxy in front of it.

python -m benchmarks.proxied service PORT
python -m benchmarks.proxied gateway PORT SERVICE_URL
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress

import uvicorn
import uvloop
from aiohttp import web

from deployments.gateway.app import ProxyOrApp
from deployments.gateway.config import GatewayConfig
from moyin.access.gatekeeper import render_problem_details
from moyin.access.gatekeeper.asgi import Receive, Scope, Send
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.access.gatekeeper.observation import NoObserver
from moyin.domain.identity import Identity
from moyin.errors import RouteNotFound
from moyin.proxy.engine import Proxy
from moyin.system.processes import freeze_startup_objects
from moyin.testing.fakes import StaticAuthenticator

KEY = "benchmark"
_SECONDS_BETWEEN_EVENTS = 1.0


async def _refuse_request(scope: Scope, receive: Receive, send: Send) -> None:
    raise RouteNotFound(f"{scope['path']}: this gateway serves only the benchmark's route")


async def _serve_gateway(port: int, service_url: str) -> None:
    proxy = Proxy(signing_key=b"0" * 32)
    routes = [
        {"name": "service", "prefix": "/", "hosts": ["127.0.0.1"], "upstreams": [service_url]}
    ]
    proxy.configure(GatewayConfig.model_validate({"routes": routes}).to_route_table(""))
    await proxy.start()
    freeze_startup_objects()
    app = Gatekeeper(
        ProxyOrApp(proxy, limited_proxy=proxy, app=_refuse_request),
        service="gateway",
        authenticator=StaticAuthenticator({KEY: Identity(owner="bench", key_id="bench")}),
        error_renderer=render_problem_details,
        max_body_bytes=2**20,
        observer=NoObserver(),
    )
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off", backlog=4096)
    await uvicorn.Server(config).serve()
    await proxy.close()


async def _serve_service(port: int) -> None:
    app = web.Application()
    app.router.add_get("/events", _stream_events)
    app.router.add_get("/socket", _echo_messages)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


async def _stream_events(request: web.Request) -> web.StreamResponse:
    """Stream an event every second; each event contains the time at which it was sent."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with suppress(ConnectionError):
        while True:
            await response.write(b"data: %.6f\n\n" % time.monotonic())
            await asyncio.sleep(_SECONDS_BETWEEN_EVENTS)
    return response


async def _echo_messages(request: web.Request) -> web.WebSocketResponse:
    """Return every message of a WebSocket to its sender."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data)
    return socket


if __name__ == "__main__":
    if sys.argv[1] == "gateway":
        uvloop.run(_serve_gateway(int(sys.argv[2]), sys.argv[3]))
    else:
        uvloop.run(_serve_service(int(sys.argv[2])))
