"""Tests the parsing of events that ComfyUI or a hostile node sends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from moyin.render.comfyui.client import ComfyClient
from moyin.render.comfyui.paths import HostPathFilter
from moyin.render.comfyui.stream import EventStream
from moyin.render.protocol.wire import EventMessage

MESSAGE_COUNT = 5_000


async def test_messages_after_invalid_ones_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def send_messages(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("{")
        for word in ("odd", "odd", "sane"):
            await socket.send_json({"type": word, "data": {}})
            await socket.send_bytes(b"\0\0\0\x01\0\0\0\x01" + word.encode())
            await socket.send_bytes(word.encode())
        await is_over.wait()
        return socket

    def on_message(message: EventMessage | bytes) -> None:
        name = message[8:].decode() if isinstance(message, bytes) else message.type
        received_names.append(name)
        if name == "odd":
            raise TypeError("not an event")
        if received_names.count("sane") == 2:
            all_received.set()

    received_names: list[str] = []
    all_received, is_over = asyncio.Event(), asyncio.Event()
    app = web.Application()
    app.router.add_get("/ws", send_messages)
    runner = web.AppRunner(app)
    await runner.setup()
    address = str(tmp_path / "comfyui.sock")
    await web.UnixSite(runner, address).start()
    async with ComfyClient(address, "c", HostPathFilter({})) as client:
        reading_task = asyncio.create_task(EventStream(client, on_message, on_message).run())
        try:
            async with asyncio.timeout(10):
                await all_received.wait()
        finally:
            is_over.set()
            reading_task.cancel()
            await asyncio.gather(reading_task, return_exceptions=True)
    await runner.cleanup()
    assert received_names == ["odd"] * 4 + ["sane"] * 2
    assert len(caplog.records) == 1


async def test_flood_of_messages_is_read_in_turns_with_other_tasks(
    tmp_path: Path,
) -> None:
    """Other tasks get a turn between messages, and no message waits in an unbounded queue."""
    message_count = longest_run = 0
    is_over = asyncio.Event()

    async def send_messages(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for number in range(MESSAGE_COUNT):
            await socket.send_str('{"type": "progress", "data": {"value": NaN}}')
            if number % 100 == 0:
                await socket.send_bytes(b"\0\0\0\x01\0\0\0\x01" + bytes(100_000))
        await socket.send_str('{"type": "end"}')
        await is_over.wait()
        return socket

    def on_event(message: EventMessage) -> None:
        nonlocal message_count
        message_count += 1
        if message.type == "end":
            is_over.set()

    async def take_turns() -> None:
        nonlocal longest_run
        while not is_over.is_set():
            count_before = message_count
            await asyncio.sleep(0)
            longest_run = max(longest_run, message_count - count_before)

    app = web.Application()
    app.router.add_get("/ws", send_messages)
    runner = web.AppRunner(app)
    await runner.setup()
    address = str(tmp_path / "comfyui.sock")
    await web.UnixSite(runner, address).start()
    async with ComfyClient(address, "c", HostPathFilter({})) as client:
        reading_task = asyncio.create_task(EventStream(client, on_event, lambda _: None).run())
        async with asyncio.timeout(60):
            await take_turns()
        reading_task.cancel()
        await asyncio.gather(reading_task, return_exceptions=True)
    await runner.cleanup()
    assert message_count == MESSAGE_COUNT + 1
    assert longest_run <= 64
