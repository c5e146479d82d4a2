"""Tests OpenAI's SDK with llama.cpp, Claude's API format and the scripted model as back ends."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from pydantic import BaseModel, Field

from tests.acceptance.text_gateway import ALL, CLAUDE, LLAMA, PNG, SCRIPTED, VECTORS, TextGateway

SUITE = f"openai SDK {openai.__version__}"
HELLO: Any = {"role": "user", "content": "Say hello."}


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=150)


class GetWeather(BaseModel):
    """Get the weather of a city."""

    city: str


@pytest.fixture
def client(text_gateway: TextGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=text_gateway.openai_url, api_key=text_gateway.api_key, max_retries=0
    ) as client:
        yield client


@pytest.mark.parametrize("model", ALL)
def test_chat_is_answered_without_streaming(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": "Be kind."}, HELLO],
        max_completion_tokens=8,
        temperature=0,
    )
    [choice] = completion.choices
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert completion.usage is not None
    assert 0 < completion.usage.completion_tokens <= 8
    assert (
        completion.usage.total_tokens
        == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


@pytest.mark.parametrize("model", ALL)
def test_the_stream_helper_assembles_the_answer(client: openai.OpenAI, model: str) -> None:
    # Long enough for all of it: the helper takes an answer that was cut for an error.
    request: dict[str, Any] = {
        "model": model,
        "messages": [HELLO],
        "max_tokens": 200,
        "temperature": 0,
    }
    with client.chat.completions.stream(
        **request, stream_options={"include_usage": True}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final_completion = stream.get_final_completion()
    assert text == final_completion.choices[0].message.content
    assert text == client.chat.completions.create(**request).choices[0].message.content
    assert final_completion.usage is not None
    assert 0 < final_completion.usage.completion_tokens < 200


# llama.cpp has the call; for Claude's wire, and for the model that obeys, the prompt becomes a chat.
@pytest.mark.parametrize("model", ALL)
def test_a_text_is_completed_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    request: dict[str, Any] = {"model": model, "prompt": "Say hello.", "max_tokens": 8}
    completion = client.completions.create(**request, temperature=0)
    Completion.model_validate(completion.model_dump(), strict=True)
    [choice] = completion.choices
    assert choice.text
    assert completion.usage is not None
    assert 0 < completion.usage.completion_tokens <= 8
    assert (
        completion.usage.total_tokens
        == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )
    events = list(
        client.completions.create(
            **request, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.text for event in events for c in event.choices) == choice.text
    finish_reasons = [c.finish_reason for event in events for c in event.choices]
    assert finish_reasons[-1] == choice.finish_reason
    assert not any(finish_reasons[:-1])
    assert [event.usage for event in events if event.usage][-1] is not None
    for event in events:
        event_body = event.model_dump()
        for choice_body in event_body["choices"]:
            # OpenAI too sends null until the end, for which its SDK's type has no place.
            choice_body["finish_reason"] = choice_body["finish_reason"] or "stop"
        Completion.model_validate(event_body, strict=True)


@pytest.mark.parametrize("model", ALL)
def test_a_stop_sequence_ends_a_completion(client: openai.OpenAI, model: str) -> None:
    request: dict[str, Any] = {"model": model, "prompt": "Say hello.", "max_tokens": 12}
    whole_text = client.completions.create(**request, temperature=0).choices[0].text
    stop = whole_text.split()[1]
    cut_choice = client.completions.create(**request, temperature=0, stop=[stop]).choices[0]
    assert cut_choice.text == whole_text.partition(stop)[0]


@pytest.mark.parametrize("model", [CLAUDE, SCRIPTED])
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 1}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_members_that_a_chat_lacks_are_refused_by_name(
    client: openai.OpenAI, model: str, changes: dict[str, Any], field: str
) -> None:
    request: dict[str, Any] = {"model": model, "prompt": "Say hello.", "max_tokens": 4, **changes}
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.completions.create(**request)
    assert (exc_info.value.param, exc_info.value.code) == (field, "unsupported_feature")


def test_several_prompts_and_token_numbers_reach_llama_cpp(client: openai.OpenAI) -> None:
    completion = client.completions.create(model=LLAMA, prompt=["One", "Two"], max_tokens=2)
    assert [choice.index for choice in completion.choices] == [0, 1]
    completion = client.completions.create(model=LLAMA, prompt=[1, 2, 3], max_tokens=2)
    assert completion.choices[0].text


@pytest.mark.parametrize("model", ALL)
def test_conversation_of_several_turns_is_answered(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.create(
        model=model,
        messages=[HELLO, {"role": "assistant", "content": "Hello!"}, HELLO],
        max_tokens=4,
    )
    assert completion.choices[0].message.content


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_parse_fills_a_pydantic_model(client: openai.OpenAI, model: str) -> None:
    completion = client.chat.completions.parse(
        model=model,
        messages=[{"role": "user", "content": 'The person "Ada" is 36 years old.'}],
        response_format=Person,
        max_tokens=64,
        temperature=0,
    )
    person = completion.choices[0].message.parsed
    assert person == Person(name="Ada", age=36)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_stop_sequence_ends_the_answer(client: openai.OpenAI, model: str) -> None:
    request: dict[str, Any] = {
        "model": model,
        "messages": [HELLO],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole_text = client.chat.completions.create(**request).choices[0].message.content
    assert whole_text
    stop = whole_text.split()[1]
    cut_choice = client.chat.completions.create(**request, stop=[stop]).choices[0]
    assert cut_choice.finish_reason == "stop"
    assert cut_choice.message.content == whole_text.partition(stop)[0]


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_tool_is_called_and_its_result_read(client: openai.OpenAI, model: str) -> None:
    tools = [openai.pydantic_function_tool(GetWeather)]
    question: Any = {"role": "user", "content": "What is the weather in 'Paris'?"}
    request: dict[str, Any] = {"model": model, "tools": tools, "max_tokens": 64}
    message = (
        client.chat.completions.parse(
            **request, messages=[question], tool_choice="required", parallel_tool_calls=False
        )
        .choices[0]
        .message
    )
    [call] = message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Paris")
    tool_message = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    messages: Any = [question, message.model_dump(exclude_none=True), tool_message]
    final_completion = client.chat.completions.create(**request, messages=messages)
    assert final_completion.choices[0].finish_reason == "stop"
    assert final_completion.choices[0].message.content


def test_parallel_tool_calls_are_separate_in_a_stream(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(GetWeather, name=name) for name in ("today", "tomorrow")]
    with client.chat.completions.stream(
        model=SCRIPTED,
        messages=[{"role": "user", "content": "Ask in parallel about 'Rome' and 'Oslo'."}],
        tools=tools,
    ) as stream:
        finished_calls = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [event.name for event in finished_calls] == ["today", "tomorrow"]
    assert [call.function.parsed_arguments for call in calls] == [GetWeather(city="Rome")] * 2
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_picture_is_sent_to_the_model(client: openai.OpenAI, model: str) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    picture: Any = {"type": "image_url", "image_url": {"url": url}}
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]}],
        max_tokens=8,
    )
    assert completion.choices[0].message.content


def test_reasoning_is_counted(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=SCRIPTED, messages=[HELLO], reasoning_effort="low"
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert (completion.usage.completion_tokens_details.reasoning_tokens or 0) > 0


def test_texts_become_vectors(client: openai.OpenAI) -> None:
    vectors = client.embeddings.create(model=VECTORS, input=["fox", "hound"])
    assert [row.embedding for row in vectors.data] == [[3, ord("f")], [5, ord("h")]]
    assert vectors.usage.prompt_tokens > 0


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {LLAMA, CLAUDE, SCRIPTED} < names
    assert client.models.retrieve(LLAMA).id == LLAMA


async def test_async_client_sends_concurrent_calls(text_gateway: TextGateway) -> None:
    async with openai.AsyncOpenAI(
        base_url=text_gateway.openai_url, api_key=text_gateway.api_key
    ) as client:
        completions = await asyncio.gather(
            *(
                client.chat.completions.create(model=model, messages=[HELLO], max_tokens=4)
                for model in [SCRIPTED, LLAMA] * 4
            )
        )
    assert all(completion.choices[0].message.content for completion in completions)


def test_stream_abandoned_by_the_client_is_closed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=LLAMA, messages=[HELLO], max_tokens=200, stream=True
    )
    with stream:
        assert next(stream).choices
    assert client.chat.completions.create(model=SCRIPTED, messages=[HELLO]).choices


def test_errors_raise_the_sdks_own_exceptions(
    client: openai.OpenAI, text_gateway: TextGateway
) -> None:
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.chat.completions.create(model=SCRIPTED, messages=[HELLO], temperature=9)
    assert (exc_info.value.param, exc_info.value.code) == ("temperature", "invalid_request")
    with pytest.raises(openai.NotFoundError) as unknown_model_error:
        client.models.retrieve("gpt-2")
    assert unknown_model_error.value.code == "model_not_found"
    with (
        openai.OpenAI(
            base_url=text_gateway.openai_url, api_key="moyin_wrong", max_retries=0
        ) as wrong_key_client,
        pytest.raises(openai.AuthenticationError),
    ):
        wrong_key_client.models.list()


def test_raw_responses_name_the_backend(client: openai.OpenAI) -> None:
    raw_response = client.chat.completions.with_raw_response.create(
        model=SCRIPTED, messages=[HELLO]
    )
    assert raw_response.headers["x-moyin-backend"] == "scripted"
    assert json.loads(raw_response.text)["choices"]
