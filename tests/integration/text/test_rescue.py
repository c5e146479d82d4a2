"""Tests that a client gets another model's stream if the first one begins with a fault."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.text.fixtures import serving
from tests.integration.text.test_feedback import build_backend
from tests.integration.text.upstreams import BEGUN, KINDS, SSE, Upstream, build_backend_config

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
PROSE = SSE + "".join(
    f'data: {{"id":"1","model":"m","choices":[{{"delta":{{"content":"{text}"}}}}]}}\n\n'
    for text in ("", "Sure! ")
)
JSON = (
    SSE + 'data: {"id":"1","model":"m","choices":[{"delta":{"content":"{\\"ok\\": true}"}}]}\n\n'
    'data: {"choices":[{"delta":{},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":9,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
)
FORMATS: dict[str, dict[str, Any]] = {
    "chat/completions": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    },
    "messages": {
        "max_tokens": 300,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
    "ollama/api/chat": {"format": SCHEMA},
}


def build_schema_backend(url: str, name: str, price: float) -> dict[str, Any]:
    """Return the configuration of a back end whose model supports JSON schemas."""
    backend_config = build_backend(url, name, price)
    return {**backend_config, "models": [{**backend_config["models"][0], "schema": True}]}


@pytest.mark.parametrize("path", sorted(FORMATS))
async def test_client_sees_only_the_better_stream(tmp_path: Path, path: str) -> None:
    async with (
        Upstream(PROSE, holds=True).running() as weak_upstream,
        Upstream(JSON).running() as strong_upstream,
        serving(
            tmp_path,
            build_schema_backend(weak_upstream.url, "smollm2-135m", 0),
            build_schema_backend(strong_upstream.url, "qwen3-8b", 1),
        ) as models_app,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {models_app.api_key}"}) as http,
    ):
        body = {
            "model": "auto",
            "stream": True,
            "messages": [{"role": "user", "content": "Write merge sort in Go, as JSON"}],
            **FORMATS[path],
        }
        # A bad answer costs so little that the weak model is called first.
        headers = {"x-moyin-usd-per-bad-answer": "0.0000001"}
        async with http.post(f"{models_app.url}/v1/{path}", json=body, headers=headers) as response:
            response_text = await response.text()
            route = response.headers["x-moyin-route"]
            request_id = response.headers["x-request-id"]
        assert response.status == 200, response_text
        assert route.startswith("rescue after json; qwen3-8b: code, p_good 0."), route
        assert "Sure" not in response_text
        assert "true}" in response_text
        async with asyncio.timeout(10):
            await weak_upstream.left.wait()
        await models_app.ledger.close()
        ledger_entry = await models_app.ledger.get("ada", request_id)
        assert ledger_entry is not None
        assert (ledger_entry.model, ledger_entry.output_tokens, ledger_entry.complete) == (
            "qwen3-8b",
            5,
            True,
        )
        await models_app.learning.flush()
        async with http.get(f"{models_app.url}/v1/quality/export") as response:
            (signal,) = (await response.json())["signals"]
        assert (signal["model"], signal["source"], signal["comment"]) == (
            "smollm2-135m",
            "checked",
            "json",
        )


@pytest.mark.parametrize("kind", KINDS)
async def test_connection_of_an_abandoned_stream_is_closed(tmp_path: Path, kind: str) -> None:
    """The gateway closes the connection of an abandoned stream, whatever the kind of back end."""
    async with (
        Upstream(BEGUN[kind], holds=True).running() as weak_upstream,
        Upstream(JSON).running() as strong_upstream,
    ):
        model = {"name": "smollm2-135m", "upstream": "m", "context": 8_000, "schema": True}
        model["price"] = {"input": 0, "output": 0}
        weak_backend = {
            **build_backend_config(kind, weak_upstream.url),
            "name": "weak",
            "models": [model],
        }
        async with (
            serving(
                tmp_path, weak_backend, build_schema_backend(strong_upstream.url, "qwen3-8b", 1)
            ) as models_app,
            aiohttp.ClientSession(
                headers={"authorization": f"Bearer {models_app.api_key}"}
            ) as http,
        ):
            body = {
                "model": "auto",
                "stream": True,
                "messages": [{"role": "user", "content": "Write merge sort in Go, as JSON"}],
                **FORMATS["chat/completions"],
            }
            headers = {"x-moyin-usd-per-bad-answer": "0.0000001"}
            url = f"{models_app.url}/v1/chat/completions"
            async with http.post(url, json=body, headers=headers) as response:
                response_text = await response.text()
                assert response.status == 200, response_text
                assert response.headers["x-moyin-route"].startswith("rescue after json; qwen3-8b")
            assert "Hi" not in response_text
            async with asyncio.timeout(10):
                await weak_upstream.left.wait()
            assert models_app.text_router.fleet.runtimes["weak"].load == 0
