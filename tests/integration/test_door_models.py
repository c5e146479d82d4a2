"""The models app in the whole farm: what operators see of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.door import StackDoor

HELLO = [{"role": "user", "content": "Say hello."}]
# Ray hands metrics on every ten seconds.
_METRICS_SECONDS = 60


@pytest.fixture
async def session(door: StackDoor) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {door.api_key}"}
    async with aiohttp.ClientSession(door.url, headers=headers) as session:
        yield session


async def metrics(door: StackDoor) -> str:
    url = f"http://127.0.0.1:{door.ports.ray_metrics}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return await response.text()


def series(text: str, name: str, *labels: str) -> list[str]:
    lines = (line for line in text.splitlines() if line.startswith(f"ray_{name}"))
    return [line for line in lines if all(label in line for label in labels)]


async def test_calls_and_breakers_are_in_the_metrics(
    door: StackDoor, session: aiohttp.ClientSession
) -> None:
    body = {"model": "fast", "max_tokens": 4, "messages": HELLO, "stream": True}
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        assert "x-moyin-cost-usd" in await response.text()
    text = ""
    async with asyncio.timeout(_METRICS_SECONDS):
        while not series(text, "gen_ai_client_token_usage_sum"):
            await asyncio.sleep(1)
            text = await metrics(door)
    call = ('gen_ai_request_model="fast"', 'gen_ai_response_model="smollm2-135m"')
    for name in (
        "gen_ai_client_token_usage_bucket",
        "gen_ai_server_request_duration_seconds_bucket",
        "gen_ai_server_time_to_first_token_seconds_bucket",
        "gen_ai_server_time_per_output_token_seconds_bucket",
    ):
        assert series(text, name, *call), name
    (line,) = series(text, "moyin_backend_breaker{", 'moyin_backend="local"', 'state="closed"')
    assert line.endswith(" 1.0")


async def test_a_decision_of_the_farm_is_explained(session: aiohttp.ClientSession) -> None:
    body = {"model": "auto", "max_tokens": 4, "messages": HELLO}
    async with session.post("/v1/route", json=body) as response:
        told = await response.json()
    assert told["chosen"] == {"backend": "local", "model": "smollm2-135m"}
    assert {one["reason"] for one in told["refused"]} == {"not configured"}
