"""Tests Ollama's SDK, schemas and stop strings on llama.cpp, by its OpenAI and Anthropic APIs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
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
HELLO = {"role": "user", "content": "Say hello."}
COUNT = {"role": "user", "content": "Count: one, two, three, four, five, six, seven."}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture
async def models_app(llama: str, tmp_path: Path) -> AsyncIterator[ModelsApp]:
    backends = [build_local_backend(llama), build_claude_backend(llama)]
    for backend in backends:
        backend["models"][0]["schema"] = True
    async with serving(tmp_path, *backends) as models_app:
        await wait_until_probed(models_app)
        yield models_app


@pytest.mark.parametrize("model", MODELS)
async def test_streamed_ollama_answer_equals_the_whole_answer(
    models_app: ModelsApp, model: str
) -> None:
    headers = {"authorization": f"Bearer {models_app.api_key}"}
    client = ollama.AsyncClient(host=f"{models_app.url}/v1/ollama", headers=headers)
    request: dict[str, Any] = {
        "model": model,
        "messages": [HELLO],
        "options": {"temperature": 0, "num_predict": 8},
    }
    whole_response = await client.chat(**request)
    chunks = [chunk async for chunk in await client.chat(**request, stream=True)]
    assert (
        "".join(chunk.message.content or "" for chunk in chunks) == whole_response.message.content
    )
    assert len(chunks) > 3
    for final_response in (whole_response, chunks[-1]):
        assert (final_response.done_reason, final_response.eval_count) == ("length", 8)
        assert (final_response.prompt_eval_count or 0) > 8
    generated_response = await client.generate(
        model=model, prompt="Say hello.", options=request["options"]
    )
    assert generated_response.response == whole_response.message.content
    await client.close()


@pytest.mark.parametrize("model", MODELS)
async def test_a_prompt_is_counted_as_it_will_be_billed(models_app: ModelsApp, model: str) -> None:
    request: dict[str, Any] = {"model": model, "messages": [COUNT]}
    async with anthropic.AsyncAnthropic(
        base_url=models_app.url, api_key=models_app.api_key
    ) as client:
        counted_tokens = (await client.messages.count_tokens(**request)).input_tokens
        usage = (await client.messages.create(**request, max_tokens=1)).usage
    assert counted_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


async def test_schema_constrains_the_model_in_every_protocol(models_app: ModelsApp) -> None:
    headers = {"authorization": f"Bearer {models_app.api_key}"}
    model: Any = "smollm2"
    messages: Any = [{"role": "user", "content": "Name a city."}]
    client = ollama.AsyncClient(host=f"{models_app.url}/v1/ollama", headers=headers)
    ollama_text = (await client.chat(model=model, messages=messages, format=CITY)).message.content
    await client.close()
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key
    ) as openai_client:
        response_format: Any = {
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": CITY},
        }
        openai_completion = await openai_client.chat.completions.create(
            model=model, messages=messages, response_format=response_format
        )
    async with anthropic.AsyncAnthropic(
        base_url=models_app.url, api_key=models_app.api_key
    ) as anthropic_client:
        output_config: Any = {"format": {"type": "json_schema", "schema": CITY}}
        anthropic_message = await anthropic_client.messages.create(
            model=model, messages=messages, max_tokens=50, output_config=output_config
        )
    [block] = anthropic_message.content
    assert block.type == "text"
    for text in (ollama_text, openai_completion.choices[0].message.content, block.text):
        assert json.loads(text or "")["city"] in ("Paris", "Rome")


@pytest.mark.parametrize("model", MODELS)
async def test_a_stop_string_ends_the_answer(models_app: ModelsApp, model: str) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{models_app.url}/v1", api_key=models_app.api_key
    ) as client:
        request: dict[str, Any] = {
            "model": model,
            "messages": [COUNT],
            "max_tokens": 40,
            "temperature": 0,
        }
        unbounded_text = (await client.chat.completions.create(**request)).choices[
            0
        ].message.content or ""
        stop_string = unbounded_text.split()[3]
        bounded_choice = (
            await client.chat.completions.create(**request, stop=[stop_string])
        ).choices[0]
    assert bounded_choice.finish_reason == "stop"
    assert bounded_choice.message.content == unbounded_text.partition(stop_string)[0]


async def test_vectors_of_a_real_model_are_the_same_in_both_protocols(
    llama_vectors: str, tmp_path: Path
) -> None:
    backend = build_local_backend(llama_vectors)
    backend["models"] = [{**backend["models"][0], "embeddings": True}]
    texts = ["The sky is blue.", "The sky is very blue.", "Tax law"]
    async with serving(tmp_path, backend) as models_app:
        headers = {"authorization": f"Bearer {models_app.api_key}"}
        client = ollama.AsyncClient(host=f"{models_app.url}/v1/ollama", headers=headers)
        ollama_vectors = (await client.embed(model="smollm2", input=texts)).embeddings
        with pytest.raises(ollama.ResponseError, match="dimensions"):
            await client.embed(model="smollm2", input=texts, dimensions=3)
        await client.close()
        async with openai.AsyncOpenAI(
            base_url=f"{models_app.url}/v1", api_key=models_app.api_key
        ) as openai_client:
            openai_response = await openai_client.embeddings.create(model="smollm2", input=texts)
    openai_vectors = [row.embedding for row in openai_response.data]
    assert openai_response.usage.prompt_tokens > 10
    for openai_vector, other_vector in zip(openai_vectors, ollama_vectors, strict=True):
        assert openai_vector == pytest.approx(list(other_vector), rel=1e-3, abs=1e-4)
    alike_similarity, unlike_similarity = (
        sum(a * b for a, b in zip(openai_vectors[0], other_vector, strict=True))
        for other_vector in openai_vectors[1:]
    )
    assert alike_similarity > unlike_similarity
