"""`Relay`: what ComfyUI says of one prompt, on its way to the client that asked for it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.prompt import PromptFile
from moyin.domain.renderer import RenderRequest
from moyin.render.protocol.binary import described
from moyin.render.protocol.response import as_placed, ended
from moyin.render.protocol.wire import Message
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameKind, FrameStore

__all__ = ["Relay"]

_log = logging.getLogger(__name__)
# The prompt's end is told by whoever writes it into the job's row, and only then.
_ENDS = ("execution_success", "execution_error", "execution_interrupted")
# The next one says it again.
_PASSING = ("progress", "progress_state")
# A picture that is nowhere else: an output, not a preview.
_OUTPUT_NODE = "SaveImageWebsocket"
# All tenants' streams share Valkey's memory. What is larger is in the history alone.
_LARGEST_FRAME = 1024 * 1024
_BUSY = 64
_FULL = 2_048
_FLUSH_SECONDS = 3.0


class Relay:
    """Puts frames onto the client's stream, in order, without ever holding up the render.

    When the stream is slow, previews and progress are left out; outputs never, but for texts and the like
    of more than 1 MiB.

    Args:
        keep: stores the files that a node put out.
    """

    def __init__(
        self,
        frames: FrameStore,
        blobs: BlobStore,
        request: RenderRequest,
        channel: str,
        keep: Callable[[str, Mapping[str, Any]], Awaitable[list[PromptFile]]],
    ) -> None:
        self._frames = frames
        self._blobs = blobs
        self._prompt_id = request.prompt_id
        self._graph = request.graph
        self._channel = channel
        self._keep = keep
        self._waiting: deque[Message | bytes] = deque()
        self._sending: asyncio.Task[None] | None = None

    def feed(self, said: Message | bytes) -> None:
        """Take what ComfyUI says; returns at once."""
        if isinstance(said, Message) and (said.type in _ENDS or ended(said)):
            return
        waiting = len(self._waiting)
        if waiting >= _FULL or (waiting >= _BUSY and self._may_be_lost(said)):
            if not self._may_be_lost(said):
                _log.warning("prompt %s says more than can be passed on", self._prompt_id)
            return
        self._waiting.append(said)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def flush(self) -> None:
        """Return when all is on its way, or it takes too long."""
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=_FLUSH_SECONDS)

    def abandon(self) -> None:
        if self._sending is not None:
            self._sending.cancel()

    def _may_be_lost(self, said: Message | bytes) -> bool:
        return said.type in _PASSING if isinstance(said, Message) else not self._is_output(said)

    def _is_output(self, frame: bytes) -> bool:
        node = self._graph.get(str(described(frame)[0].get("node_id")))
        return isinstance(node, Mapping) and node.get("class_type") == _OUTPUT_NODE

    async def _send(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BUSY))]
            frames = [frame for said in batch for frame in await self._told(said)]
            fitting = [frame for frame in frames if len(frame.body) <= _LARGEST_FRAME]
            if len(fitting) < len(frames):
                _log.info("prompt %s says what is too large to be passed on", self._prompt_id)
            await self._frames.publish(self._channel, *fitting)

    async def _told(self, said: Message | bytes) -> list[Frame]:
        if isinstance(said, bytes):
            return [await self._binary(said)]
        data = said.data
        if said.type == "executed":
            data = {**data, "output": await self._output(data.get("output"))}
        body = to_json({"type": said.type, "data": data})
        if said.type == "executed" and len(body) > _LARGEST_FRAME:
            # Clients count on the event. ComfyUI, too, sends it so for nodes without an output.
            body = to_json({"type": said.type, "data": {**data, "output": None}})
        frames = [Frame(kind=FrameKind.TEXT, prompt=self._prompt_id, body=body)]
        if said.type == "execution_start":
            frames.insert(0, Frame(kind=FrameKind.STATUS, prompt=self._prompt_id))
        return frames

    async def _output(self, output: Any) -> Any:
        """The files must be there before the client hears of them: it asks at once."""
        if isinstance(output, Mapping):
            for file in await self._keep(self._prompt_id, output):
                await self._frames.keep_file(self._prompt_id, file)
        return as_placed(output, self._prompt_id)

    async def _binary(self, frame: bytes) -> Frame:
        if not self._is_output(frame):
            return Frame(kind=FrameKind.BINARY, prompt=self._prompt_id, body=frame)
        start = described(frame)[1]
        blob = await self._blobs.put(frame[start:])
        return Frame(kind=FrameKind.BLOB, prompt=self._prompt_id, body=frame[:start], blob=blob)
