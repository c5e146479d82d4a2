"""Tests the streams of WebSocket frames for ComfyUI's clients in a real Valkey."""

from __future__ import annotations

from pathlib import Path

import redis

from moyin.store.frames import Frame, FrameKind, FrameStore
from tests.integration.servers import ValkeyServer


async def test_a_stream_holds_many_small_frames_or_few_large_ones(tmp_path: Path) -> None:
    valkey = ValkeyServer(tmp_path, durable=False)
    store = FrameStore(valkey.url)
    try:
        for channel, size, count in (("small", 100, 400), ("large", 1024 * 1024, 40)):
            frame = Frame(kind=FrameKind.TEXT, prompt="p", body=b"x" * size)
            for _ in range(count):
                await store.publish(channel, frame)
        with redis.Redis.from_url(valkey.url) as client:
            assert client.xlen("moyin:frames:small") == 400
            assert 8 <= client.xlen("moyin:frames:large") <= 10
    finally:
        await store.close()
        valkey.kill()
