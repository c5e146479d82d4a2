"""Tests requests that only Ollama's clients send, through the real SDK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import ollama

from tests.integration.text.fixtures import serving
from tests.integration.text.upstreams import FINE, Upstream, build_backend_config

# Ollama's response to a request without a prompt, streamed or not; it has no line end.
_LOADED = (
    '{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":""},'
    '"done":true,"done_reason":"unload"}'
)
LOADED = (
    "HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n"
    f"content-length: {len(_LOADED)}\r\n\r\n{_LOADED}"
)


async def test_a_streamed_request_unloads_the_model(tmp_path: Path) -> None:
    async with (
        Upstream(LOADED).running() as upstream,
        serving(tmp_path, build_backend_config("ollama", upstream.url)) as models_app,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {models_app.api_key}"}) as http,
    ):
        empty_members: list[dict[str, Any]] = [{}, {"messages": None}, {"messages": []}]
        for stream in (True, False):
            for members in empty_members:
                body = {"model": "m-ollama", "keep_alive": 0, "stream": stream, **members}
                async with http.post(f"{models_app.url}/v1/ollama/api/chat", json=body) as response:
                    assert response.status == 200
                    assert json.loads(await response.read())["done_reason"] == "unload"
        assert upstream.request_count == 6


async def test_ollamas_sdk_works_with_another_kind_of_back_end(tmp_path: Path) -> None:
    async with (
        Upstream(FINE).running() as upstream,
        serving(tmp_path, build_backend_config("openai", upstream.url)) as models_app,
    ):
        client = ollama.AsyncClient(
            host=f"{models_app.url}/v1/ollama",
            headers={"authorization": f"Bearer {models_app.api_key}"},
        )
        response = await client.chat("m-openai:latest", [{"role": "user", "content": "hi"}])
        assert response.message.content == "Hi"
        assert (response.eval_count, response.load_duration) == (1, 0)
        assert response.eval_duration and response.prompt_eval_duration is not None
        assert (await client.generate("m-openai", keep_alive=0)).done_reason == "unload"
        assert (await client.show("m-openai:latest")).capabilities
        await client._client.aclose()


async def test_older_embeddings_call_returns_the_same_vector(
    tmp_path: Path, llama_vectors: str
) -> None:
    model = {"name": "vectors", "context": 2048, "embeddings": True, "price": 0}
    llama_backend = {"name": "llama", "type": "openai", "base_url": f"{llama_vectors}/v1"}
    async with serving(
        tmp_path, {**llama_backend, "api_key_env": "LLAMA_KEY", "models": [model]}
    ) as models_app:
        client = ollama.AsyncClient(
            host=f"{models_app.url}/v1/ollama",
            headers={"authorization": f"Bearer {models_app.api_key}"},
        )
        old_response = await client.embeddings("vectors", "hello")
        new_response = await client.embed("vectors", "hello")
        assert len(old_response.embedding) > 100
        assert list(old_response.embedding) == list(new_response.embeddings[0])
        await client._client.aclose()
