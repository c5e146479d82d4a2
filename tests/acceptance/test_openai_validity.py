"""Tests that every response, error and event of the OpenAI routes matches OpenAI's own types.

The back ends are llama.cpp by its OpenAI and its Anthropic API, the scripted model, and mocks of
Claude, Ollama and OpenAI that use further features, such as reasoning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import from_json, to_json

from tests.acceptance.openai_models import (
    CHAT,
    CHUNK,
    COMPLETION,
    EMBEDDINGS,
    EVENT,
    ITEMS,
    MODEL,
    MODEL_EXTENSIONS,
    RESPONSE,
    check_body,
    check_error,
    read_event_data,
)
from tests.acceptance.text_gateway import ALL, TextGateway
from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.upstreams import BEGUN, FINE, KINDS, Upstream, build_backend_config
from tests.integration.text.wires.script import SCHEMA
from tests.integration.text.wires.server import WireServer

FUNCTION = {"name": "weather", "parameters": SCHEMA}
CHAT_TOOLS = {"tools": [{"type": "function", "function": FUNCTION}]}
TOOLS = {"tools": [{"type": "function", **FUNCTION}]}
FORM = {"type": "json_schema", "name": "city", "schema": SCHEMA}
CHAT_FORM = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
# What both may ask a model that has all abilities.
WISHES: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "text": ("hi", {}, {}),
    "tools": ("weather of both?", CHAT_TOOLS, TOOLS),
    "schema": ("hi", {"response_format": CHAT_FORM}, {"text": {"format": FORM}}),
    "thinking": ("hi", {"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
}


class ValidatingCaller:
    """Sends requests with and without streaming, and validates all responses."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def chat(self, **body: Any) -> None:
        check_body(CHAT, await self.post("chat/completions", body))
        options = {"stream": True, "stream_options": {"include_usage": True}}
        events = read_event_data(await self.post("chat/completions", body | options))
        assert len([check_body(CHUNK, data) for data in events]) > 1

    async def complete(self, **body: Any) -> None:
        check_body(COMPLETION, await self.post("completions", body))
        for event_data in read_event_data(await self.post("completions", body | {"stream": True})):
            # OpenAI, too, sends null until the end, which its package's type does not allow.
            check_body(
                COMPLETION, event_data.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
            )

    async def respond(self, **body: Any) -> None:
        whole_response = check_body(RESPONSE, await self.post("responses", body))
        events = read_event_data(await self.post("responses", body | {"stream": True}))
        last_event = [check_body(EVENT, data) for data in events][-1]
        assert last_event.type in ("response.completed", "response.incomplete")
        for response_id in (whole_response.id, last_event.response.id):
            check_body(RESPONSE, await self.get(f"responses/{response_id}"))
            check_body(ITEMS, await self.get(f"responses/{response_id}/input_items"))
        next_body = body | {"previous_response_id": whole_response.id, "input": "And now?"}
        check_body(RESPONSE, await self.post("responses", next_body))

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        response = await self._client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.content

    async def get(self, path: str) -> bytes:
        response = await self._client.get(path)
        assert response.status_code == 200, response.text
        return response.content


def open_client(gateway: TextGateway | ModelsApp) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    return httpx.AsyncClient(base_url=f"{gateway.url}/v1/", headers=headers, timeout=60)


def build_capable_backend(name: str, **address: Any) -> dict[str, Any]:
    abilities = dict.fromkeys(("tools", "vision", "schema", "thinking"), True)
    model = {"name": f"m-{name}", "upstream": "up", "context": 100_000, **abilities}
    free_price = {"price": {"input": 0, "output": 0}}
    return {"name": name, **address, "models": [{**model, **free_price}]}


@asynccontextmanager
async def serving_all_formats(folder: Path) -> AsyncIterator[ModelsApp]:
    """Run the models app with servers of three API formats; models named ``v-…`` return vectors."""
    async with WireServer().running() as server:
        claude_backend = build_capable_backend(
            "claude", type="anthropic", base_url=server.url, api_key_env="LLAMA_KEY"
        )
        ollama_backend = build_capable_backend("ollama", type="ollama", hosts=[server.url])
        openai_backend = build_capable_backend("openai", type="openai", base_url=f"{server.url}/v1")
        for backend_config in (ollama_backend, openai_backend):
            embedding_model = {
                "name": f"v-{backend_config['name']}",
                "upstream": "up",
                "context": 8192,
            }
            free_price = {"price": {"input": 0, "output": 0}}
            backend_config["models"].append({**embedding_model, "embeddings": True, **free_price})
        async with serving(folder, claude_backend, ollama_backend, openai_backend) as models_app:
            yield models_app


