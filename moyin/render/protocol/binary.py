"""Reads and writes binary frames of ComfyUI's WebSocket.

A frame begins with its type as a big-endian u32. Type 1 is followed by ``[format][image]``, type 3
by ``[length][node id][text]``, and type 4 by ``[length][JSON metadata][image]``. The format is 1
for JPEG and 2 for PNG.
"""

from __future__ import annotations

import struct
from typing import Any

from pydantic_core import from_json

PREVIEW_TYPE = 1
TEXT_TYPE = 3
PREVIEW_WITH_METADATA_TYPE = 4
_U32 = struct.Struct(">I")
_PNG = "image/png"
_SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": _PNG}


def read_frame_type(frame: bytes) -> int | None:
    """Return the type of a frame, or None if the frame is too short to have a type."""
    return _U32.unpack_from(frame)[0] if len(frame) >= _U32.size else None


def parse_image_metadata(frame: bytes) -> tuple[dict[str, Any], int]:
    """Return the metadata of a frame of type 4 and the offset of its image.

    For any other frame, return an empty dictionary and the length of the frame.
    """
    if read_frame_type(frame) != PREVIEW_WITH_METADATA_TYPE or len(frame) < 2 * _U32.size:
        return {}, len(frame)
    image_start = 2 * _U32.size + _U32.unpack_from(frame, _U32.size)[0]
    try:
        metadata = from_json(frame[2 * _U32.size : image_start])
    except ValueError:
        return {}, len(frame)
    return (metadata, image_start) if isinstance(metadata, dict) else ({}, len(frame))


def parse_preview(frame: bytes) -> tuple[dict[str, Any], str, bytes] | None:
    """Return the metadata, the media type and the picture of a preview, or None for other frames.

    The media type follows from the picture's bytes, because nodes may state a wrong format.
    """
    if read_frame_type(frame) == PREVIEW_TYPE:
        metadata: dict[str, Any] = {}
        picture = frame[2 * _U32.size :]
    else:
        metadata, image_start = parse_image_metadata(frame)
        picture = frame[image_start:]
    for signature, media_type in _SIGNATURES.items():
        if picture.startswith(signature):
            return metadata, media_type, picture
    return None


def read_frame_text(frame: bytes) -> str | None:
    """Return the text of a frame of type 3, or None for a frame of another type."""
    text_start = _find_text_start(frame)
    return None if text_start is None else frame[text_start:].decode(errors="replace")


def replace_frame_text(frame: bytes, text: str) -> bytes:
    """Return a frame of type 3 with its text replaced; return any other frame unchanged."""
    text_start = _find_text_start(frame)
    return frame if text_start is None else frame[:text_start] + text.encode()


def _find_text_start(frame: bytes) -> int | None:
    if read_frame_type(frame) != TEXT_TYPE or len(frame) < 2 * _U32.size:
        return None
    length: int = _U32.unpack_from(frame, _U32.size)[0]
    return 2 * _U32.size + length


def to_plain_preview(frame: bytes) -> bytes:
    """Convert a frame of type 4 to type 1, for clients that do not support type 4.

    Any other frame is returned unchanged.
    """
    metadata, image_start = parse_image_metadata(frame)
    if not metadata:
        return frame
    image_format = 2 if metadata.get("image_type") == _PNG else 1
    return _U32.pack(PREVIEW_TYPE) + _U32.pack(image_format) + frame[image_start:]
