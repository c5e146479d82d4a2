"""Tests that a client that does not read is disconnected, by real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
import uvloop

from deployments import slow_readers
from deployments.server import ReplicaServer

PIECE = b"x" * 2**18


class EndlessApp:
    """Sends data for as long as the client takes them; `ended` is set when it is disconnected."""

    def __init__(self, *, pieces: int | None = None) -> None:
        self.ended = asyncio.Event()
        self.sent_pieces = 0
        self._pieces = pieces

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_socket = scope["type"] == "websocket"
        if is_socket:
            await receive()
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        sending = asyncio.create_task(self._send(send, is_socket))
        while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
            pass
        self.ended.set()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, send: Any, is_socket: bool) -> None:
        while self._pieces is None or self.sent_pieces < self._pieces:
            if is_socket:
                await send({"type": "websocket.send", "bytes": PIECE})
            else:
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            self.sent_pieces += 1
        if not is_socket:
            await send({"type": "http.response.body", "body": b""})


# Serve's replicas run on uvloop, whose transports have other classes.
on_both_loops = pytest.mark.parametrize(
    "loop_factory",
    [
        pytest.param(asyncio.new_event_loop, id="asyncio"),
        pytest.param(uvloop.new_event_loop, id="uvloop"),
    ],
)
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run_on(loop_factory: LoopFactory, coroutine: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(coroutine)


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[int]:
    """Run the replica's server, and yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    replica_server = ReplicaServer(config)
    task = asyncio.create_task(replica_server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        replica_server.should_exit = True
        await task
        listener.close()


@pytest.fixture(autouse=True)
def short_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_readers, "_STALL_SECONDS", 0.5)


@on_both_loops
def test_a_client_that_does_not_read_is_disconnected(loop_factory: LoopFactory) -> None:
    run_on(loop_factory, _wait_for_disconnection())


async def _wait_for_disconnection() -> None:
    app = EndlessApp()
    async with serve(app) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            async with asyncio.timeout(30):
                await app.ended.wait()


@on_both_loops
def test_a_websocket_whose_client_does_not_read_is_disconnected(loop_factory: LoopFactory) -> None:
    run_on(loop_factory, _wait_for_disconnection_of_websocket())


async def _wait_for_disconnection_of_websocket() -> None:
    app = EndlessApp()
    handshake = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with serve(app) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(handshake)
            async with asyncio.timeout(30):
                await app.ended.wait()
    assert app.sent_pieces > 0


@on_both_loops
def test_a_client_that_reads_slowly_gets_everything(loop_factory: LoopFactory) -> None:
    run_on(loop_factory, _read_slowly())


async def _read_slowly() -> None:
    app = EndlessApp(pieces=40)
    async with serve(app) as port:
        received_bytes, loop = 0, asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            await loop.sock_sendall(
                client, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            )
            async with asyncio.timeout(60):
                # Takes several times as long as a client may read nothing.
                while data := await loop.sock_recv(client, 2**17):
                    received_bytes += len(data)
                    await asyncio.sleep(0.02)
        assert received_bytes > 40 * len(PIECE)
