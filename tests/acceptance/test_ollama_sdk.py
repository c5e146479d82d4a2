"""Tests Ollama's SDK with llama.cpp, Claude's API format and the scripted model as back ends."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import ollama
import pytest
from pydantic import BaseModel

from tests.acceptance.text_gateway import ALL, CLAUDE, LLAMA, PNG, SCRIPTED, VECTORS, TextGateway

SUITE = f"ollama SDK {version('ollama')}"
HELLO = {"role": "user", "content": "Say hello."}


class Person(BaseModel):
    name: str
    age: int


def get_weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: its name
    """
    return f"Sunny in {city}."


@pytest.fixture
def client(text_gateway: TextGateway) -> Iterator[ollama.Client]:
    with ollama.Client(text_gateway.ollama_url, headers=_build_headers(text_gateway)) as client:
        yield client


def _build_headers(text_gateway: TextGateway) -> dict[str, str]:
    return {"authorization": f"Bearer {text_gateway.api_key}"}


@pytest.mark.parametrize("model", ALL)
def test_chat_is_answered_without_streaming(client: ollama.Client, model: str) -> None:
    response = client.chat(model, [HELLO], options={"num_predict": 8})
    assert response.message.content
    assert response.done
    assert response.done_reason in ("stop", "length")
    assert 0 < (response.eval_count or 0) <= 8
    assert (response.prompt_eval_count or 0) > 0


@pytest.mark.parametrize("model", ALL)
def test_a_stream_is_the_whole_answer(client: ollama.Client, model: str) -> None:
    whole_answer = client.chat(model, [HELLO], options={"num_predict": 8})
    chunks = list(client.chat(model, [HELLO], stream=True, options={"num_predict": 8}))
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole_answer.message.content
    assert [chunk.done for chunk in chunks].index(True) == len(chunks) - 1
    assert (chunks[-1].eval_count or 0) > 0


@pytest.mark.parametrize("model", ALL)
def test_generate_streams_the_whole_answer(client: ollama.Client, model: str) -> None:
    request: Any = {"model": model, "prompt": "Say hello.", "system": "Be kind."}
    whole_answer = client.generate(**request, options={"num_predict": 8})
    chunks = client.generate(**request, stream=True, options={"num_predict": 8})
    assert whole_answer.response
    assert "".join(chunk.response or "" for chunk in chunks) == whole_answer.response


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_answer_follows_the_json_schema(client: ollama.Client, model: str) -> None:
    answer = client.chat(
        model,
        [{"role": "user", "content": 'The person "Ada" is 36 years old.'}],
        format=Person.model_json_schema(),
        options={"num_predict": 64, "temperature": 0},
    )
    assert Person.model_validate_json(answer.message.content or "") == Person(name="Ada", age=36)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_stop_sequence_ends_the_answer(client: ollama.Client, model: str) -> None:
    whole_text = client.chat(model, [HELLO], options={"num_predict": 12}).message.content or ""
    stop = whole_text.split()[1]
    cut_answer = client.chat(model, [HELLO], options={"num_predict": 12, "stop": [stop]})
    assert cut_answer.done_reason == "stop"
    assert cut_answer.message.content == whole_text.partition(stop)[0]


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_tool_is_called_and_its_result_read(client: ollama.Client, model: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in 'Paris'?"}]
    response = client.chat(model, messages, tools=[get_weather])
    [call] = response.message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Paris"})
    tool_result = get_weather(**call.function.arguments)
    messages += [
        response.message,
        {"role": "tool", "tool_name": "get_weather", "content": tool_result},
    ]
    final_answer = client.chat(model, messages, tools=[get_weather])
    assert final_answer.message.content
    assert not final_answer.message.tool_calls


def test_parallel_tools_come_in_a_stream(client: ollama.Client) -> None:
    def tomorrow(city: str) -> str:
        """Return tomorrow's weather."""
        return city

    chunks = client.chat(
        SCRIPTED,
        [{"role": "user", "content": "Ask in parallel about 'Rome'."}],
        tools=[get_weather, tomorrow],
        stream=True,
    )
    calls = [call.function for chunk in chunks for call in chunk.message.tool_calls or []]
    assert [(call.name, call.arguments) for call in calls] == [
        ("get_weather", {"city": "Rome"}),
        ("tomorrow", {"city": "Rome"}),
    ]


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_picture_is_sent_to_the_model(client: ollama.Client, model: str) -> None:
    message = {"role": "user", "content": "What is it?", "images": [PNG]}
    assert client.chat(model, [message], options={"num_predict": 8}).message.content


def test_thinking_is_separate_from_text(client: ollama.Client) -> None:
    answer = client.chat(SCRIPTED, [HELLO], think="low")
    assert answer.message.thinking
    assert answer.message.content


def test_texts_become_vectors(client: ollama.Client) -> None:
    vectors = client.embed(VECTORS, ["fox", "hound"])
    assert [list(vector) for vector in vectors.embeddings] == [[3, ord("f")], [5, ord("h")]]
    [fox_vector] = client.embed(VECTORS, "fox").embeddings
    assert list(client.embeddings(VECTORS, "hound").embedding) == [5, ord("h")]
    assert list(fox_vector) == [3, ord("f")]


def test_models_are_listed_shown_and_running(client: ollama.Client) -> None:
    names = {model.model for model in client.list().models}
    assert {f"{name}:latest" for name in (LLAMA, CLAUDE, SCRIPTED)} < names
    assert "completion" in (client.show(LLAMA).capabilities or [])
    assert {"tools", "vision"} <= set(client.show(SCRIPTED).capabilities or [])
    assert isinstance(client.ps().models, list | tuple)


async def test_the_async_client_streams(text_gateway: TextGateway) -> None:
    async with ollama.AsyncClient(
        text_gateway.ollama_url, headers=_build_headers(text_gateway)
    ) as client:
        stream = await client.chat(LLAMA, [HELLO], stream=True, options={"num_predict": 8})
        texts = [chunk.message.content async for chunk in stream]
    assert len(texts) > 1


def test_errors_raise_the_sdks_own_exceptions(
    client: ollama.Client, text_gateway: TextGateway
) -> None:
    with pytest.raises(ollama.ResponseError, match="gpt-2") as unknown_model_error:
        client.chat("gpt-2", [HELLO])
    assert unknown_model_error.value.status_code == 404
    with (
        ollama.Client(
            text_gateway.ollama_url, headers={"authorization": "Bearer moyin_wrong"}
        ) as wrong_key_client,
        pytest.raises(ollama.ResponseError) as exc_info,
    ):
        wrong_key_client.chat(SCRIPTED, [HELLO])
    assert exc_info.value.status_code == 401
