"""Binary frames of ComfyUI's WebSocket; pure.

They begin with a big-endian u32: 1 ``[format][image]``, 3 ``[length][node id][text]``,
4 ``[length][JSON about the image][image]``; formats are 1 for JPEG and 2 for PNG.
"""

from __future__ import annotations

import struct
from typing import Any

from pydantic_core import from_json

__all__ = [
    "PREVIEW",
    "PREVIEW_WITH_METADATA",
    "TEXT",
    "described",
    "kind_of",
    "plain",
    "text_of",
    "with_text",
]

PREVIEW = 1
TEXT = 3
PREVIEW_WITH_METADATA = 4
_WORD = struct.Struct(">I")
_PNG = "image/png"


def kind_of(frame: bytes) -> int | None:
    """The type of a frame; None of what is too short to be one."""
    return _WORD.unpack_from(frame)[0] if len(frame) >= _WORD.size else None


def described(frame: bytes) -> tuple[dict[str, Any], int]:
    """What a frame of type 4 says about its image, and where that begins; else nothing."""
    if kind_of(frame) != PREVIEW_WITH_METADATA or len(frame) < 2 * _WORD.size:
        return {}, len(frame)
    start = 2 * _WORD.size + _WORD.unpack_from(frame, _WORD.size)[0]
    try:
        told = from_json(frame[2 * _WORD.size : start])
    except ValueError:
        return {}, len(frame)
    return (told, start) if isinstance(told, dict) else ({}, len(frame))


def text_of(frame: bytes) -> str | None:
    """Return the text of a frame of type 3; None of any other frame."""
    start = _text_start(frame)
    return None if start is None else frame[start:].decode(errors="replace")


def with_text(frame: bytes, text: str) -> bytes:
    """Return a frame of type 3 with another text; any other frame as it is."""
    start = _text_start(frame)
    return frame if start is None else frame[:start] + text.encode()


def _text_start(frame: bytes) -> int | None:
    if kind_of(frame) != TEXT or len(frame) < 2 * _WORD.size:
        return None
    length: int = _WORD.unpack_from(frame, _WORD.size)[0]
    return 2 * _WORD.size + length


def plain(frame: bytes) -> bytes:
    """A frame of type 4 as clients that do not know that type read it: type 1."""
    told, start = described(frame)
    if not told:
        return frame
    number = 2 if told.get("image_type") == _PNG else 1
    return _WORD.pack(PREVIEW) + _WORD.pack(number) + frame[start:]
