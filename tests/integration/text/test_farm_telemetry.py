"""Tests the metrics of the models app in a whole farm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from tests.stack import RunningStack
from tests.waiting import eventually

HELLO = [{"role": "user", "content": "Say hello."}]
# Ray hands metrics on every ten seconds.
_METRICS_SECONDS = 60


@pytest.fixture
async def session(gateway: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with aiohttp.ClientSession(gateway.url, headers=headers) as session:
        yield session


async def read_metrics(gateway: RunningStack) -> str:
    url = f"http://127.0.0.1:{gateway.ports.ray_metrics}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return await response.text()


def find_series(metrics: str, name: str, *labels: str) -> list[str]:
    lines = (line for line in metrics.splitlines() if line.startswith(f"ray_{name}"))
    return [line for line in lines if all(label in line for label in labels)]


async def test_calls_and_breakers_are_in_the_metrics(
    gateway: RunningStack, session: aiohttp.ClientSession
) -> None:
    body = {"model": "fast", "max_tokens": 4, "messages": HELLO, "stream": True}
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200
        assert "x-moyin-cost-usd" in await response.text()
    call_labels = ('gen_ai_request_model="fast"', 'gen_ai_response_model="smollm2-135m"')
    metrics = ""
    async with asyncio.timeout(_METRICS_SECONDS):
        while not find_series(metrics, "gen_ai_client_token_usage_sum", *call_labels):
            await asyncio.sleep(1)
            metrics = await read_metrics(gateway)
    for name in (
        "gen_ai_client_token_usage_bucket",
        "gen_ai_server_request_duration_seconds_bucket",
        "gen_ai_server_time_to_first_token_seconds_bucket",
        "gen_ai_server_time_per_output_token_seconds_bucket",
    ):
        assert find_series(metrics, name, *call_labels), name
    (breaker_line,) = find_series(
        metrics, "moyin_backend_breaker{", 'moyin_backend="local"', 'state="closed"'
    )
    assert breaker_line.endswith(" 1.0")


async def test_route_of_the_farm_is_explained(session: aiohttp.ClientSession) -> None:
    body = {"model": "auto", "max_tokens": 4, "messages": HELLO}
    async with session.post("/v1/route", json=body) as response:
        response_body = await response.json()
    assert response_body["chosen"] == {"backend": "local", "model": "smollm2-135m"}
    assert {item["reason"] for item in response_body["refused"]} == {"its health check fails"}


@dataclass
class FlakyModelServer:
    """A model server whose calls can fail while its health checks succeed."""

    url: str = ""
    fails: bool = True

    async def list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    async def answer_chat(self, _: web.Request) -> web.Response:
        if self.fails:
            return web.json_response({"error": {"message": "out of order"}}, status=500)
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({"id": "1", "object": "chat.completion", "choices": [choice]})


@asynccontextmanager
async def run_flaky_server() -> AsyncIterator[FlakyModelServer]:
    flaky_backend = FlakyModelServer()
    app = web.Application()
    app.router.add_get("/v1/models", flaky_backend.list_models)
    app.router.add_post("/v1/chat/completions", flaky_backend.answer_chat)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        flaky_backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield flaky_backend
    finally:
        await runner.cleanup()


async def test_back_end_is_added_at_runtime_and_the_metrics_show_its_breaker(
    gateway: RunningStack, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    original_config = gateway.env["MOYIN_SERVE_CONFIG"]
    async with run_flaky_server() as flaky_backend:
        await asyncio.to_thread(
            gateway.run,
            "deploy",
            "--config",
            _add_backend(original_config, flaky_backend, tmp_path),
        )
        try:
            assert await _ask_model(session) == 502
            await eventually(lambda: _fails_until_open(gateway, session), _METRICS_SECONDS)
            flaky_backend.fails = False
            await eventually(lambda: _is_answered(session), 180)
            await eventually(
                lambda: _was_in_states(gateway, "half_open", "closed"), _METRICS_SECONDS
            )
        finally:
            await asyncio.to_thread(gateway.run, "deploy", "--config", original_config)


def _add_backend(config_path: str, flaky_backend: FlakyModelServer, folder: Path) -> str:
    """Write the configuration with one more back end to a file, and return its path."""
    loaded_config = yaml.safe_load(Path(config_path).read_text())
    [models_app] = [app for app in loaded_config["applications"] if app["name"] == "models"]
    backend = {
        "name": "flaky",
        "type": "openai",
        "base_url": flaky_backend.url,
        "models": [{"name": "flaky", "context": 8192, "price": 0}],
    }
    models_app["deployments"][0]["user_config"]["backends"].append(backend)
    new_path = folder / "serve_config.yaml"
    new_path.write_text(yaml.safe_dump(loaded_config))
    return str(new_path)


async def _ask_model(session: aiohttp.ClientSession) -> int:
    body = {"model": "flaky", "messages": HELLO}
    async with session.post("/v1/chat/completions", json=body) as response:
        return response.status


async def _is_answered(session: aiohttp.ClientSession) -> bool:
    return await _ask_model(session) == 200


async def _fails_until_open(gateway: RunningStack, session: aiohttp.ClientSession) -> bool:
    assert await _ask_model(session) in (502, 503)
    return await _was_in_states(gateway, "open")


async def _was_in_states(gateway: RunningStack, *states: str) -> bool:
    """Return True if the breaker of ``flaky`` has been in each of these states.

    The states are read from the metrics.
    """
    metrics = await read_metrics(gateway)
    name, backend_label = "moyin_backend_breaker_transitions", 'moyin_backend="flaky"'
    return all(find_series(metrics, name, backend_label, f'state="{state}"') for state in states)
