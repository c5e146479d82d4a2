from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_core import from_json, to_json

from moyin.domain.prompt import ComfyFileName, PromptFile
from moyin.domain.renderer import RenderRequest
from moyin.render.comfyui.relay import Relay
from moyin.render.protocol.wire import EventMessage
from moyin.store.blobs import BlobStore
from moyin.store.frames import Frame, FrameKind, FrameStore

GRAPH = {"1": {"class_type": "SaveImageWebsocket"}, "2": {"class_type": "KSampler"}}


class FakeFrameStore:
    """A fake `FrameStore` that can respond slowly, like a Valkey under load."""

    def __init__(self) -> None:
        self.published: list[Frame] = []
        self.files: list[PromptFile] = []
        self.open = asyncio.Event()
        self.open.set()

    async def publish(self, channel: str, *frames: Frame) -> None:
        await self.open.wait()
        assert channel == "channel"
        self.published += frames

    async def add_file(self, prompt_id: str, file: PromptFile) -> None:
        self.files.append(file)


@pytest.fixture
def frame_store() -> FakeFrameStore:
    return FakeFrameStore()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}")


@pytest.fixture
def relay(frame_store: FakeFrameStore, blobs: BlobStore) -> Relay:
    async def store_files(prompt_id: str, output: Any) -> list[PromptFile]:
        name = ComfyFileName(filename="a.png", subfolder=prompt_id)
        return [PromptFile(name=name, media_type="image/png", size=1, sha256="1" * 64)]

    request = RenderRequest(prompt_id="p", graph=GRAPH)
    return Relay(cast(FrameStore, frame_store), blobs, request, "channel", store_files)


def make_message(message_type: str, **data: Any) -> EventMessage:
    return EventMessage(type=message_type, data={"prompt_id": "p", **data})


def make_picture_frame(node: str, content: bytes = b"picture") -> bytes:
    metadata = to_json({"node_id": node, "prompt_id": "p", "image_type": "image/png"})
    return struct.pack(">II", 4, len(metadata)) + metadata + content


def list_kinds(frame_store: FakeFrameStore) -> list[str]:
    return [
        from_json(frame.body)["type"] if frame.kind is FrameKind.TEXT else frame.kind.value
        for frame in frame_store.published
    ]


async def test_events_are_sent_in_order_without_the_end(
    relay: Relay, frame_store: FakeFrameStore
) -> None:
    for kind in ("execution_start", "execution_cached", "progress", "execution_success"):
        relay.enqueue(make_message(kind))
    relay.enqueue(make_message("executing", node=None))
    relay.enqueue(make_message("executing", node="2"))
    await relay.flush()
    # The end is published when it has been written to the job's row.
    assert list_kinds(frame_store) == [
        "status", "execution_start", "execution_cached", "progress", "executing",
    ]  # fmt: skip


async def test_files_are_stored_before_their_event_is_sent(
    relay: Relay, frame_store: FakeFrameStore
) -> None:
    images = [{"filename": "a.png", "subfolder": "p/sub", "type": "output"}]
    relay.enqueue(make_message("executed", node="1", output={"images": images, "text": ["word"]}))
    relay.enqueue(make_message("executed", node="2", output=None))
    await relay.flush()
    assert [file.name.filename for file in frame_store.files] == ["a.png"]
    first_output, second_output = (
        from_json(frame.body)["data"]["output"] for frame in frame_store.published
    )
    assert first_output == {"images": images, "text": ["word"]}
    assert second_output is None


async def test_output_frames_are_stored_as_blobs(
    relay: Relay, frame_store: FakeFrameStore, blobs: BlobStore
) -> None:
    relay.enqueue(make_picture_frame("1"))
    relay.enqueue(make_picture_frame("2"))
    await relay.flush()
    output_frame, preview_frame = frame_store.published
    assert (output_frame.kind, preview_frame.kind) == (FrameKind.BLOB, FrameKind.BINARY)
    assert output_frame.body + await blobs.get(output_frame.blob) == make_picture_frame("1")
    assert preview_frame.body == make_picture_frame("2")


async def flush_all(relay: Relay) -> None:
    """Flush several times, because one flush may be too short for hundreds of frames."""
    for _ in range(20):
        await relay.flush()


async def test_slow_stream_loses_only_previews_and_progress(
    relay: Relay, frame_store: FakeFrameStore
) -> None:
    frame_store.open.clear()
    for number in range(500):
        relay.enqueue(make_message("progress", value=number))
        relay.enqueue(make_picture_frame("2"))
    for number in range(300):
        relay.enqueue(make_message("executed", node=str(number), output=None))
        relay.enqueue(make_picture_frame("1", str(number).encode()))
    frame_store.open.set()
    await flush_all(relay)
    sent_kinds = list_kinds(frame_store)
    assert sent_kinds.count("executed") == 300
    assert sent_kinds.count("blob") == 300
    assert sent_kinds.count("progress") + sent_kinds.count("binary") <= 2 * 64


async def test_too_large_output_is_sent_without_content(
    relay: Relay, frame_store: FakeFrameStore
) -> None:
    huge_text = "x" * (1024 * 1024)
    relay.enqueue(make_message("executed", node="2", output={"text": [huge_text]}))
    relay.enqueue(make_message("custom", text=huge_text))
    relay.enqueue(make_picture_frame("2", huge_text.encode()))
    relay.enqueue(make_picture_frame("1", huge_text.encode()))
    relay.enqueue(make_message("executed", node="3", output={"text": ["small"]}))
    await relay.flush()
    assert list_kinds(frame_store) == ["executed", "blob", "executed"]
    assert from_json(frame_store.published[0].body)["data"] == {
        "prompt_id": "p",
        "node": "2",
        "output": None,
    }
    assert from_json(frame_store.published[2].body)["data"]["output"] == {"text": ["small"]}


async def test_queue_of_a_relay_drops_events_when_it_is_full(
    relay: Relay, frame_store: FakeFrameStore, caplog: pytest.LogCaptureFixture
) -> None:
    frame_store.open.clear()
    for number in range(10_000):
        relay.enqueue(make_message("executed", node=str(number), output=None))
    frame_store.open.set()
    await flush_all(relay)
    assert len(frame_store.published) <= 2_048 + 64
    assert "dropped, because its queue is full" in caplog.text


async def test_large_pictures_and_events_fill_only_a_bounded_queue(
    relay: Relay, frame_store: FakeFrameStore
) -> None:
    """Ten thousand pictures of a megabyte, and as many texts, wait for a slow store."""
    frame_store.open.clear()
    output, preview = (make_picture_frame(node, bytes(1_000_000)) for node in "12")
    text = make_message("text").model_copy(update={"byte_count": 8_000_000})
    for _ in range(10_000):
        relay.enqueue(preview)
        relay.enqueue(output)
        relay.enqueue(text)
    assert relay._queue_bytes <= 256 * 1024 * 1024 + 8_000_000
    assert sum(message is preview for message in relay._queue) <= 17
    frame_store.open.set()
    await relay.flush()
    assert relay._queue_bytes == 0
    relay.enqueue(output)
    await relay.flush()
    assert frame_store.published[-1].kind is FrameKind.BLOB
