"""Stores WebSocket frames for ComfyUI's clients in Valkey, one bounded, expiring stream per client.

A stream is named by a channel, which consists of the owner and the client id, so that no client
reads the stream of another client. Workers publish most frames as they are. For a change of the
queue or the end of a prompt they publish a marker, from which each gateway replica builds frames.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.exceptions import RedisError

from moyin.domain.job import Job
from moyin.domain.prompt import PromptFile
from moyin.domain.serialization import decode, encode
from moyin.store.hub import StreamHub
from moyin.store.valkey import connect

_log = logging.getLogger(__name__)
_FRAMES = "moyin:frames:"
_FILES = "moyin:files:"
# A preview has tens of kB, so that a stream has tens of MB at most.
_MAX_FRAMES = 512
# The maximum size of a stream, which has fewer frames if they are large.
_MAX_BYTES = 8 * 1024 * 1024
_SECONDS = 1_800


class FrameKind(StrEnum):
    """Names the kinds of frames.

    The client gets ``TEXT`` and ``BINARY`` unchanged, and ``BLOB`` as the body followed by the
    content of a blob. ``STATUS`` marks a change of the queue, and ``END`` the end of a prompt.
    """

    TEXT = "text"
    BINARY = "binary"
    BLOB = "blob"
    STATUS = "status"
    END = "end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Holds an entry of a client's stream.

    Attributes:
        id: the stream id, which is empty until the frame is published.
        prompt: the id of the prompt.
        body: the JSON of a text frame, or the bytes of a binary one.
        blob: for `FrameKind.BLOB`, the SHA-256 of the blob that follows the body.
    """

    kind: FrameKind
    prompt: str
    body: bytes = b""
    blob: str = ""
    id: str = ""


class FrameStore:
    """Publishes and reads the WebSocket frames for ComfyUI's clients, and the files of running prompts.

    Attributes:
        lost_count: the number of frames that could not be published.
    """

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self.lost_count = 0

    async def publish(self, channel: str, *frames: Frame) -> None:
        """Append frames to a client's stream; an error of Valkey is logged and counted, not raised."""
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
            self.lost_count += len(frames)
            _log.warning("could not publish %s frames in Valkey: %s", len(frames), error)

    async def publish_status(self, job: Job) -> None:
        """Publish the marker for a changed queue to the client that submitted the job."""
        if job.channel is not None:
            await self.publish(job.channel, Frame(kind=FrameKind.STATUS, prompt=job.id))

    async def publish_end(self, job: Job) -> None:
        """Publish the marker that the job has ended; its row must already have the final status."""
        if job.channel is not None:
            await self.publish(job.channel, Frame(kind=FrameKind.END, prompt=job.id))

    async def list_newest(self, channel: str, count: int) -> list[Frame]:
        """Return the newest ``count`` frames, oldest first; raise errors of Valkey."""
        entries: Any = await self._redis.xrevrange(_FRAMES + channel, count=count)
        return [_parse_frame(entry_id, fields) for entry_id, fields in reversed(entries)]

    async def add_file(self, prompt_id: str, file: PromptFile) -> None:
        """Store the metadata of a file of a running prompt, so that the client can fetch it at once."""
        files_key = _FILES + prompt_id
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(files_key, file.name.path, encode(file).decode())
                pipeline.expire(files_key, _SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _log.warning("could not store a file of prompt %s in Valkey: %s", prompt_id, error)

    async def find_file(self, prompt_id: str, path: str) -> PromptFile | None:
        """Return a file that `add_file` stored, or None if none exists or Valkey is unavailable."""
        try:
            encoded_file: Any = await self._redis.hget(_FILES + prompt_id, path)
        except (RedisError, OSError) as error:
            _log.warning("could not read the files of prompt %s from Valkey: %s", prompt_id, error)
            return None
        return None if encoded_file is None else decode(PromptFile, encoded_file)

    async def delete_files(self, prompt_ids: Sequence[str]) -> None:
        """Delete the metadata that `add_file` stored for these prompts.

        If Valkey is unavailable, they expire instead.
        """
        if not prompt_ids:
            return
        try:
            await self._redis.unlink(*(_FILES + prompt_id for prompt_id in prompt_ids))
        except (RedisError, OSError) as error:
            _log.warning(
                "could not delete the files of %d prompts in Valkey, so they expire later: %s",
                len(prompt_ids),
                error,
            )

    async def close(self) -> None:
        await self._redis.aclose()


class FrameHub(StreamHub[Frame]):
    """Delivers the frames of ComfyUI's clients to their connections; a channel names a stream."""

    def __init__(self, url: str) -> None:
        super().__init__(url, _FRAMES, _parse_frame)


def _parse_frame(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Frame:
    return Frame(
        id=entry_id.decode(),
        kind=FrameKind(fields[b"kind"].decode()),
        prompt=fields[b"prompt"].decode(),
        body=fields[b"body"],
        blob=fields[b"blob"].decode(),
    )
