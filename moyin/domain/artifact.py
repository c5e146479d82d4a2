"""Defines stored files, and sanitises the media types and names that clients declare for them."""

from __future__ import annotations

import mimetypes
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from moyin.errors import InvalidRequest

SNIFF_BYTES = 16  # the length of the start of a file that `detect_media_type` needs
UNKNOWN_MEDIA_TYPE = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")
_MAX_NAME_LENGTH = 200
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"OggS", "audio/ogg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"glTF", "model/gltf-binary"),
    (0, b"%PDF-", "application/pdf"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A stored file with an id and a name; its content is the blob with the name ``sha256``.

    Attributes:
        id: ``art_`` and 32 hex digits.
        name: the file name that the producer chose, without a folder.
        media_type: the IANA media type.
        size: the size in bytes.
        sha256: the SHA-256 in hex of the content, which is the blob's name in the artifact store.
        blake3: the BLAKE3 digest in hex of an upload's content; None for artifacts that jobs made.
    """

    id: str
    name: str
    media_type: str
    size: int
    sha256: str
    blake3: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredArtifact:
    """An artifact, and the id of the job that made it, which is None for uploads.

    Attributes:
        favourite: True if a member of the tenant has marked the artifact as a favourite.
    """

    artifact: Artifact
    job_id: str | None
    created_at: datetime
    favourite: bool = False


def detect_media_type(declared_type: str | None, first_bytes: bytes) -> str:
    """Return the media type of an upload: the declared one, or else the type of its content.

    Args:
        declared_type: the client's Content-Type, whose parameters are ignored.
        first_bytes: the first `SNIFF_BYTES` bytes of the content.

    Raises:
        InvalidRequest: ``declared_type`` is not a media type.
    """
    media_type = (declared_type or UNKNOWN_MEDIA_TYPE).partition(";")[0].strip().lower()
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise InvalidRequest(
            f"Content-Type must be a media type such as image/png, not {media_type[:64]!r}",
            field="Content-Type",
        )
    if media_type not in (UNKNOWN_MEDIA_TYPE, "application/x-www-form-urlencoded"):
        return media_type
    for offset, signature, detected_type in _SIGNATURES:
        if first_bytes[offset : offset + len(signature)] == signature:
            return detected_type
    return UNKNOWN_MEDIA_TYPE


def sanitize_file_name(name: str | None, media_type: str) -> str:
    """Return the name without folders and control characters; a new name if nothing is left."""
    file_name = PurePosixPath((name or "").replace("\\", "/")).name
    printable_name = "".join(character for character in file_name if character.isprintable()).strip(
        ". "
    )
    if not printable_name:
        return f"upload{mimetypes.guess_extension(media_type) or '.bin'}"
    if len(printable_name) <= _MAX_NAME_LENGTH:
        return printable_name
    suffix = PurePosixPath(printable_name).suffix[:20]
    return printable_name[: _MAX_NAME_LENGTH - len(suffix)] + suffix
