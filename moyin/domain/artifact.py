"""Stored bytes and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One named file that belongs to an owner.

    Attributes:
        id: ``art_`` + 32 hex digits.
        name: file name as the producer gave it, without a folder.
        media_type: IANA media type.
        size: bytes.
        sha256: hex digest, which is the name of the blob in the artifact store.
    """

    id: str
    name: str
    media_type: str
    size: int
    sha256: str
