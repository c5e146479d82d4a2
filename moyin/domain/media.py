"""Sanitises media types and names of stored files, and builds headers to serve them safely."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from urllib.parse import quote

from moyin.domain.artifact import Artifact
from moyin.errors import InvalidRequest

__all__ = ["SNIFF_BYTES", "byte_range", "clean_name", "media_type", "serving_headers"]

SNIFF_BYTES = 16
UNKNOWN = "application/octet-stream"
# Media types that browsers display without running content. All others are downloads.
_INLINE_TYPES = frozenset(
    {
        "application/json", "audio/flac", "audio/mpeg", "audio/ogg", "audio/wav", "image/avif",
        "image/gif", "image/jpeg", "image/png", "image/webp", "text/plain", "video/mp4",
        "video/webm",
    }
)  # fmt: skip
_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,62}/[a-z0-9][a-z0-9!#$&^_.+-]{0,62}")
_MAX_NAME = 200
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
)
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def media_type(declared: str | None, head: bytes) -> str:
    """Return the media type to store for an upload.

    Args:
        declared: the client's Content-Type; parameters are dropped.
        head: the first `SNIFF_BYTES` of the content, which decide if no type was declared.

    Raises:
        InvalidRequest: ``declared`` is not a media type.
    """
    plain = (declared or UNKNOWN).partition(";")[0].strip().lower()
    if not _TYPE.fullmatch(plain):
        raise InvalidRequest(
            "Content-Type must be a media type such as image/png", field="Content-Type"
        )
    if plain not in (UNKNOWN, "application/x-www-form-urlencoded"):
        return plain
    for offset, signature, detected in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return detected
    return UNKNOWN


def clean_name(name: str | None, media: str) -> str:
    """Remove folders and control characters from a file name; create a name if none is left."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    clean = "".join(character for character in last if character.isprintable()).strip(". ")
    if not clean:
        return f"upload{mimetypes.guess_extension(media) or '.bin'}"
    if len(clean) <= _MAX_NAME:
        return clean
    suffix = PurePosixPath(clean).suffix[:20]
    return clean[: _MAX_NAME - len(suffix)] + suffix


def serving_headers(artifact: Artifact) -> Mapping[str, str]:
    """Return the headers of responses with the content of an artifact, which never changes."""
    is_inline = artifact.media_type in _INLINE_TYPES
    kind = artifact.media_type if is_inline else UNKNOWN
    charset = "; charset=utf-8" if kind == "text/plain" else ""
    disposition = "inline" if is_inline else "attachment"
    return {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f"{disposition}; filename*=UTF-8''{quote(artifact.name, safe='')}",
        "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
        "content-type": f"{kind}{charset}",
        "cross-origin-resource-policy": "same-site",
        "etag": f'"{artifact.sha256}"',
        "x-content-type-options": "nosniff",
    }


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a Range header to start and exclusive end.

    None means the whole content: the header is missing, invalid, or has several ranges. An empty
    range (start equals end) lies outside of the content.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.group(1, 2)
    if first == "":
        length = min(int(last), size)
        return size - length, size
    start = int(first)
    if last != "" and int(last) < start:
        return None
    if start >= size:
        return size, size
    return start, size if last == "" else min(int(last) + 1, size)
