"""Tests that a hostile tenant's pictures and schemas do not slow down other tenants."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from PIL import Image

from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.integration.gateway.fixtures import Farm
from tests.integration.text.fixtures import build_local_backend, serving, wait_until_probed
from tests.processes import with_lines
from tests.stack import RecordMeasurement
from tests.waiting import eventually

_ROUNDS = 12
_SOON_SECONDS = 60
_PAUSE_SECONDS = 0.1
BEYOND, LARGEST = (9900, 9900), (8192, 8192)
ENUM = {"enum": [f"value {n}" for n in range(4_000)]}
PATTERN = {"type": "string", "pattern": "^((((a?){9}){9}){9}){9}$"}


def encode_png(size: tuple[int, int], mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


async def upload_picture(client: aiohttp.ClientSession, name: str, picture: bytes) -> None:
    form = aiohttp.FormData()
    form.add_field("image", picture, filename=name, content_type="image/png")
    async with client.post("/upload/image", data=form) as response:
        assert response.status == 200, await response.text()


async def fetch_preview(
    client: aiohttp.ClientSession, name: str, preview: str
) -> tuple[int, bytes]:
    query = {"filename": name, "type": "input", "preview": preview}
    async with client.get("/view", params=query) as response:
        return response.status, await response.read()


async def upload_mask(client: aiohttp.ClientSession, name: str, mask: bytes) -> tuple[int, Any]:
    form = aiohttp.FormData()
    form.add_field("image", mask, filename="masked.png", content_type="image/png")
    form.add_field("original_ref", f'{{"filename": "{name}", "type": "input"}}')
    async with client.post("/upload/mask", data=form) as response:
        return response.status, await response.json()


async def test_pictures_of_any_size_cost_the_gateway_little(
    farm: Farm, record_measurement: RecordMeasurement
) -> None:
    qualities = itertools.count(1)
    hostile_session, other_session = farm.client, farm.other
    assert len(encode_png(BEYOND)) < 13_000
    await upload_picture(hostile_session, "beyond.png", encode_png(BEYOND))
    await upload_picture(hostile_session, "largest.png", encode_png(LARGEST))
    await upload_picture(other_session, "mine.png", encode_png((512, 512), "RGB"))

    async def view_preview() -> None:
        # Another quality each time: none of them is kept.
        status, image_bytes = await fetch_preview(
            other_session, "mine.png", f"webp;{next(qualities) % 100}"
        )
        assert status == 200
        with Image.open(io.BytesIO(image_bytes)) as picture:
            assert (picture.format, picture.size) == ("WEBP", (512, 512))

    async def attack() -> None:
        previews = await asyncio.gather(
            *(fetch_preview(hostile_session, "beyond.png", "webp") for _ in range(3)),
            fetch_preview(hostile_session, "largest.png", f"webp;{next(qualities) % 100}"),
        )
        # 429: the tenant's other pictures occupied its processes for too long.
        assert {status for status, _ in previews} <= {200, 413, 429}

    status, response_body = await fetch_preview(hostile_session, "beyond.png", "webp")
    assert (status, json.loads(response_body)["code"]) == (413, "picture_too_large")
    assert (
        "9900 x 9900 pixels; only pictures of at most 67,108,864"
        in json.loads(response_body)["error"]["message"]
    )
    status, body = await upload_mask(hostile_session, "largest.png", encode_png(BEYOND))
    assert (status, body["code"]) == (413, "picture_too_large")
    assert body["error"]["extra_info"]["max_pixels"] == 8192 * 8192
    await view_preview()
    mib_before = measure_memory_mib()
    usual_seconds = await measure_median(view_preview)
    async with repeating(attack) as attack_count:
        attack_seconds = await measure_median(view_preview)
    peak_mib = measure_memory_mib()
    await eventually(lambda: measure_memory_mib() <= mib_before * 1.1, _SOON_SECONDS)
    record_measurement(
        f"another tenant's preview took {usual_seconds * 1000:.0f} ms, "
        f"{attack_seconds * 1000:.0f} ms during "
        f"{attack_count()} rounds of hostile ones; the replica with its helpers held "
        f"{mib_before:.0f} MiB "
        f"before, {peak_mib:.0f} MiB right after, {measure_memory_mib():.0f} MiB within a minute"
    )
    # The very same preview is not made again.
    assert await fetch_preview(other_session, "mine.png", "webp;7") == await fetch_preview(
        other_session, "mine.png", "webp;7"
    )


async def test_schemas_of_any_size_cost_llama_cpp_nothing(
    llama: str, tmp_path: Path, record_measurement: RecordMeasurement
) -> None:
    backend = build_local_backend(llama)
    backend["models"][0] |= {"schema": True, "tools": True}
    async with serving(tmp_path, backend) as models_app:
        await wait_until_probed(models_app)
        database = Database(Settings(data=tmp_path).sql_url)
        _, key = await KeyStore(database).create("bob", "test")
        await database.close()
        hostile_session, other_session = (
            open_session(models_app.url, models_app.api_key),
            open_session(models_app.url, key),
        )

        async def send_chat() -> None:
            status, body = await complete_chat(other_session)
            assert status == 200 and body["usage"]["completion_tokens"] > 0

        async def attack() -> None:
            response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": ENUM}}
            function = {"name": "f", "strict": True, "parameters": PATTERN}
            tool = {"type": "function", "function": function}
            for members, field in (
                ({"response_format": response_format}, "response_format.json_schema.schema"),
                ({"tools": [tool]}, "tools.0.function.parameters"),
                ({"json_schema": PATTERN}, "json_schema"),
            ):
                status, body = await complete_chat(hostile_session, **members)
                assert (status, body["error"]["code"]) == (400, "schema_too_large")
                assert body["error"]["param"] == field

        async with hostile_session, other_session:
            await send_chat()
            usual_seconds = await measure_median(send_chat)
            async with repeating(attack) as attack_count:
                attack_seconds = await measure_median(send_chat)
        record_measurement(
            f"another tenant's answer took {usual_seconds * 1000:.0f} ms, "
            f"{attack_seconds * 1000:.0f} ms during "
            f"{attack_count()} rounds of hostile schemas"
        )


def open_session(url: str, key: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(url, headers={"authorization": f"Bearer {key}"})


async def complete_chat(client: aiohttp.ClientSession, **members: Any) -> tuple[int, Any]:
    message = {"role": "user", "content": "Say hello."}
    body = {"model": "smollm2", "messages": [message], "max_tokens": 4, **members}
    async with client.post("/v1/chat/completions", json=body) as response:
        return response.status, await response.json()


async def measure_median(action: Callable[[], Awaitable[None]]) -> float:
    """Return the median duration of ``action`` in seconds."""
    call_seconds = []
    for _ in range(_ROUNDS):
        started_at = time.monotonic()
        await action()
        call_seconds.append(time.monotonic() - started_at)
    return statistics.median(call_seconds)


@asynccontextmanager
async def repeating(action: Callable[[], Awaitable[None]]) -> AsyncIterator[Callable[[], int]]:
    """Repeat ``action`` during the block; yield a function that returns how often it has ended.

    The block begins when ``action`` has ended once.
    """
    stop_event, round_count = asyncio.Event(), 0

    async def repeat_action() -> None:
        nonlocal round_count
        while not round_count or not stop_event.is_set():
            await action()
            round_count += 1
            # The attack shares this process with the servers, so it must not flood them.
            await asyncio.sleep(_PAUSE_SECONDS)

    task = asyncio.create_task(repeat_action())
    yield lambda: round_count
    stop_event.set()
    await task


def measure_memory_mib() -> float:
    """Return the memory in MiB of this process with the gateway, and of its picture converters."""
    process = psutil.Process()
    memory_bytes = process.memory_info().rss
    for child, line in with_lines(process.children()):
        if "imaging" in line:
            # A process that has ended meanwhile holds no memory.
            with suppress(psutil.Error):
                memory_bytes += child.memory_info().rss
    return memory_bytes / 2**20
