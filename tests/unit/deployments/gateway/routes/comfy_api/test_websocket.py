"""Tests ComfyUI's WebSocket route, called as an ASGI server would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from fastapi import FastAPI

from deployments.gateway.routes.comfy_api.websocket import new_websocket_routes
from moyin.access.gatekeeper import RequestContext
from moyin.comfy_api.notifier import PromptNotifiers, SendMessage
from moyin.domain.identity import Identity
from moyin.store.hub import SlowConsumer

_SECONDS = 5
_FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class FakeNotifier:
    """A fake notifier that sends the given messages, then runs until it is cancelled."""

    def __init__(self, messages: list[str | bytes | Exception]) -> None:
        self.messages = messages
        self.arguments: tuple[str, str] = ("", "")
        self.supports_preview_metadata = False
        self.stopped = asyncio.Event()

    def new_notifier(self, owner: str, client_id: str, send: SendMessage) -> FakeNotifier:
        self.arguments, self._send = (owner, client_id), send
        return self

    async def run(self) -> None:
        try:
            for message in self.messages:
                if isinstance(message, Exception):
                    raise message
                await self._send(message)
            await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def send(self, kind: str, data: Mapping[str, Any]) -> None:
        await self._send(json.dumps({"type": kind, "data": data}))


class FakeSocket:
    """The server's side of a fake connection.

    Attributes:
        is_stuck: True if the client reads no more messages.
    """

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outgoing: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_stuck = False

    async def send(self, message: Any) -> None:
        if self.is_stuck and message["type"] == "websocket.send":
            await asyncio.Event().wait()
        await self.outgoing.put(message)

    async def receive_message(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.outgoing.get(), _SECONDS)

    def send_from_client(self, message: Any) -> None:
        self.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})


@asynccontextmanager
async def connect_socket(
    notifier: FakeNotifier, *, is_stuck: bool = False
) -> AsyncIterator[FakeSocket]:
    app = FastAPI()
    app.include_router(new_websocket_routes(cast(PromptNotifiers, notifier), 1_000))
    request_context = RequestContext(request_id="r", identity=Identity(owner="ada", key_id="k"))
    scope = {
        "type": "websocket", "path": "/ws", "raw_path": b"/ws", "query_string": b"clientId=c",
        "headers": [], "subprotocols": [], "scheme": "ws", "root_path": "", "moyin": request_context,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    socket = FakeSocket()
    socket.is_stuck = is_stuck
    socket.incoming.put_nowait({"type": "websocket.connect"})
    serving_task = asyncio.create_task(app(scope, socket.incoming.get, socket.send))
    assert (await socket.receive_message())["type"] == "websocket.accept"
    yield socket
    socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(serving_task, _SECONDS)
    assert notifier.stopped.is_set(), "the notifier of a disconnected client must stop"


async def test_messages_are_sent_to_the_client() -> None:
    notifier = FakeNotifier(["text", b"picture"])
    async with connect_socket(notifier) as socket:
        assert notifier.arguments == ("ada", "c")
        assert (await socket.receive_message())["text"] == "text"
        assert (await socket.receive_message())["bytes"] == b"picture"


async def test_the_first_message_may_carry_feature_flags() -> None:
    notifier = FakeNotifier([])
    async with connect_socket(notifier) as socket:
        socket.send_from_client(_FLAGS)
        message = json.loads((await socket.receive_message())["text"])
        assert message["data"] == {"supports_preview_metadata": True, "max_upload_size": 1_000}
        assert notifier.supports_preview_metadata
        socket.send_from_client({**_FLAGS, "data": {}})
        socket.incoming.put_nowait({"type": "websocket.receive", "bytes": b"\x00"})
    assert notifier.supports_preview_metadata, "later messages are ignored"


@pytest.mark.parametrize("first_message", ["hello", {"type": "other"}, {**_FLAGS, "data": None}])
async def test_other_first_messages_are_ignored(first_message: Any) -> None:
    notifier = FakeNotifier([])
    async with connect_socket(notifier) as socket:
        socket.send_from_client(first_message)
        socket.send_from_client(_FLAGS)
    assert not notifier.supports_preview_metadata


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_a_client_that_does_not_keep_up_is_disconnected(
    is_stuck: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.routes.comfy_api.websocket._SEND_SECONDS", 0.05)
    # The client reads nothing, or it reads too slowly.
    notifier = FakeNotifier(["text"] if is_stuck else [SlowConsumer("too slow")])
    async with connect_socket(notifier, is_stuck=is_stuck) as socket:
        close_message = await socket.receive_message()
    assert (close_message["type"], close_message["code"]) == ("websocket.close", 1013)
    assert close_message["reason"] == "slow_consumer"
