"""Stored bytes and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One named file that belongs to an owner.

    Attributes:
        id: ``art_`` + 32 hex digits.
        name: file name as the producer gave it, without a folder.
        media_type: IANA media type.
        size: bytes.
        sha256: hex digest, which is the name of the blob in the artifact store.
        blake3: hex digest of an upload; None of what jobs made.
    """

    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    blake3: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredArtifact:
    """An artifact and where it came from.

    Attributes:
        job_id: of the job that made it; None of uploads.
    """

    artifact: Artifact
    job_id: str | None
    created_at: datetime