async def test_answers_in_every_format_are_valid(tmp_path: Path) -> None:
    async with serving_all_formats(tmp_path) as models_app, open_client(models_app) as client:
        caller = ValidatingCaller(client)
        for model in ("m-claude", "m-ollama", "m-openai"):
            for prompt, chat_members, response_members in WISHES.values():
                messages = [{"role": "user", "content": prompt}]
                await caller.chat(model=model, messages=messages, **chat_members)
                await caller.respond(model=model, input=prompt, **response_members)
            if model != "m-openai":
                await caller.complete(model=model, prompt="hi", max_tokens=8)
        for model in ("v-ollama", "v-openai"):
            check_body(
                EMBEDDINGS, await caller.post("embeddings", {"model": model, "input": ["a", "b"]})
            )
        model_list = from_json(await caller.get("models"))
        assert model_list["object"] == "list"
        for model_entry in model_list["data"]:
            check_body(MODEL, await caller.get(f"models/{model_entry['id']}"), MODEL_EXTENSIONS)


@pytest.mark.parametrize("model", ALL)
async def test_real_models_answer_valid_responses(text_gateway: TextGateway, model: str) -> None:
    async with open_client(text_gateway) as client:
        caller = ValidatingCaller(client)
        messages = [{"role": "user", "content": "Say hello."}]
        await caller.chat(model=model, messages=messages, max_tokens=8)
        await caller.respond(model=model, input="Say hello.", max_output_tokens=8)
        await caller.complete(model=model, prompt="Say hello.", max_tokens=8)


HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
REFUSED: list[tuple[str, str, dict[str, Any] | bytes, int]] = [
    ("POST", "chat/completions", b"{", 400),
    ("POST", "chat/completions", {"model": "m-openai"}, 400),
    ("POST", "chat/completions", {"model": "none", **HI}, 404),
    ("POST", "chat/completions", {"model": "m-claude", **HI, "seed": 1}, 400),
    ("POST", "chat/completions", {"model": "m-claude", **HI, "max_tokens": 10**6}, 400),
    ("POST", "completions", {"model": "m-claude", "prompt": ["a", "b"]}, 400),
    ("POST", "embeddings", {"model": "m-claude", "input": "a"}, 400),
    ("POST", "responses", b"[]", 400),
    ("POST", "responses", {"model": "m-openai"}, 400),
    ("POST", "responses", {"model": "m-claude", "input": "x" * 10**6}, 413),
    ("POST", "responses", {"model": "m-openai", "input": "a", "truncation": "auto"}, 400),
    (
        "POST",
        "responses",
        {"model": "m-openai", "input": "a", "previous_response_id": "resp_1"},
        400,
    ),
    ("GET", "responses/resp_1", b"", 404),
    ("DELETE", "responses/resp_1", b"", 404),
    ("POST", "responses/resp_1/cancel", b"", 404),
    ("GET", "responses/resp_1/input_items", b"", 404),
    ("GET", "models/none", b"", 404),
    ("GET", "nothing", b"", 404),
    ("PUT", "chat/completions", b"", 404),
]


async def test_refused_calls_have_valid_errors(tmp_path: Path) -> None:
    async with serving_all_formats(tmp_path) as models_app, open_client(models_app) as client:
        for method, path, body, status in REFUSED:
            content = body if isinstance(body, bytes) else to_json(body)
            headers = {"content-type": "application/json"}
            response = await client.request(method, path, headers=headers, content=content)
            assert response.status_code == status, (path, response.text)
            check_error(response.content)
        for headers in ({"authorization": "Bearer moyin_wrong"}, {"content-encoding": "br"}):
            for path in ("chat/completions", "responses", "completions", "embeddings", "models"):
                method = "GET" if path == "models" else "POST"
                response = await client.request(method, path, headers=headers, content=b"{}")
                if response.status_code == 200:
                    assert path == "models"
                    continue
                check_error(response.content)


@pytest.mark.parametrize("kind", KINDS)
async def test_errors_of_broken_back_ends_are_valid(tmp_path: Path, kind: str) -> None:
    """Expect a valid last event if a stream breaks, and a valid error if a response is malformed."""
    async with (
        Upstream(BEGUN[kind]).running() as upstream,
        serving(tmp_path, build_backend_config(kind, upstream.url)) as models_app,
        open_client(models_app) as client,
    ):
        model = f"m-{kind}"
        response = await client.post(
            "chat/completions", json={"model": model, **HI, "stream": True}
        )
        *chunks, last_chunk = read_event_data(response.content)
        assert chunks
        if kind != "openai":
            # Of OpenAI's wire the bytes pass, and these are not OpenAI's own.
            assert [check_body(CHUNK, event_data) for event_data in chunks]
        check_error(last_chunk)
        body = {"model": model, "input": "hi", "stream": True}
        events = read_event_data((await client.post("responses", json=body)).content)
        assert [check_body(EVENT, event_data).type for event_data in events][-1] == "error"
        upstream.answer = FINE.replace('"choices"', '"options"').replace('"Hi"', "17")
        for path, members in (
            ("chat/completions", HI),
            ("responses", {"input": "hi"}),
            ("completions", {"prompt": "hi"}),
        ):
            response = await client.post(path, json={"model": model, **members})
            assert response.status_code >= 500, response.text
            check_error(response.content)
