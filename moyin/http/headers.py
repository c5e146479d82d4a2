"""Parses request headers that several services share, and builds the headers of stored files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from moyin.domain.artifact import UNKNOWN_MEDIA_TYPE, Artifact

# Media types that browsers display without running content. All others are downloads.
_INLINE_TYPES = frozenset(
    {
        "application/json", "audio/flac", "audio/mp4", "audio/mpeg", "audio/ogg", "audio/wav",
        "image/avif", "image/gif", "image/jpeg", "image/png", "image/webp", "model/gltf-binary",
        "text/plain", "video/mp4", "video/webm",
    }
)  # fmt: skip
# File names that need no encoding in a quoted string. Clients of ComfyUI read only this form.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9 ._()-]+")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def prefers_async_response(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return True if the ASGI headers contain ``Prefer: respond-async`` (RFC 7240)."""
    return any(
        preference.partition(b";")[0].strip() == b"respond-async"
        for name, value in headers
        if name == b"prefer"
        for preference in value.lower().split(b",")
    )


def build_file_headers(artifact: Artifact) -> Mapping[str, str]:
    """Return response headers for an artifact's content, which caches may keep for a year."""
    is_inline = artifact.media_type in _INLINE_TYPES
    content_type = artifact.media_type if is_inline else UNKNOWN_MEDIA_TYPE
    charset = "; charset=utf-8" if content_type == "text/plain" else ""
    disposition = "inline" if is_inline else "attachment"
    return {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "content-disposition": f"{disposition}; {_format_file_name(artifact.name)}",
        "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'",
        "content-type": f"{content_type}{charset}",
        "cross-origin-resource-policy": "same-site",
        "etag": f'"{artifact.sha256}"',
        "x-content-type-options": "nosniff",
    }


def build_archive_headers(name: str, size: int) -> Mapping[str, str]:
    """Return response headers that make a browser save an archive as a file and forbid caching.

    Args:
        name: the name of the file.
        size: the size of the archive in bytes.
    """
    return {
        "cache-control": "private, no-store",
        "content-disposition": f"attachment; {_format_file_name(name)}",
        "content-length": str(size),
        "content-security-policy": "sandbox; default-src 'none'",
        "content-type": "application/zip",
        "cross-origin-resource-policy": "same-site",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def _format_file_name(name: str) -> str:
    """Return the ``filename`` parameter of a Content-Disposition header (RFC 6266)."""
    if _PLAIN_NAME.fullmatch(name):
        return f'filename="{name}"'
    return f"filename*=UTF-8''{quote(name, safe='')}"


def parse_byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a Range header for content of ``size`` bytes.

    Returns:
        The start and the exclusive end; both are equal if the range is outside the content. None
        means that the whole content is sent, because the header is missing, invalid, or lists
        several ranges.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or match.group(1, 2) == ("", ""):
        return None
    start_text, end_text = match.group(1, 2)
    if start_text == "":
        length = min(int(end_text), size)
        return size - length, size
    start = int(start_text)
    if end_text != "" and int(end_text) < start:
        return None
    if start >= size:
        return size, size
    return start, size if end_text == "" else min(int(end_text) + 1, size)
