"""Tests OpenAI's and Anthropic's SDKs on llama.cpp, called by its OpenAI and its Anthropic API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from tests.integration.text.fixtures import (
    ModelsApp,
    build_claude_backend,
    build_local_backend,
    serving,
    wait_until_probed,
)

MODELS = ["smollm2", "claude-haiku-5-5"]
HELLO: Any = {"role": "user", "content": "Say hello."}


@pytest.fixture
async def models_app(llama: str, tmp_path: Path) -> AsyncIterator[ModelsApp]:
    async with serving(
        tmp_path, build_local_backend(llama), build_claude_backend(llama)
    ) as models_app:
        yield models_app


@pytest.fixture
async def openai_client(models_app: ModelsApp) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key
    ) as client:
        yield client


@pytest.fixture
async def claude_client(models_app: ModelsApp) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=models_app.url, api_key=models_app.api_key
    ) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
async def test_openai_client_gets_an_answer(openai_client: openai.AsyncOpenAI, model: str) -> None:
    completion = await openai_client.chat.completions.create(
        model=model, messages=[HELLO], max_tokens=8, temperature=0
    )
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 8


@pytest.mark.parametrize("model", MODELS)
async def test_streamed_openai_answer_equals_the_whole_answer(
    openai_client: openai.AsyncOpenAI, model: str
) -> None:
    request: dict[str, Any] = {
        "model": model,
        "messages": [HELLO],
        "max_tokens": 8,
        "temperature": 0,
    }
    whole_completion = await openai_client.chat.completions.create(**request)
    stream = await openai_client.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole_completion.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


async def test_a_client_that_did_not_ask_for_usage_gets_no_event_without_choices(
    openai_client: openai.AsyncOpenAI,
) -> None:
    stream = await openai_client.chat.completions.create(
        model="smollm2", messages=[HELLO], max_tokens=3, stream=True
    )
    assert all([chunk.choices async for chunk in stream])


@pytest.mark.parametrize("model", MODELS)
async def test_streamed_anthropic_message_equals_the_whole_message(
    claude_client: anthropic.AsyncAnthropic, model: str
) -> None:
    request: dict[str, Any] = {
        "model": model,
        "messages": [HELLO],
        "max_tokens": 8,
        "extra_body": {"temperature": 0},
    }
    whole_message = await claude_client.messages.create(**request)
    assert whole_message.stop_reason == "max_tokens"
    assert whole_message.usage.output_tokens == 8
    async with claude_client.messages.stream(**request) as stream:
        text = "".join([chunk async for chunk in stream.text_stream])
        final_message = await stream.get_final_message()
    assert text == whole_message.content[0].text
    assert final_message.usage.output_tokens == 8


async def test_auto_chooses_the_free_local_model_and_reports_it(
    openai_client: openai.AsyncOpenAI,
) -> None:
    raw_response = await openai_client.chat.completions.with_raw_response.create(
        model="auto",
        messages=[HELLO],
        max_tokens=3,
        extra_headers={"x-moyin-usd-per-bad-answer": "0"},
    )
    # Without a price of bad answers money alone decides.
    assert raw_response.headers["x-moyin-backend"] == "local"
    assert raw_response.headers["x-moyin-route"] == "free"
    assert raw_response.headers["x-moyin-cost-usd"] == "0"


async def test_auto_uses_the_cloud_for_abilities_that_the_local_model_lacks(
    openai_client: openai.AsyncOpenAI,
) -> None:
    long_message: Any = {"role": "user", "content": "word " * 2500}
    with pytest.raises(openai.BadRequestError) as exc_info:
        await openai_client.chat.completions.create(model="smollm2", messages=[long_message])
    assert exc_info.value.code == "context_too_long"
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    raw_response = await openai_client.chat.completions.with_raw_response.create(
        model="auto", messages=[HELLO], max_tokens=3, tools=[tool]
    )
    assert raw_response.headers["x-moyin-backend"] == "claude"
    assert Decimal(raw_response.headers["x-moyin-cost-usd"]) > 0


async def test_the_ledger_records_a_call(models_app: ModelsApp) -> None:
    async with aiohttp.ClientSession(
        headers={"authorization": f"Bearer {models_app.api_key}"}
    ) as http:
        body = {"model": "claude-haiku-5-5", "messages": [HELLO], "max_tokens": 4}
        async with http.post(f"{models_app.url}/v1/chat/completions", json=body) as response:
            request_id, cost_usd = (
                response.headers["x-request-id"],
                response.headers["x-moyin-cost-usd"],
            )
        await asyncio.sleep(1.5)
        async with http.get(f"{models_app.url}/v1/requests/{request_id}") as response:
            ledger_entry = await response.json()
    assert (ledger_entry["backend"], ledger_entry["output_tokens"], ledger_entry["complete"]) == (
        "claude",
        4,
        True,
    )
    assert Decimal(ledger_entry["cost_usd"]) == Decimal(cost_usd) > 0


@pytest.mark.parametrize("path", ["chat/completions", "messages"])
@pytest.mark.parametrize("model", MODELS)
async def test_disconnected_client_is_charged_and_frees_the_back_end(
    models_app: ModelsApp, path: str, model: str
) -> None:
    async with aiohttp.ClientSession(
        headers={"authorization": f"Bearer {models_app.api_key}"}
    ) as http:
        await wait_until_probed(models_app)
        story_message = {"role": "user", "content": "Tell a very long story."}
        body = {"model": model, "messages": [story_message], "max_tokens": 1500, "stream": True}
        whole_request = {**body, "stream": False, "max_tokens": 1}
        async with http.post(f"{models_app.url}/v1/messages", json=whole_request) as response:
            usage = (await response.json())["usage"]
        async with http.post(f"{models_app.url}/v1/{path}", json=body) as response:
            request_id = response.headers["x-request-id"]
            await response.content.read(2000)
            response.close()
    await asyncio.sleep(1)
    assert all(runtime.load == 0 for runtime in models_app.text_router.fleet.runtimes.values())
    await asyncio.sleep(1)
    ledger_entry = await models_app.ledger.get("ada", request_id)
    assert ledger_entry is not None
    assert not ledger_entry.complete
    assert 0 < ledger_entry.output_tokens < 1500
    assert ledger_entry.input_tokens == usage["input_tokens"] + usage["cache_read_input_tokens"]


async def test_both_kinds_of_client_read_the_list_of_models(
    openai_client: openai.AsyncOpenAI, claude_client: anthropic.AsyncAnthropic
) -> None:
    model_names = ["auto", "smollm2", "claude-haiku-5-5"]
    assert [model.id async for model in openai_client.models.list()] == model_names
    assert [model.id async for model in claude_client.models.list()] == model_names
    assert (await claude_client.models.retrieve("smollm2")).display_name == "smollm2"


async def test_the_description_is_complete(models_app: ModelsApp) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{models_app.url}/v1/openapi.json") as response:
            description = json.loads(await response.read())
        async with http.get(f"{models_app.url}/v1/docs") as response:
            assert response.status == 200
        async with http.get(f"{models_app.url}/v1/readyz") as response:
            assert (await response.json())["backends"] == {"local": "up", "claude": "up"}
    paths = {"/chat/completions", "/messages", "/models", "/requests/{request_id}"}
    assert paths < set(description["paths"])
    schemas = description["components"]["schemas"]
    references = set(_find_references(description))
    assert {reference.rpartition("/")[2] for reference in references} <= set(schemas)


def _find_references(json_node: object) -> list[str]:
    if isinstance(json_node, dict):
        own_references = [json_node["$ref"]] if isinstance(json_node.get("$ref"), str) else []
        return own_references + [
            r for inner_node in json_node.values() for r in _find_references(inner_node)
        ]
    return (
        [r for inner_node in json_node for r in _find_references(inner_node)]
        if isinstance(json_node, list)
        else []
    )
