"""Tests OpenAI's SDK with the Responses API on llama.cpp, Claude's API and the scripted model."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any, cast

import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from pydantic import BaseModel, Field

from tests.acceptance.text_gateway import ALL, LLAMA, PNG, SCRIPTED, TextGateway

SUITE = f"openai SDK {openai.__version__}, responses"
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


QUESTION: Any = {"role": "user", "content": "What is the weather in Paris?"}
WEB_SEARCH: Any = {"type": "web_search"}


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=150)


@pytest.fixture
def client(text_gateway: TextGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=text_gateway.openai_url,
        api_key=text_gateway.api_key,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.mark.parametrize("model", ALL)
def test_chat_is_answered_without_streaming(client: openai.OpenAI, model: str) -> None:
    response = client.responses.create(
        model=model, instructions="Be kind.", input="Say hello.", max_output_tokens=8
    )
    assert response.output_text
    assert response.status in ("completed", "incomplete")
    assert response.usage is not None
    assert 0 < response.usage.output_tokens <= 8


@pytest.mark.parametrize("model", ALL)
def test_the_stream_helper_assembles_the_answer(client: openai.OpenAI, model: str) -> None:
    with client.responses.stream(model=model, input="Say hello.", temperature=0) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final_response = stream.get_final_response()
    assert text == final_response.output_text
    assert final_response.usage is not None and final_response.usage.output_tokens > 0


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_parse_fills_a_pydantic_model(client: openai.OpenAI, model: str) -> None:
    response = client.responses.parse(
        model=model,
        input='The person "Ada" is 36 years old.',
        text_format=Person,
        max_output_tokens=64,
        temperature=0,
    )
    assert response.output_parsed is None or isinstance(response.output_parsed, Person)
    if model == SCRIPTED:
        assert response.output_parsed is not None


def test_a_tool_is_called_and_its_result_read(client: openai.OpenAI) -> None:
    first_response = client.responses.create(
        model=SCRIPTED, input="What is the weather in Paris?", tools=[WEATHER]
    )
    [call] = [item for item in first_response.output if isinstance(item, ResponseFunctionToolCall)]
    assert call.name == "get_weather"
    assert "city" in json.loads(call.arguments)
    tool_output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    for response in (
        client.responses.create(
            model=SCRIPTED,
            input=[tool_output],
            tools=[WEATHER],
            previous_response_id=first_response.id,
        ),
        client.responses.create(
            model=SCRIPTED,
            input=[QUESTION, *cast(Any, first_response.output), tool_output],
            tools=[WEATHER],
        ),
    ):
        assert "sunny" in response.output_text


def test_a_picture_is_sent_to_the_model(client: openai.OpenAI) -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    content: Any = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": url, "detail": "auto"},
    ]
    response = client.responses.create(model=SCRIPTED, input=[{"role": "user", "content": content}])
    assert response.output_text


def test_a_stored_response_is_continued_listed_and_deleted(client: openai.OpenAI) -> None:
    first_response = client.responses.create(
        model=LLAMA, input="My name is Ada.", max_output_tokens=8
    )
    *_, last_event = client.responses.create(
        model=LLAMA,
        input="What is my name?",
        max_output_tokens=8,
        previous_response_id=first_response.id,
        stream=True,
    )
    assert last_event.type == "response.incomplete"
    second_response = last_event.response
    third_response = client.responses.create(
        model=LLAMA, input="And now?", max_output_tokens=8, previous_response_id=second_response.id
    )
    assert third_response.usage is not None and first_response.usage is not None
    assert third_response.usage.input_tokens > first_response.usage.input_tokens, (
        "the model has not read the earlier turns"
    )
    assert client.responses.retrieve(third_response.id) == third_response
    items = client.responses.input_items.list(second_response.id).data
    assert [cast(Any, item).content[0].text for item in items] == ["What is my name?"]
    client.responses.delete(first_response.id)
    with pytest.raises(openai.NotFoundError, match=first_response.id):
        client.responses.retrieve(first_response.id)
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.responses.create(model=LLAMA, input="?", previous_response_id=second_response.id)
    assert exc_info.value.code == "previous_response_not_found"
    assert exc_info.value.param == "previous_response_id"


def test_items_of_a_stored_response_are_referenced_by_id(client: openai.OpenAI) -> None:
    first_response = client.responses.create(
        model=LLAMA, input="My name is Ada.", max_output_tokens=8
    )
    reference: Any = {"type": "item_reference", "id": first_response.output[0].id}
    question: Any = {"role": "user", "content": "What is my name?"}
    second_response = client.responses.create(
        model=LLAMA, input=[reference, question], max_output_tokens=8
    )
    assert second_response.usage is not None and first_response.usage is not None
    assert second_response.usage.input_tokens > first_response.usage.input_tokens
    unknown_reference: Any = {"type": "item_reference", "id": "msg_" + "0" * 32 + "_0"}
    with pytest.raises(openai.BadRequestError) as exc_info:
        client.responses.create(model=LLAMA, input=[question, unknown_reference])
    assert exc_info.value.param == "input.1.id"


def test_a_response_is_not_stored_if_the_client_forbids_it(client: openai.OpenAI) -> None:
    response = client.responses.create(model=SCRIPTED, input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_a_tool_that_no_back_end_has_is_refused_by_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="web_search") as exc_info:
        client.responses.create(model=SCRIPTED, input="hi", tools=[WEB_SEARCH])
    assert exc_info.value.param == "tools.0.type"


async def test_a_stream_is_cancelled(text_gateway: TextGateway) -> None:
    async with openai.AsyncOpenAI(
        base_url=text_gateway.openai_url, api_key=text_gateway.api_key
    ) as client:
        async with client.responses.stream(model=LLAMA, input="Count to 1000.") as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    break
        await asyncio.sleep(0)
        second_response = await client.responses.create(
            model=LLAMA, input="hi", max_output_tokens=4
        )
    assert second_response.output_text
