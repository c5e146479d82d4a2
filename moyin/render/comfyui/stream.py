"""Reads events and binary frames from the WebSocket of a ComfyUI process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.untrusted_frames import check_frame
from moyin.render.comfyui.untrusted_json import (
    EVENT_LIMITS,
    MalformedResponse,
    parse_untrusted_json,
)
from moyin.render.protocol.wire import EventMessage

T = TypeVar("T")
_log = logging.getLogger(__name__)
# Large enough for the images of SaveImageWebsocket, of 16 megapixels with 16 bits each; aiohttp's
# default limit is 4 MiB. A larger message closes the connection, and the stream connects again.
_MAX_MESSAGE_BYTES = 128 * 1024 * 1024
_HEARTBEAT_SECONDS = 20.0
_RECONNECT_SECONDS = 0.2
# aiohttp returns buffered messages without waiting, so other tasks get a turn after so many.
_BATCH_SIZE = 32
# With this feature, ComfyUI adds the ids of the prompt and the node to previews.
_FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class EventStream:
    """Calls ``on_event`` for ComfyUI's events and ``on_binary`` for its binary frames.

    The callbacks must not block: ComfyUI waits for each reader of its events, so a slow reader
    delays the renders. While messages wait, the socket is not read, so that a flood of them fills
    the memory of ComfyUI and not of this process. After a disconnect, the stream connects again
    with the same client id. The events in between are lost, so callers must also poll the history.

    Attributes:
        connected: set while ComfyUI sends events to the stream.
    """

    def __init__(
        self,
        client: ComfyClient,
        on_event: Callable[[EventMessage], None],
        on_binary: Callable[[bytes], None],
    ) -> None:
        self._client = client
        self._on_event = on_event
        self._on_binary = on_binary
        self._has_logged_error = False
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Read the WebSocket until the task is cancelled."""
        while True:
            try:
                await self._read_frames()
            except (aiohttp.ClientError, TimeoutError) as error:
                _log.debug("ComfyUI's event stream is disconnected: %s", error)
            self.connected.clear()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _read_frames(self) -> None:
        async with self._client.session.ws_connect(
            "/ws",
            params={"clientId": self._client.client_id},
            max_msg_size=_MAX_MESSAGE_BYTES,
            heartbeat=_HEARTBEAT_SECONDS,
        ) as socket:
            await socket.send_json(_FEATURES)
            message_count = 0
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.BINARY:
                    self._call_back(self._process_binary, frame.data)
                elif frame.type is aiohttp.WSMsgType.TEXT:
                    self._call_back(self._process_text, frame.data)
                    # The first message shows that ComfyUI has registered the socket.
                    self.connected.set()
                message_count += 1
                if message_count % _BATCH_SIZE == 0:
                    await asyncio.sleep(0)

    def _process_binary(self, frame: bytes) -> None:
        checked_frame = check_frame(frame)
        if checked_frame is not None:
            self._on_binary(checked_frame)

    def _process_text(self, text: str) -> None:
        content = text.encode()
        try:
            event = parse_untrusted_json(content, EVENT_LIMITS, "event")
            message = EventMessage.model_validate(event)
        except (MalformedResponse, ValidationError):
            return  # a custom node may send any text
        self._on_event(message.model_copy(update={"byte_count": len(content)}))

    def _call_back(self, callback: Callable[[T], None], message: T) -> None:
        """Call the callback; if it fails, as on a malformed message of a node, log the error."""
        try:
            callback(message)
        except Exception:
            if not self._has_logged_error:
                # Logged only once, because a node may send any number of malformed messages.
                _log.warning("a malformed event of ComfyUI or a node is ignored", exc_info=True)
            self._has_logged_error = True
