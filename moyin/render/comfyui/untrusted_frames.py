"""Checks the binary frames that a ComfyUI process sends, in which a node may have written anything.

Pictures in frames are never decoded here: clients decode them, and see only those of their own
prompts.
"""

from __future__ import annotations

import struct

from pydantic_core import to_json

from moyin.render.comfyui.untrusted_json import (
    FRAME_METADATA_LIMITS,
    MalformedResponse,
    parse_untrusted_json,
    require_object,
)
from moyin.render.protocol.binary import (
    PREVIEW_TYPE,
    PREVIEW_WITH_METADATA_TYPE,
    TEXT_TYPE,
    read_frame_type,
)

# Texts show the progress of a node.
_MAX_TEXT_BYTES = 1024 * 1024
_U32 = struct.Struct(">I")
_IDS = ("prompt_id", "node_id")
_SOURCE = "metadata of a picture"


def check_frame(frame: bytes) -> bytes | None:
    """Return a frame with valid metadata, or None if no client of ComfyUI could read the frame.

    The metadata becomes JSON as `parse_untrusted_json` reads it. The frame's types and layout are
    those of `moyin.render.protocol.binary`.
    """
    if len(frame) < 2 * _U32.size:
        return None
    frame_type = read_frame_type(frame)
    if frame_type == PREVIEW_WITH_METADATA_TYPE:
        return _check_metadata(frame)
    if frame_type == TEXT_TYPE:
        return frame if len(frame) <= _MAX_TEXT_BYTES else None
    return frame if frame_type == PREVIEW_TYPE else None


def _check_metadata(frame: bytes) -> bytes | None:
    metadata_start = 2 * _U32.size
    image_start = metadata_start + _U32.unpack_from(frame, _U32.size)[0]
    if image_start > min(len(frame), metadata_start + FRAME_METADATA_LIMITS.max_bytes):
        return None
    try:
        content = frame[metadata_start:image_start]
        metadata = require_object(
            parse_untrusted_json(content, FRAME_METADATA_LIMITS, _SOURCE), _SOURCE
        )
    except MalformedResponse:
        return None
    if not all(isinstance(metadata.get(name), str | None) for name in _IDS):
        return None
    new_content = to_json(metadata)
    if new_content == content:
        return frame  # without a copy of the picture
    header = _U32.pack(PREVIEW_WITH_METADATA_TYPE) + _U32.pack(len(new_content))
    return header + new_content + frame[image_start:]
