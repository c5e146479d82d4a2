"""What ComfyUI's WebSocket clients are told: one bounded, expiring Valkey stream per client.

Its name is made of the owner and the client id, so nobody else's can be read by accident. It holds
what the workers say, and marks at which every gateway replica tells the rest by itself.
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
from moyin.store.events import connect
from moyin.store.hub import StreamHub

__all__ = ["Frame", "FrameHub", "FrameKind", "FrameStore"]

_log = logging.getLogger(__name__)
_FRAMES = "moyin:frames:"
_FILES = "moyin:files:"
# A preview is some tens of kB, so a stream is tens of MB at the very worst.
_MAX_FRAMES = 512
# Fewer of large ones.
_MAX_BYTES = 8 * 1024 * 1024
_SECONDS = 1_800


class FrameKind(StrEnum):
    """``TEXT`` and ``BINARY`` go to the client as they are. ``BLOB``: so does the body, followed
    by a blob. ``STATUS``: the queue has changed. ``END``: the prompt's end is in its row."""

    TEXT = "text"
    BINARY = "binary"
    BLOB = "blob"
    STATUS = "status"
    END = "end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One entry of a client's stream.

    Attributes:
        id: position in the stream; empty before it is there.
        prompt: which prompt it is about.
        body: JSON of a text frame, or a binary frame.
        blob: sha256, see `FrameKind`.
    """

    kind: FrameKind
    prompt: str
    body: bytes = b""
    blob: str = ""
    id: str = ""


class FrameStore:
    """Writes to clients' streams. An outage of Valkey costs liveliness and nothing else."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self.lost = 0

    async def publish(self, channel: str, *frames: Frame) -> None:
        """Append. Never raises for an outage: it is logged and counted in ``lost``."""
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
                    most = max(1, min(_MAX_FRAMES, _MAX_BYTES // max(1, len(frame.body))))
                    pipeline.xadd(name, fields, maxlen=most, approximate=True)
                pipeline.expire(name, _SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            self.lost += len(frames)
            _log.warning("%s frames not published: %s", len(frames), error)

    async def status(self, job: Job) -> None:
        """The queue has changed by this job."""
        if job.channel is not None:
            await self.publish(job.channel, Frame(kind=FrameKind.STATUS, prompt=job.id))

    async def end(self, job: Job) -> None:
        """The job has ended, and its row says so."""
        if job.channel is not None:
            await self.publish(job.channel, Frame(kind=FrameKind.END, prompt=job.id))

    async def newest(self, channel: str, count: int) -> list[Frame]:
        """The last frames, oldest first.

        Raises:
            RedisError, OSError: Valkey is away.
        """
        entries: Any = await self._redis.xrevrange(_FRAMES + channel, count=count)
        return [_frame(entry_id, fields) for entry_id, fields in reversed(entries)]

    async def keep_file(self, prompt_id: str, file: PromptFile) -> None:
        """Files of a prompt that still runs, which its client may ask for already."""
        name = _FILES + prompt_id
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(name, file.name.path, encode(file).decode())
                pipeline.expire(name, _SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _log.warning("file of prompt %s not told: %s", prompt_id, error)

    async def file(self, prompt_id: str, path: str) -> PromptFile | None:
        """A file that `keep_file` told of."""
        try:
            found: Any = await self._redis.hget(_FILES + prompt_id, path)
        except (RedisError, OSError) as error:
            _log.warning("files of prompt %s can't be asked for: %s", prompt_id, error)
            return None
        return None if found is None else decode(PromptFile, found)

    async def close(self) -> None:
        await self._redis.aclose()


class FrameHub(StreamHub[Frame]):
    """Of clients' streams, by channel."""

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
