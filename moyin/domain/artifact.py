"""Holds stored files and their metadata."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A named file that belongs to an owner.

    Attributes:
        id: ``art_`` + 32 hex digits.
        name: the file name that the producer gave, without a folder.
        media_type: IANA media type.
        size: in bytes.
        sha256: hex digest, which is the name of the blob in the artifact store.
        blake3: hex digest of an upload; None for artifacts that jobs made.
    """

    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    blake3: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredArtifact:
    """An artifact and its origin.

    Attributes:
        job_id: the job that made it; None for uploads.
    """

    artifact: Artifact
    job_id: str | None
    created_at: datetime
