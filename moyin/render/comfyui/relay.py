"""Publishes ComfyUI's events of one prompt on the stream of the prompt's client."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic_core import to_json

from moyin.domain.prompt import PromptFile
from moyin.domain.renderer import RenderRequest
from moyin.render.protocol.binary import parse_image_metadata
from moyin.render.protocol.response import is_last_event, replace_file_names
from moyin.render.protocol.wire import EventMessage
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameKind, FrameStore

_log = logging.getLogger(__name__)
# The gateway publishes these events instead, when the job's row shows the end of the prompt.
_END_EVENTS = ("execution_success", "execution_error", "execution_interrupted")
# Each of these events supersedes the previous event of the same type.
_PROGRESS_EVENTS = ("progress", "progress_state")
# This node writes no file: its binary frames are its output.
_OUTPUT_NODE = "SaveImageWebsocket"
# Larger texts are not published, because all tenants' streams share Valkey's memory. Clients find
# them in the history.
_MAX_FRAME_BYTES = 1024 * 1024
_BATCH_SIZE = 64
_QUEUE_SIZE = 2_048
# The limits of the queue's size, and of the size above which previews and progress are dropped.
_MAX_QUEUE_BYTES = 256 * 1024 * 1024
_DROPPING_BYTES = 16 * 1024 * 1024
_FLUSH_SECONDS = 3.0


class Relay:
    """Publishes the events of a prompt on a client's stream, in order.

    A background task publishes the events, so that a slow stream does not delay the render. While
    the stream is slow, previews and progress events are dropped. An event with a node's output is
    published without the output if the event exceeds 1 MiB. The content of the output's files is
    stored elsewhere and does not count.

    Args:
        channel: name of the client's stream.
        store_files: coroutine function that stores the files of a node's output.
    """

    def __init__(
        self,
        frames: FrameStore,
        blobs: BlobStore,
        request: RenderRequest,
        channel: str,
        store_files: Callable[[str, Mapping[str, Any]], Awaitable[list[PromptFile]]],
    ) -> None:
        self._frames = frames
        self._blobs = blobs
        self._prompt_id = request.prompt_id
        self._graph = request.graph
        self._channel = channel
        self._store_files = store_files
        self._queue: deque[EventMessage | bytes] = deque()
        self._queue_bytes = 0
        self._has_logged_drop = False
        self._publishing: asyncio.Task[None] | None = None

    def enqueue(self, message: EventMessage | bytes) -> None:
        """Queue an event or a binary frame for publication, without waiting."""
        if isinstance(message, EventMessage) and (
            message.type in _END_EVENTS or is_last_event(message)
        ):
            return
        is_droppable = self._is_droppable(message)
        if self._is_full(is_droppable) or (
            is_droppable and _count_bytes(message) > _MAX_FRAME_BYTES
        ):
            if not is_droppable and not self._has_logged_drop:
                # Logged only once, because a node may send any number of events.
                self._has_logged_drop = True
                _log.warning(
                    "an event of prompt %s is dropped, because its queue is full", self._prompt_id
                )
            return
        self._queue.append(message)
        self._queue_bytes += _count_bytes(message)
        if self._publishing is None or self._publishing.done():
            self._publishing = asyncio.create_task(self._publish_queued())

    async def flush(self) -> None:
        """Wait until all queued events are published, for at most three seconds."""
        if self._publishing is not None:
            await asyncio.wait([self._publishing], timeout=_FLUSH_SECONDS)

    def stop(self) -> None:
        """Stop publishing and drop all queued events."""
        if self._publishing is not None:
            self._publishing.cancel()

    def _is_full(self, is_droppable: bool) -> bool:
        """Return whether the queue has no room, or none for a message that may be dropped."""
        max_length, max_bytes = (
            (_BATCH_SIZE, _DROPPING_BYTES) if is_droppable else (_QUEUE_SIZE, _MAX_QUEUE_BYTES)
        )
        return len(self._queue) >= max_length or self._queue_bytes >= max_bytes

    def _is_droppable(self, message: EventMessage | bytes) -> bool:
        if isinstance(message, EventMessage):
            return message.type in _PROGRESS_EVENTS
        return not self._is_output(message)

    def _is_output(self, frame: bytes) -> bool:
        node = self._graph.get(str(parse_image_metadata(frame)[0].get("node_id")))
        return isinstance(node, Mapping) and node.get("class_type") == _OUTPUT_NODE

    async def _publish_queued(self) -> None:
        while self._queue:
            frames = await self._take_frames()
            small_frames = [frame for frame in frames if len(frame.body) <= _MAX_FRAME_BYTES]
            if len(small_frames) < len(frames):
                _log.info("a frame of prompt %s exceeds 1 MiB and is dropped", self._prompt_id)
            await self._frames.publish(self._channel, *small_frames)

    async def _take_frames(self) -> list[Frame]:
        """Return the frames of the next messages in the queue.

        A message counts for the size of the queue until its pictures and files are stored.
        """
        frames = []
        for _ in range(min(len(self._queue), _BATCH_SIZE)):
            message = self._queue.popleft()
            try:
                frames += await self._to_frames(message)
            finally:
                self._queue_bytes -= _count_bytes(message)
        return frames

    async def _to_frames(self, message: EventMessage | bytes) -> list[Frame]:
        if isinstance(message, bytes):
            return [await self._make_binary_frame(message)]
        data = message.data
        if message.type == "executed":
            data = {**data, "output": await self._store_output(data.get("output"))}
        body = to_json({"type": message.type, "data": data})
        if message.type == "executed" and len(body) > _MAX_FRAME_BYTES:
            # Clients wait for this event, so send it without the output, as for a node that has
            # none.
            body = to_json({"type": message.type, "data": {**data, "output": None}})
        frames = [Frame(kind=FrameKind.TEXT, prompt=self._prompt_id, body=body)]
        if message.type == "execution_start":
            frames.insert(0, Frame(kind=FrameKind.STATUS, prompt=self._prompt_id))
        return frames

    async def _store_output(self, output: Any) -> Any:
        """Store the files of a node's output, and return the output with the stored names.

        The files are stored before the event is published, because clients then fetch them at
        once. The stored names are those of `make_unique_name`.
        """
        if isinstance(output, Mapping):
            for file in await self._store_files(self._prompt_id, output):
                await self._frames.add_file(self._prompt_id, file)
        return replace_file_names(output, self._prompt_id)

    async def _make_binary_frame(self, frame: bytes) -> Frame:
        if not self._is_output(frame):
            return Frame(kind=FrameKind.BINARY, prompt=self._prompt_id, body=frame)
        image_start = parse_image_metadata(frame)[1]
        blob = await self._blobs.put(frame[image_start:])
        return Frame(
            kind=FrameKind.BLOB, prompt=self._prompt_id, body=frame[:image_start], blob=blob
        )


def _count_bytes(message: EventMessage | bytes) -> int:
    return len(message) if isinstance(message, bytes) else message.byte_count
