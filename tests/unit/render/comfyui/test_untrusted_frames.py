"""Tests that binary frames of a hostile node are refused or made harmless."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.render.comfyui.untrusted_frames import check_frame
from moyin.render.protocol.binary import parse_image_metadata, parse_preview, read_frame_text

PNG = b"\x89PNG\r\n\x1a\n"


def make_frame(metadata: bytes, length: int | None = None) -> bytes:
    return struct.pack(">II", 4, len(metadata) if length is None else length) + metadata + PNG


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\0\0\0\x01",
        struct.pack(">II", 2, 1) + PNG,
        struct.pack(">II", 77, 1) + PNG,
        struct.pack(">II", 3, 1) + b"a" + b"x" * (1024 * 1024),
        make_frame(b"{}", 2**32 - 1),
        make_frame(b"{"),
        make_frame(b"[]"),
        make_frame(b'{"a":' * 300 + b"1" + b"}" * 300),
        make_frame(b'{"a": "' + b"x" * (64 * 1024) + b'"}'),
        make_frame(b'{"node_id": ' + b"9" * 5000 + b"}"),
        make_frame(b'{"prompt_id": ["p"]}'),
        make_frame(b'{"node_id": {"p": 1}}'),
        make_frame(b'{"node_id": "\xff"}'),
    ],
    ids=lambda frame: repr(frame[:30]),
)
def test_hostile_frame_is_dropped(frame: bytes) -> None:
    assert check_frame(frame) is None


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack(">II", 1, 2) + PNG,
        struct.pack(">II", 3, 1) + b"1progress",
        make_frame(b'{"prompt_id":"p","node_id":"1","image_type":"image/png"}'),
    ],
    ids=["preview", "text", "metadata"],
)
def test_frame_of_comfyui_is_unchanged(frame: bytes) -> None:
    assert check_frame(frame) == frame


def test_metadata_becomes_valid_json() -> None:
    frame = check_frame(make_frame(b'{"node_id": "\\ud83d", "prompt_id": "p", "x": NaN}'))
    assert frame is not None
    assert parse_preview(frame) == (
        {"node_id": "\ufffd", "prompt_id": "p", "x": None},
        "image/png",
        PNG,
    )


@given(st.integers(0, 5), st.integers(0, 300), st.binary(max_size=300))
def test_any_frame_can_be_checked_and_read(frame_type: int, length: int, content: bytes) -> None:
    frame = check_frame(struct.pack(">II", frame_type, length) + content)
    if frame is not None:
        parse_image_metadata(frame)
        parse_preview(frame)
        read_frame_text(frame)
