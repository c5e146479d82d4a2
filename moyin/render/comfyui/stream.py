"""The one WebSocket to a ComfyUI process, always drained."""

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
# Previews and images that SaveImageWebsocket sends; aiohttp's own limit is 4 MiB.
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_HEARTBEAT_SECONDS = 20.0
_RECONNECT_SECONDS = 0.2
# Previews then say which prompt and which node they are of.
_FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class EventStream:
    """Reads ComfyUI's events for as long as it runs and hands each to ``on_event``, binary frames
    to ``on_binary``.

    ComfyUI sends to its sockets one after the other and waits for each, so whoever is slow here
    holds up the renders: neither may block. It connects again under the same client id;
    what was said in between is lost, so its user also looks into the history now and then.
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
        self._puzzled = False
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
                    self._hand(self._on_binary, frame.data)
                elif frame.type is aiohttp.WSMsgType.TEXT:
                    self._take(frame.data)
                    # ComfyUI registers a socket before it greets it.
                    self.connected.set()

    def _take(self, text: str) -> None:
        try:
            message = Message.model_validate_json(text)
        except ValidationError:
            # Custom nodes send events of their own making.
            return
        self._hand(self._on_event, message)

    def _hand(self, take: Callable[[T], None], said: T) -> None:
        """Whatever a node sends, what comes after it is heard."""
        try:
            take(said)
        except Exception:
            if not self._puzzled:
                # Once: a node may send as many as it likes.
                _log.warning("ComfyUI, or a node of it, sent what can't be read", exc_info=True)
            self._puzzled = True
