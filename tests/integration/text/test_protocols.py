"""Tests calls other than chats, by the protocols' SDKs, on back ends of all three API formats."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import ollama
import openai
import pytest

from tests.integration.text.fixtures import ModelsApp, serving
from tests.integration.text.wires.script import PICTURE, PROMPT, SEEN
from tests.integration.text.wires.server import WireServer

FREE = {"input": 0, "output": 0}
HELLO: Any = {"role": "user", "content": "hi"}


@pytest.fixture
async def wire_server() -> AsyncIterator[WireServer]:
    async with WireServer().running() as server:
        yield server


@pytest.fixture
async def models_app(wire_server: WireServer, tmp_path: Path) -> AsyncIterator[ModelsApp]:
    chat_capabilities = {
        "upstream": "up",
        "context": 9000,
        "price": FREE,
        "vision": True,
        "tools": True,
    }
    embedding_capabilities = {"upstream": "up", "context": 9000, "price": FREE, "embeddings": True}

    def build_models(name: str) -> list[dict[str, Any]]:
        return [
            {"name": name, **chat_capabilities},
            {"name": f"{name}-vectors", **embedding_capabilities},
        ]

    async with serving(
        tmp_path,
        {
            "name": "gpt",
            "type": "openai",
            "base_url": f"{wire_server.url}/v1",
            "models": build_models("gpt"),
        },
        {
            "name": "gpu",
            "type": "ollama",
            "hosts": [wire_server.url],
            "models": build_models("llama"),
        },
        {
            "name": "claude",
            "type": "anthropic",
            "base_url": wire_server.url,
            "api_key_env": "LLAMA_KEY",
            "models": [{"name": "claude", **chat_capabilities}],
        },
    ) as models_app:
        yield models_app


@pytest.fixture
async def ollama_client(models_app: ModelsApp) -> AsyncIterator[ollama.AsyncClient]:
    headers = {"authorization": f"Bearer {models_app.api_key}"}
    client = ollama.AsyncClient(host=f"{models_app.url}/v1/ollama", headers=headers)
    yield client
    await client.close()


@pytest.fixture
async def http(models_app: ModelsApp) -> AsyncIterator[aiohttp.ClientSession]:
    headers = {"authorization": f"Bearer {models_app.api_key}"}
    async with aiohttp.ClientSession(models_app.url, headers=headers) as session:
        yield session


@pytest.mark.parametrize("model", ["gpt-vectors", "llama-vectors"])
async def test_embeddings_are_answered_to_openai_and_ollama_clients(
    models_app: ModelsApp, ollama_client: ollama.AsyncClient, wire_server: WireServer, model: str
) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key
    ) as client:
        single_response = await client.embeddings.create(model=model, input="four")
        list_response = await client.embeddings.create(
            model=model, input=["a", "bc"], dimensions=2, encoding_format="float"
        )
    assert [row.embedding for row in single_response.data] == [[4.5, 4.5, 4.5]]
    assert [row.embedding for row in list_response.data] == [[1.5, 1.5], [2.5, 2.5]]
    assert single_response.usage.total_tokens == PROMPT
    ollama_response = await ollama_client.embed(model=model, input=["a", "bc"], dimensions=1)
    assert [list(row) for row in ollama_response.embeddings] == [[1.5], [2.5]]
    assert ollama_response.prompt_eval_count == PROMPT
    if model == "llama-vectors":
        assert all(body["options"]["num_ctx"] == 4096 for _, body in wire_server.requests)


async def test_chat_and_embeddings_refuse_each_others_models(models_app: ModelsApp) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key
    ) as client:
        with pytest.raises(openai.BadRequestError, match="embeddings") as exc_info:
            await client.embeddings.create(model="gpt", input="x")
        assert exc_info.value.param == "model"
        with pytest.raises(openai.BadRequestError, match="chat"):
            await client.chat.completions.create(model="gpt-vectors", messages=[HELLO])
        with pytest.raises(openai.BadRequestError, match="input") as exc_info:
            await client.embeddings.create(model="llama-vectors", input=[[1, 2]])
        assert exc_info.value.param == "input"


async def test_tokens_are_counted_by_the_backend_or_estimated(
    models_app: ModelsApp,
) -> None:
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "x" * 400}]}
    async with anthropic.AsyncAnthropic(
        base_url=models_app.url, api_key=models_app.api_key
    ) as client:
        token_count = await client.messages.count_tokens(model="claude", **request)
        assert token_count.input_tokens == PROMPT
        raw_response = await client.messages.with_raw_response.count_tokens(model="gpt", **request)
        assert (await raw_response.parse()).input_tokens == 104
        assert raw_response.headers["x-moyin-estimated"] == "true"
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="nobody", **request)


async def test_ollamas_client_lists_and_shows_models(ollama_client: ollama.AsyncClient) -> None:
    model_list = await ollama_client.list()
    model_names = {f"{name}:latest" for name in ("auto", "gpt", "llama", "claude")}
    assert model_names <= {model.model for model in model_list.models}
    shown_model = await ollama_client.show("llama")
    assert shown_model.capabilities == ["completion", "tools", "vision"]
    assert (shown_model.modelinfo or {})["moyin.context_length"] == 9000
    assert (await ollama_client.show("gpt-vectors")).capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError) as exc_info:
        await ollama_client.show("nobody")
    assert exc_info.value.status_code == 404
    assert {model.model for model in (await ollama_client.ps()).models} >= model_names - {
        "auto:latest"
    }


@pytest.mark.parametrize("model", ["gpt", "claude", "llama"])
async def test_generate_answers_whole_streamed_and_with_a_picture(
    ollama_client: ollama.AsyncClient, model: str
) -> None:
    request: dict[str, Any] = {"model": model, "prompt": "hi", "system": "Brief."}
    whole_response = await ollama_client.generate(**request)
    assert whole_response.response == "Brief. After 1 turns STOP: hello"
    chunks = [chunk async for chunk in await ollama_client.generate(**request, stream=True)]
    assert "".join(chunk.response or "" for chunk in chunks) == whole_response.response
    assert (chunks[-1].done, chunks[-1].prompt_eval_count) == (True, PROMPT)
    picture_response = await ollama_client.generate(model=model, prompt="look", images=[PICTURE])
    assert picture_response.response == SEEN


async def test_request_that_only_loads_a_model_is_answered_without_a_back_end_call(
    ollama_client: ollama.AsyncClient, wire_server: WireServer
) -> None:
    for load_response in (
        await ollama_client.generate(model="gpt"),
        await ollama_client.chat(model="gpt"),
    ):
        assert (load_response.done, load_response.done_reason) == (True, "load")
    assert wire_server.requests == []


async def test_ollama_requests_pass_with_a_context_window_of_the_right_size(
    http: aiohttp.ClientSession, wire_server: WireServer
) -> None:
    body = {
        "model": "llama",
        "messages": [{"role": "user", "content": "x" * 20_000}],
        "options": {"min_p": 0.1},
        "stream": False,
    }
    async with http.post("/v1/ollama/api/chat", json=body) as response:
        assert (await response.json())["done"] is True
        assert response.headers["x-moyin-cost-usd"] == "0"
    options = {"min_p": 0.1, "num_ctx": 8192}
    assert wire_server.requests == [("/api/chat", {**body, "model": "up", "options": options})]
    async with http.post("/v1/ollama/api/chat", json={**body, "model": "gpt"}) as response:
        response_body = await response.json()
    assert (response.status, response_body["code"], response_body["field"]) == (
        *(400, "unsupported_feature"),
        "options.min_p",
    )
    assert response_body["request_id"] == response.headers["x-request-id"]


async def test_ollama_paths_respond_as_ollama_does(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/ollama/") as response:
        assert await response.text() == "Ollama is running"
    async with http.get("/v1/ollama/api/version") as response:
        assert (await response.json())["version"].count(".") == 2
    async with http.post("/v1/ollama/api/search", json={"model": "x"}) as response:
        body = await response.json()
    assert (response.status, body["code"]) == (404, "route_not_found")
    assert isinstance(body["error"], str)


async def test_invalid_picture_is_named_in_the_error(
    http: aiohttp.ClientSession, wire_server: WireServer
) -> None:
    for url, code in [
        (f"{wire_server.url}/api/version", "invalid_request"),
        (f"{wire_server.url}/nothing", "invalid_request"),
        ("ftp://example.org/a.png", "invalid_request"),
        ("http://10.1.2.3/a.png", "address_refused"),
        ("http://[::ffff:10.1.2.3]/a.png", "address_refused"),
    ]:
        content = [{"type": "image_url", "image_url": {"url": url}}]
        body = {"model": "gpt", "messages": [{"role": "user", "content": content}]}
        async with http.post("/v1/chat/completions", json=body) as response:
            error = (await response.json())["error"]
            assert (response.status, error["code"], error["param"]) == (400, code, "messages")
    assert wire_server.requests == []


async def test_unknown_members_are_passed_through(
    http: aiohttp.ClientSession, wire_server: WireServer
) -> None:
    content = [{"type": "image_url", "image_url": {"url": f"{wire_server.url}/picture.png"}}]
    message = {"role": "user", "content": content}
    body = {"model": "gpt", "messages": [message], "n": 1, "user": "ada"}
    async with http.post("/v1/chat/completions", data=json.dumps(body)) as response:
        response_body = await response.json()
    assert response_body["choices"][0]["message"]["content"] == SEEN
    ((_, request_body),) = wire_server.requests
    assert (request_body["n"], request_body["user"]) == (1, "ada")


@pytest.mark.parametrize("path", ["chat/completions", "messages", "ollama/api/chat", "route"])
async def test_compressed_bodies_are_decoded_or_refused(
    http: aiohttp.ClientSession, path: str
) -> None:
    body = json.dumps({"model": "gpt", "messages": [HELLO], "max_tokens": 5}).encode()
    headers = {"content-type": "application/json"}
    for encoding, encoded_body, status, code in (
        ("gzip", gzip.compress(body), 200, None),
        ("gzip", body, 400, "invalid_content_encoding"),
        ("zstd", body, 415, "unsupported_content_encoding"),
        ("gzip", gzip.compress(bytes(1_000_001)), 413, "body_too_large"),
    ):
        headers["content-encoding"] = encoding
        async with http.post(f"/v1/{path}", data=encoded_body, headers=headers) as response:
            response_text = await response.text()
        assert response.status == status, response_text
        if code is None:
            continue
        response_body = json.loads(response_text)
        error = (
            response_body["error"] if path in ("chat/completions", "messages") else response_body
        )
        assert error["code"] == code
        assert status != 415 or response.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("path", "model", "headers", "status", "code"),
    [
        ("chat/completions", "nobody", {}, 404, "model_not_found"),
        ("embeddings", "gpt", {}, 400, "unsupported_feature"),
        ("messages", "gpt", {"anthropic-beta": "x"}, 400, "unsupported_feature"),
        ("ollama/api/chat", "gpt", {"x-moyin-residency": "cloud"}, 400, "unsupported_feature"),
        # Nobody takes jobs in this test.
        ("chat/completions", "gpt", {}, 503, "service_unavailable"),
    ],
)
async def test_impossible_job_is_refused_at_once(
    http: aiohttp.ClientSession,
    path: str,
    model: str,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    body = {"model": model, "messages": [HELLO], "max_tokens": 5, "input": "x"}
    request_headers = {"prefer": "wait=5, Respond-Async; q=1", **headers}
    async with http.post(f"/v1/{path}", json=body, headers=request_headers) as response:
        response_body = await response.json()
    assert response.status == status
    error = response_body["error"]
    assert (response_body if path.startswith("ollama") else error)["code"] == code
    for name in headers:
        assert name in json.dumps(response_body)
