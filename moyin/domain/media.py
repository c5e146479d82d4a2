"""Media types and names of stored files, so that serving them can't hurt anyone."""

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
# What browsers show without running anything in it. Everything else is a download of bytes.
_SHOWN = frozenset(
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
    """The media type to keep for an upload.

    Args:
        declared: the client's Content-Type; parameters are dropped.
        head: the first `SNIFF_BYTES` of the content, which decide when nothing was declared.

    Raises:
        InvalidRequest: ``declared`` is not a media type.
    """
    plain = (declared or UNKNOWN).partition(";")[0].strip().lower()
    if not _TYPE.fullmatch(plain):
        raise InvalidRequest("Content-Type is not a media type", field="Content-Type")
    if plain not in (UNKNOWN, "application/x-www-form-urlencoded"):
        return plain
    for offset, signature, found in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return found
    return UNKNOWN


def clean_name(name: str | None, media: str) -> str:
    """A file name without folders or control characters; one is made up where none is left."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    kept = "".join(character for character in last if character.isprintable()).strip(". ")
    if not kept:
        return f"upload{mimetypes.guess_extension(media) or '.bin'}"
    if len(kept) <= _MAX_NAME:
        return kept
    suffix = PurePosixPath(kept).suffix[:20]
    return kept[: _MAX_NAME - len(suffix)] + suffix


def serving_headers(artifact: Artifact) -> Mapping[str, str]:
    """Headers of every answer that carries an artifact; its content never changes."""
    shown = artifact.media_type in _SHOWN
    kind = artifact.media_type if shown else UNKNOWN
    charset = "; charset=utf-8" if kind == "text/plain" else ""
    disposition = "inline" if shown else "attachment"
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
    """The part that a Range header asks for, as start and exclusive end.

    None means the whole: no header, several ranges, or one that makes no sense. An empty part
    (start equals end) means that the range lies outside.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.group(1, 2)
    if first == "":
        wanted = min(int(last), size)
        return size - wanted, size
    start = int(first)
    if last != "" and int(last) < start:
        return None
    if start >= size:
        return size, size
    return start, size if last == "" else min(int(last) + 1, size)
