"""Stores the WebSocket frames of ComfyUI's clients: one bounded, expiring stream per client.

A stream's name contains the owner and the client id, so no client reads that of another. It holds
frames of the workers, and markers at which each gateway replica builds the frame itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.exceptions import RedisError

from moyin.domain.job import Job
from moyin.domain.prompt import PromptFile
from moyin.domain.serialization import decode, encode
from moyin.store.hub import StreamHub
from moyin.store.valkey import connect

__all__ = ["Frame", "FrameHub", "FrameKind", "FrameStore"]

_log = logging.getLogger(__name__)
_FRAMES = "moyin:frames:"
_FILES = "moyin:files:"
# A preview has tens of kB, so a stream has tens of MB at most.
_MAX_FRAMES = 512
# A stream of larger frames holds fewer.
_MAX_BYTES = 8 * 1024 * 1024
_SECONDS = 1_800


class FrameKind(StrEnum):
    """Names the kinds of frames.

    ``TEXT`` and ``BINARY`` are sent to the client as they are, ``BLOB`` as its body followed by the
    blob. ``STATUS`` marks a change of the queue, ``END`` the end of a prompt, which is in its row.
    """

    TEXT = "text"
    BINARY = "binary"
    BLOB = "blob"
    STATUS = "status"
    END = "end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Holds one entry of a client's stream.

    Attributes:
        id: the stream id; empty until the frame is published.
        prompt: the id of the prompt.
        body: the JSON of a text frame, or a binary frame.
        blob: the sha256 of a blob; see `FrameKind`.
    """

    kind: FrameKind
    prompt: str
    body: bytes = b""
    blob: str = ""
    id: str = ""


class FrameStore:
    """Writes to clients' streams. An outage of Valkey only delays what clients see."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self.lost = 0

    async def publish(self, channel: str, *frames: Frame) -> None:
        """Append frames. An outage raises nothing: it is logged and counted in ``lost``."""
        name = _FRAMES + channel
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for frame in frames:
                    fields: Any = {
                        "kind": frame.kind.value,
                        "prompt": frame.prompt,
                        "body": frame.body,
                        "blob": frame.blob,
                    }
                    max_frames = max(1, min(_MAX_FRAMES, _MAX_BYTES // max(1, len(frame.body))))
                    pipeline.xadd(name, fields, maxlen=max_frames, approximate=True)
                pipeline.expire(name, _SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self.lost += len(frames)
            _log.warning("could not publish %s frames: %s", len(frames), error)

    async def publish_status(self, job: Job) -> None:
        """Announce that the job has changed the queue."""
        if job.channel is not None:
            await self.publish(job.channel, Frame(kind=FrameKind.STATUS, prompt=job.id))

    async def publish_end(self, job: Job) -> None:
        """Announce that the job has ended; its row must have the final status."""
        if job.channel is not None:
            await self.publish(job.channel, Frame(kind=FrameKind.END, prompt=job.id))

    async def newest(self, channel: str, count: int) -> list[Frame]:
        """Return the last ``count`` frames, oldest first.

        Raises:
            RedisError, OSError: Valkey is unavailable.
        """
        entries: Any = await self._redis.xrevrange(_FRAMES + channel, count=count)
        return [_frame(entry_id, fields) for entry_id, fields in reversed(entries)]

    async def keep_file(self, prompt_id: str, file: PromptFile) -> None:
        """Store a file of a running prompt, so that its client can fetch it before the end."""
        name = _FILES + prompt_id
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(name, file.name.path, encode(file).decode())
                pipeline.expire(name, _SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _log.warning("could not publish a file of prompt %s: %s", prompt_id, error)

    async def file(self, prompt_id: str, path: str) -> PromptFile | None:
        """Return a file that `keep_file` stored; None: there is none, or Valkey is unavailable."""
        try:
            stored: Any = await self._redis.hget(_FILES + prompt_id, path)
        except (RedisError, OSError) as error:
            _log.warning("could not read files of prompt %s: %s", prompt_id, error)
            return None
        return None if stored is None else decode(PromptFile, stored)

    async def close(self) -> None:
        await self._redis.aclose()


class FrameHub(StreamHub[Frame]):
    """Fans out clients' streams, by channel."""

    def __init__(self, url: str) -> None:
        super().__init__(url, _FRAMES, _frame)


def _frame(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Frame:
    return Frame(
        id=entry_id.decode(),
        kind=FrameKind(fields[b"kind"].decode()),
        prompt=fields[b"prompt"].decode(),
        body=fields[b"body"],
        blob=fields[b"blob"].decode(),
    )
