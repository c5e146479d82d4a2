"""Tests which frames are published as previews, and how often."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from pydantic_core import to_json

from moyin.domain.renderer import RenderRequest
from moyin.render.comfyui.preview_publisher import PreviewPublisher
from moyin.render.protocol.binary import parse_preview
from moyin.store.previews import Preview
from tests.waiting import eventually

JPEG, PNG = b"\xff\xd8\xff rest", b"\x89PNG\r\n\x1a\n rest"


def pack_frame(picture: bytes) -> bytes:
    return struct.pack(">II", 1, 1) + picture


def pack_named_frame(picture: bytes, **metadata: Any) -> bytes:
    header = to_json(metadata)
    return struct.pack(">II", 4, len(header)) + header + picture


class FakePreviewStore:
    def __init__(self) -> None:
        self.published: list[tuple[str, Preview, bytes]] = []

    async def publish(self, job_id: str, preview: Preview, picture: bytes) -> None:
        self.published.append((job_id, preview, picture))


def make_publisher(store: FakePreviewStore) -> PreviewPublisher:
    untyped_store: Any = store
    return PreviewPublisher(
        untyped_store, RenderRequest(prompt_id="p", graph={}, job_id="j", step=2)
    )


async def test_the_newest_frame_is_published_and_those_in_between_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pause_has_ended = asyncio.Event()

    async def sleep(_: float) -> None:
        await pause_has_ended.wait()

    monkeypatch.setattr("moyin.render.comfyui.preview_publisher.asyncio.sleep", sleep)
    store = FakePreviewStore()
    publisher = make_publisher(store)
    publisher.schedule_frame(pack_named_frame(JPEG, node_id="3"))
    for _ in range(5):
        await _run_other_tasks()
    for number in range(9):
        publisher.schedule_frame(pack_frame(PNG + b"%d" % number))
        await _run_other_tasks()
    first_preview = Preview(step=2, node="3", media_type="image/jpeg")
    assert store.published == [("j", first_preview, JPEG)]
    pause_has_ended.set()
    for _ in range(5):
        await _run_other_tasks()
    last_preview = Preview(step=2, node="", media_type="image/png")
    assert store.published[1:] == [("j", last_preview, PNG + b"8")]


async def test_large_frames_and_frames_without_a_picture_are_dropped() -> None:
    store = FakePreviewStore()
    for frame in (
        pack_frame(JPEG + bytes(256 * 1024)),
        pack_frame(b"<html>"),
        pack_named_frame(b"", node_id="1"),
        b"",
    ):
        publisher = make_publisher(store)
        publisher.schedule_frame(frame)
        await _run_other_tasks()
        await _run_other_tasks()
        publisher.stop()
    publisher = make_publisher(store)
    publisher.schedule_frame(pack_frame(JPEG))
    await eventually(lambda: len(store.published) == 1, 10)
    publisher.stop()


@pytest.mark.parametrize(
    ("frame", "expected_preview"),
    [
        (pack_frame(JPEG), ({}, "image/jpeg", JPEG)),
        (
            pack_named_frame(PNG, image_type="text/html"),
            ({"image_type": "text/html"}, "image/png", PNG),
        ),
        (pack_frame(b"<svg>"), None),
        (struct.pack(">I", 3) + JPEG, None),
        (struct.pack(">II", 4, 2**31) + JPEG, None),
        (b"\x00", None),
        (b"", None),
    ],
)
def test_only_pictures_are_previews(frame: bytes, expected_preview: Any) -> None:
    assert parse_preview(frame) == expected_preview


async def _run_other_tasks() -> None:
    """Let the other tasks run once."""
    loop = asyncio.get_running_loop()
    next_turn = loop.create_future()
    loop.call_soon(next_turn.set_result, None)
    await next_turn
