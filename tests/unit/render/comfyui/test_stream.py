"""The reading of what ComfyUI, or a node in its process, says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.paths import HostPaths
from moyin.render.comfyui.stream import EventStream
from moyin.render.protocol.wire import Message


async def test_what_comes_after_nonsense_is_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def speak(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("{")
        for word in ("odd", "odd", "sane"):
            await socket.send_json({"type": word, "data": {}})
            await socket.send_bytes(word.encode())
        await over.wait()
        return socket

    def hear(said: Message | bytes) -> None:
        told = said.decode() if isinstance(said, bytes) else said.type
        heard.append(told)
        if told == "odd":
            raise TypeError("what a node sent is not shaped like an event")
        if heard.count("sane") == 2:
            all_heard.set()

    heard: list[str] = []
    all_heard, over = asyncio.Event(), asyncio.Event()
    app = web.Application()
    app.router.add_get("/ws", speak)
    runner = web.AppRunner(app)
    await runner.setup()
    address = str(tmp_path / "comfyui.sock")
    await web.UnixSite(runner, address).start()
    async with ComfyClient(address, "c", HostPaths({})) as client:
        reading = asyncio.create_task(EventStream(client, hear, hear).run())
        try:
            async with asyncio.timeout(10):
                await all_heard.wait()
        finally:
            over.set()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    await runner.cleanup()
    assert heard == ["odd"] * 4 + ["sane"] * 2
    assert len(caplog.records) == 1
