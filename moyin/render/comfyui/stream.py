"""`EventStream`: reads the WebSocket of a ComfyUI process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from moyin.render.comfyui.client import ComfyClient
from moyin.render.protocol.wire import Message

__all__ = ["EventStream"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
# Large enough for the images of SaveImageWebsocket; aiohttp's default limit is 4 MiB.
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_HEARTBEAT_SECONDS = 20.0
_RECONNECT_SECONDS = 0.2
# With this feature, previews name their prompt and node.
_FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class EventStream:
    """Calls ``on_event`` for ComfyUI's events and ``on_binary`` for its binary frames.

    Neither callback may block: ComfyUI sends to its sockets one after the other and waits for each,
    so a slow reader delays the renders. After a disconnect the stream connects again under the same
    client id. Events in between are lost, so callers must also poll the history.
    """

    def __init__(
        self,
        client: ComfyClient,
        on_event: Callable[[Message], None],
        on_binary: Callable[[bytes], None],
    ) -> None:
        self._client = client
        self._on_event = on_event
        self._on_binary = on_binary
        self._has_logged_error = False
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                await self._read()
            except (aiohttp.ClientError, TimeoutError) as error:
                _log.debug("event stream: %s", error)
            self.connected.clear()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read(self) -> None:
        async with self._client.session.ws_connect(
            "/ws",
            params={"clientId": self._client.client_id},
            max_msg_size=_MAX_MESSAGE_BYTES,
            heartbeat=_HEARTBEAT_SECONDS,
        ) as socket:
            await socket.send_json(_FEATURES)
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.BINARY:
                    self._handle(self._on_binary, frame.data)
                elif frame.type is aiohttp.WSMsgType.TEXT:
                    self._handle_text(frame.data)
                    # ComfyUI has registered the socket before it sends the first message.
                    self.connected.set()

    def _handle_text(self, text: str) -> None:
        try:
            message = Message.model_validate_json(text)
        except ValidationError:
            # Custom nodes may send messages of any shape.
            return
        self._handle(self._on_event, message)

    def _handle(self, callback: Callable[[T], None], message: T) -> None:
        """Call back; a malformed message of a node must not end the stream."""
        try:
            callback(message)
        except Exception:
            if not self._has_logged_error:
                # Once only: a node may send any number of them.
                _log.warning("ComfyUI, or one of its nodes, sent a bad message", exc_info=True)
            self._has_logged_error = True
