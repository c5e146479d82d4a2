"""ComfyUI's WebSocket route, called as a server would call it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from fastapi import FastAPI

from deployments.gateway.routes.comfy_api.websocket import comfyui_socket
from moyin.access.gatekeeper import RequestContext
from moyin.comfy_api.listener import FarmEvents, Send
from moyin.domain.identity import Identity
from moyin.store.hub import SlowConsumer

_SECONDS = 5
_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class Listener:
    """Tells what it is given, until it is cancelled."""

    def __init__(self, tells: list[str | bytes | Exception]) -> None:
        self.tells = tells
        self.asked: tuple[str, str] = ("", "")
        self.metadata = False
        self.left = asyncio.Event()

    def listener(self, owner: str, client_id: str, send: Send) -> Listener:
        self.asked, self.send = (owner, client_id), send
        return self

    async def run(self) -> None:
        try:
            for told in self.tells:
                if isinstance(told, Exception):
                    raise told
                await self.send(told)
            await asyncio.Event().wait()
        finally:
            self.left.set()

    async def say(self, kind: str, data: Mapping[str, Any]) -> None:
        await self.send(json.dumps({"type": kind, "data": data}))


class Socket:
    """The server's side of a connection. ``stuck``: the client takes nothing more."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.stuck = False

    async def send(self, message: Any) -> None:
        if self.stuck and message["type"] == "websocket.send":
            await asyncio.Event().wait()
        await self.outgoing.put(message)

    async def got(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.outgoing.get(), _SECONDS)

    def says(self, told: Any) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(told)})


@asynccontextmanager
async def connected(listener: Listener, *, stuck: bool = False) -> AsyncIterator[Socket]:
    app = FastAPI()
    app.include_router(comfyui_socket(cast(FarmEvents, listener), 1_000))
    who = RequestContext(request_id="r", identity=Identity(owner="ada", key_id="k"))
    scope = {
        "type": "websocket", "path": "/ws", "raw_path": b"/ws", "query_string": b"clientId=c",
        "headers": [], "subprotocols": [], "scheme": "ws", "root_path": "", "moyin": who,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    socket = Socket()
    socket.stuck = stuck
    socket.incoming.put_nowait({"type": "websocket.connect"})
    serving = asyncio.create_task(app(scope, socket.incoming.get, socket.send))
    assert (await socket.got())["type"] == "websocket.accept"
    yield socket
    socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(serving, _SECONDS)
    assert listener.left.is_set(), "nobody is listened for who has left"


async def test_a_client_is_told_as_it_comes() -> None:
    listener = Listener(["text", b"picture"])
    async with connected(listener) as socket:
        assert listener.asked == ("ada", "c")
        assert (await socket.got())["text"] == "text"
        assert (await socket.got())["bytes"] == b"picture"


async def test_its_first_message_may_say_what_it_understands() -> None:
    listener = Listener([])
    async with connected(listener) as socket:
        socket.says(_FLAGS)
        told = json.loads((await socket.got())["text"])
        assert told["data"] == {"supports_preview_metadata": True, "max_upload_size": 1_000}
        assert listener.metadata
        socket.says({**_FLAGS, "data": {}})
        socket.incoming.put_nowait({"type": "websocket.receive", "bytes": b"\x00"})
    assert listener.metadata, "later ones say nothing"


@pytest.mark.parametrize("first", ["hello", {"type": "other"}, {**_FLAGS, "data": None}])
async def test_what_else_it_says_changes_nothing(first: Any) -> None:
    listener = Listener([])
    async with connected(listener) as socket:
        socket.says(first)
        socket.says(_FLAGS)
    assert not listener.metadata


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_client_that_does_not_keep_up_is_cut(
    stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.routes.comfy_api.websocket._SEND_SECONDS", 0.05)
    # It takes nothing; or it takes less than there is to tell.
    listener = Listener(["text"] if stuck else [SlowConsumer("too slow")])
    async with connected(listener, stuck=stuck) as socket:
        closed = await socket.got()
    assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
    assert closed["reason"] == "slow_consumer"
