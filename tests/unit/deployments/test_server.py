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


async def _turns_until_all_are_in(kind: type[uvicorn.Server]) -> int:
    """Turns of the loop in which clients that came all at once get in; then the server ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    config = uvicorn.Config(lambda: None, factory=True, lifespan="off", log_config=None)
    config.load()
    server = kind(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup([listening])
    turns = 0
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            stack.enter_context(socket.create_connection(address))
        while len(server.server_state.connections) < CLIENTS:
            turns += 1
            assert turns < 10 * CLIENTS
            await asyncio.sleep(0)
    await server.shutdown([listening])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return turns


def _run(kind: type[uvicorn.Server]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_turns_until_all_are_in(kind))


def test_newcomers_get_in_several_at_a_time() -> None:
    assert _run(Server) <= CLIENTS // 8
    # In a replica's process `uvicorn.Server` is ours.
    [plain] = Server.__bases__
    assert _run(plain) >= CLIENTS, "else ours is needed no longer"


async def test_serve_takes_the_server_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`deployments.middleware` puts ours there; another version of Ray may get it elsewhere."""
    monkeypatch.setattr(uvicorn, "Server", Server)

    async def app(*_: object) -> None:
        raise AssertionError("nobody asks")

    loop = asyncio.get_running_loop()
    options = HTTPOptions(host="127.0.0.1", port=0)
    serving, server = await start_asgi_http_server(app, options, event_loop=loop)
    server.should_exit = True
    await serving
    assert isinstance(server, Server)
