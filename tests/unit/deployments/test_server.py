from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import pytest
import uvicorn
import uvloop
from ray.serve._private.http_util import start_asgi_http_server
from ray.serve.config import HTTPOptions

from deployments.server import Server

CLIENTS = 64


async def _iterations_until_accepted(kind: type[uvicorn.Server]) -> int:
    """Return the iterations of the event loop until all of `CLIENTS` connections are accepted."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = uvicorn.Config(lambda: None, factory=True, lifespan="off", log_config=None)
    config.load()
    server = kind(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    iterations = 0
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(address))
        while len(server.server_state.connections) < CLIENTS:
            iterations += 1
            assert iterations < 10 * CLIENTS
            await asyncio.sleep(0)
    await server.shutdown([listener])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return iterations


def _run(kind: type[uvicorn.Server]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_iterations_until_accepted(kind))


def test_several_connections_are_accepted_per_iteration() -> None:
    assert _run(Server) <= CLIENTS // 8
    # `uvicorn.Server` itself may have been replaced by ours in this process.
    [plain] = Server.__bases__
    assert _run(plain) >= CLIENTS, "uvicorn's server is fast enough now: remove ours"


async def test_serve_uses_our_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that Ray takes its server class from where `deployments.middleware` replaces it."""
    monkeypatch.setattr(uvicorn, "Server", Server)

    async def app(*_: object) -> None:
        raise AssertionError("no request is sent")

    loop = asyncio.get_running_loop()
    options = HTTPOptions(host="127.0.0.1", port=0)
    serving, server = await start_asgi_http_server(app, options, event_loop=loop)
    server.should_exit = True
    await serving
    assert isinstance(server, Server)
