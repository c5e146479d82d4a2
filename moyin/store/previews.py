"""Stores the newest preview picture of each running job in Valkey, while a client watches the job.

A worker asks Valkey every half second whether a client watches its job, and publishes previews only
then. One picture per job is stored, and it expires.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from moyin.store.hub import StreamHub
from moyin.store.valkey import connect

_log = logging.getLogger(__name__)
_WATCHED = "moyin:previews:watched:"
_PICTURES = "moyin:previews:picture:"
_NOTICES = "moyin:previews:notices:"
# A watching replica renews this more often.
_WATCHED_SECONDS = 15
_PREVIEW_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """Describes a preview picture of a running render.

    Attributes:
        id: the Valkey stream id, which is empty until the preview is published.
        step: the index of the job's step or, in a batch, of the render.
        node: the id of the node that is being executed, or "" if it is unknown.
    """

    step: int
    node: str
    media_type: str
    id: str = ""


class PreviewStore:
    """Publishes and reads previews; an outage of Valkey drops previews without an error."""

    def __init__(self, url: str) -> None:
        # Typed as Any, since redis-py's types assume that responses are decoded.
        self._redis: Any = connect(url)

    async def watch(self, job_id: str) -> None:
        """Ask the job's workers for previews, for the next fifteen seconds."""
        try:
            await self._redis.set(_WATCHED + job_id, b"", ex=_WATCHED_SECONDS)
        except (RedisError, OSError) as error:
            _log.warning("could not ask for previews of job %s in Valkey: %s", job_id, error)

    async def publish(self, job_id: str, preview: Preview, picture: bytes) -> None:
        """Replace the job's preview if a client watches the job."""
        notice: Any = {
            "step": preview.step,
            "node": preview.node,
            "media_type": preview.media_type,
        }
        picture_fields: Any = {"media_type": preview.media_type, "picture": picture}
        try:
            if not await self._redis.exists(_WATCHED + job_id):
                return
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hset(_PICTURES + job_id, mapping=picture_fields)
                pipeline.expire(_PICTURES + job_id, _PREVIEW_SECONDS)
                pipeline.xadd(_NOTICES + job_id, notice, maxlen=1, approximate=False)
                pipeline.expire(_NOTICES + job_id, _PREVIEW_SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            _log.warning("could not publish a preview of job %s in Valkey: %s", job_id, error)

    async def find(self, job_id: str) -> tuple[str, bytes] | None:
        """Return the media type and the picture of the job's newest preview, or None."""
        try:
            fields = await self._redis.hmget(_PICTURES + job_id, "media_type", "picture")
        except (RedisError, OSError) as error:
            _log.warning("could not read the preview of job %s from Valkey: %s", job_id, error)
            return None
        media_type, picture = fields
        return None if picture is None else (media_type.decode(), picture)

    async def close(self) -> None:
        await self._redis.aclose()


class PreviewHub(StreamHub[Preview]):
    """Delivers notices of new previews to subscribers; streams are named by job id."""

    def __init__(self, url: str) -> None:
        super().__init__(url, _NOTICES, _parse_notice)


def _parse_notice(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Preview:
    return Preview(
        id=entry_id.decode(),
        step=int(fields[b"step"]),
        node=fields[b"node"].decode(),
        media_type=fields[b"media_type"].decode(),
    )
