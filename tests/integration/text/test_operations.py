"""Tests calls other than chats: budgets, the ledger, uploads, and clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio as redis
from aiohttp import web

from moyin.domain.limits import Limit
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.limits import LimitStore
from moyin.store.sql import Database
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import ModelsApp, serving
from tests.waiting import eventually

HEAD = b"ID3 audio"
FORM = "multipart/form-data; boundary=x"


class SpeechServer:
    """A back end that sends the first bytes of speech, and the rest once ``may_end`` is set.

    Attributes:
        left: set when the client has disconnected before the rest was sent.
        uploaded: the size of the last upload in bytes.
    """

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.left = asyncio.Event()
        self.uploaded = 0

    async def speak(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "audio/mpeg"})
        await response.prepare(request)
        await response.write(HEAD)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response

    async def transcribe(self, request: web.Request) -> web.Response:
        self.uploaded = len(await request.read())
        return web.json_response({"text": "Hi", "usage": {"type": "duration", "seconds": 60}})


@pytest.fixture
async def speech_server() -> AsyncIterator[tuple[SpeechServer, str]]:
    speaker, app = SpeechServer(), web.Application(client_max_size=8 * 2**20)
    app.router.add_post("/v1/audio/speech", speaker.speak)
    app.router.add_post("/v1/audio/transcriptions", speaker.transcribe)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield speaker, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    speaker.may_end.set()
    await runner.cleanup()


class OperationsApp:
    """The models app with back ends for speech and transcription, and the costs that it booked."""

    def __init__(self, models_app: ModelsApp, database: Database, valkey: Any) -> None:
        self.models_app = models_app
        self.database = database
        self._valkey = valkey

    async def create_client(self, **limits: Any) -> tuple[str, aiohttp.ClientSession]:
        """Return the id of a new API key with these limits, and a client that uses the key."""
        key_id, key = await KeyStore(self.database).create("studio", "k")
        await LimitStore(self.database).set(Limit(subject=f"key:{key_id}", **limits))
        headers = {"authorization": f"Bearer {key}"}
        return key_id, aiohttp.ClientSession(f"{self.models_app.url}/v1/", headers=headers)

    async def read_booked_usd(self, key_id: str) -> Decimal:
        budget_key = f"moyin:limit:{{studio}}:key:{key_id}:money"
        return Decimal(int(await self._valkey.hget(budget_key, "day_nano") or 0)) / 10**9


@pytest.fixture
async def operations_app(
    speech_server: tuple[SpeechServer, str], tmp_path: Path, valkey_server: ValkeyServer
) -> AsyncIterator[OperationsApp]:
    models = [
        {"name": "tts", "abilities": ["speech"], "price": {"usd_per_million_characters": 10}},
        {"name": "whisper", "abilities": ["transcription"], "price": {"usd_per_minute": 0.006}},
    ]
    backend = {"name": "b", "type": "openai", "base_url": speech_server[1], "models": models}
    database = Database(Settings(data=tmp_path).sql_url)
    async with (
        serving(tmp_path, backend, redis_url=valkey_server.url) as models_app,
        redis.Redis.from_url(valkey_server.url) as valkey,
    ):
        yield OperationsApp(models_app, database, valkey)
    await database.close()


def build_speech_body(characters: int) -> dict[str, Any]:
    return {"model": "tts", "voice": "a", "input": "x" * characters}


async def test_units_are_reserved_settled_and_shown(
    operations_app: OperationsApp, speech_server: tuple[SpeechServer, str]
) -> None:
    key_id, http = await operations_app.create_client(usd_per_day=Decimal("0.01"))
    async with http:
        async with http.post("audio/speech", json=build_speech_body(600)) as first_response:
            assert first_response.status == 200
            assert await first_response.content.read(len(HEAD)) == HEAD
            # 0.006 of 0.01 USD are reserved while the first is spoken.
            async with http.post("audio/speech", json=build_speech_body(600)) as second_response:
                assert second_response.status == 402
                error = (await second_response.json())["error"]
                assert error["code"] == "budget_exceeded"
            speech_server[0].may_end.set()
            await first_response.read()
        form = aiohttp.FormData({"model": "whisper"})
        form.add_field("file", b"x" * 3_000, filename="a.mp3")
        async with http.post("audio/transcriptions", data=form) as third_response:
            assert third_response.headers["x-moyin-cost-usd"] == "0.006"

        async def is_settled() -> bool:
            # The back end counts more seconds than the file can have; what it bills is booked.
            return await operations_app.read_booked_usd(key_id) == Decimal("0.012")

        await eventually(is_settled)

        async def list_recorded_calls() -> Any:
            async with http.get("requests") as response:
                calls = (await response.json())["requests"]
                return calls if len(calls) == 2 else None

        calls = await eventually(list_recorded_calls)
        assert {(call["operation"], call["unit"], call["quantity"]) for call in calls} == {
            ("speech", "characters", 600),
            ("transcription", "seconds", 60),
        }
        async with http.get("usage", params={"group_by": "operation"}) as response:
            usage_report = await response.json()
        assert usage_report["total"]["units"] == {"characters": 600, "seconds": 60}
        assert {group["operation"]: group["units"] for group in usage_report["groups"]} == {
            "speech": {"characters": 600},
            "transcription": {"seconds": 60},
        }


async def test_client_disconnect_stops_the_back_end(
    operations_app: OperationsApp, speech_server: tuple[SpeechServer, str]
) -> None:
    _, http = await operations_app.create_client(usd_per_day=Decimal(1))
    async with http:
        response = await http.post("audio/speech", json=build_speech_body(100))
        assert await response.content.read(len(HEAD)) == HEAD
        response.close()
        await speech_server[0].left.wait()
        runtime = operations_app.models_app.text_router.fleet.runtimes["b"]
        await eventually(lambda: runtime.load == 0)

        async def is_recorded() -> bool:
            async with http.get("requests", params={"status": "cancelled"}) as list_response:
                calls = (await list_response.json())["requests"]
                return [call["quantity"] for call in calls] == [100]

        await eventually(is_recorded)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "param"),
    [
        ("application/json", b"{}", 400, "Content-Type"),
        ("multipart/form-data", b"", 400, None),
        (FORM, b"no form", 400, None),
        (FORM, b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--', 400, "file"),
        (FORM, b'--x\r\ncontent-disposition: form-data; name="f"; filename="a"\r\n\r\n\r\n' * 21 + b"--x--", 400, None),
        (FORM, b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n' + b"y" * 300_000 + b"\r\n--x--", 400, None),
        (FORM, b"y" * 1_000_001, 413, None),
    ],
)  # fmt: skip
async def test_invalid_forms_are_refused(
    operations_app: OperationsApp, content_type: str, body: bytes, status: int, param: str | None
) -> None:
    _, http = await operations_app.create_client()
    headers = {"content-type": content_type}
    async with http, http.post("audio/transcriptions", data=body, headers=headers) as response:
        assert response.status == status
        error = (await response.json())["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
