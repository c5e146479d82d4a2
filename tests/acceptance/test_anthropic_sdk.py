"""Tests Anthropic's SDK with Claude's API format, llama.cpp and the scripted model as back ends."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import beta_tool
from pydantic import BaseModel

from tests.acceptance.text_gateway import ALL, CLAUDE, LLAMA, PNG, SCRIPTED, TextGateway

SUITE = f"anthropic SDK {anthropic.__version__}"
HELLO: Any = {"role": "user", "content": "Say hello."}
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(text_gateway: TextGateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=text_gateway.url, api_key=text_gateway.api_key, max_retries=0
    ) as client:
        yield client


def get_text(message: Any) -> str:
    """Return the text of a message whose first block is text."""
    text: str = message.content[0].text
    return text


@pytest.mark.parametrize("model", ALL)
def test_chat_is_answered_without_streaming(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.create(model=model, system="Be kind.", messages=[HELLO], max_tokens=8)
    [block] = message.content
    assert block.type == "text"
    assert block.text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert 0 < message.usage.output_tokens <= 8
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 0


@pytest.mark.parametrize("model", ALL)
def test_the_stream_helper_assembles_the_answer(client: anthropic.Anthropic, model: str) -> None:
    request: dict[str, Any] = {"model": model, "messages": [HELLO], "max_tokens": 8}
    with client.messages.stream(**request) as stream:
        event_types = [event.type for event in stream]
        final_message = stream.get_final_message()
    assert event_types[0] == "message_start"
    assert event_types[-1] == "message_stop"
    assert get_text(final_message) == get_text(client.messages.create(**request))
    assert 0 < final_message.usage.output_tokens <= 8


@pytest.mark.parametrize("model", ALL)
def test_conversation_of_several_turns_is_answered(client: anthropic.Anthropic, model: str) -> None:
    messages: Any = [HELLO, {"role": "assistant", "content": "Hello!"}, HELLO]
    assert client.messages.create(model=model, messages=messages, max_tokens=4).content


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_parse_fills_a_pydantic_model(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.parse(
        model=model,
        messages=[{"role": "user", "content": 'The person "Ada" is 36 years old.'}],
        output_format=Person,
        max_tokens=64,
    )
    assert message.parsed_output == Person(name="Ada", age=36)


@pytest.mark.parametrize("model", ALL)
def test_a_stop_sequence_ends_the_answer(client: anthropic.Anthropic, model: str) -> None:
    request: dict[str, Any] = {"model": model, "messages": [HELLO], "max_tokens": 12}
    whole_text = get_text(client.messages.create(**request))
    stop = whole_text.split()[1]
    cut_message = client.messages.create(**request, stop_sequences=[stop])
    assert cut_message.stop_reason in ("stop_sequence", "end_turn")
    assert "".join(block.text for block in cut_message.content) == whole_text.partition(stop)[0]


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_tool_is_called_and_its_result_read(client: anthropic.Anthropic, model: str) -> None:
    request: dict[str, Any] = {"model": model, "tools": [TOOL], "max_tokens": 64}
    question: Any = {"role": "user", "content": "What is the weather in 'Paris'?"}
    first_message = client.messages.create(
        **request, messages=[question], tool_choice={"type": "any"}
    )
    assert first_message.stop_reason == "tool_use"
    [tool_use] = [block for block in first_message.content if block.type == "tool_use"]
    assert tool_use.input == {"city": "Paris"}
    tool_result = {"type": "tool_result", "tool_use_id": tool_use.id, "content": "Sunny."}
    messages: Any = [
        question,
        {"role": "assistant", "content": first_message.content},
        {"role": "user", "content": [tool_result]},
    ]
    final_message = client.messages.create(**request, messages=messages)
    assert final_message.stop_reason == "end_turn"
    assert final_message.content[0].text


def test_the_tool_runner_runs_a_tool(client: anthropic.Anthropic) -> None:
    requested_cities: list[str] = []

    @beta_tool
    def get_weather(city: str) -> str:
        """Return the weather of a city.

        Args:
            city: its name
        """
        requested_cities.append(city)
        return "Sunny."

    runner = client.beta.messages.tool_runner(
        model=SCRIPTED,
        max_tokens=64,
        tools=[get_weather],
        messages=[{"role": "user", "content": "What is the weather in 'Paris'?"}],
    )
    final_message = runner.until_done()
    assert requested_cities == ["Paris"]
    assert final_message.stop_reason == "end_turn"


def test_parallel_tool_calls_are_separate_in_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=SCRIPTED,
        messages=[{"role": "user", "content": "Ask in parallel about 'Rome'."}],
        tools=[TOOL | {"name": "today"}, TOOL | {"name": "tomorrow"}],
        max_tokens=64,
    ) as stream:
        final_message = stream.get_final_message()
    tool_uses = [block for block in final_message.content if block.type == "tool_use"]
    assert [(use.name, use.input) for use in tool_uses] == [
        ("today", {"city": "Rome"}),
        ("tomorrow", {"city": "Rome"}),
    ]
    assert len({use.id for use in tool_uses}) == 2


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_a_picture_is_sent_to_the_model(client: anthropic.Anthropic, model: str) -> None:
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(PNG).decode(),
    }
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    message = client.messages.create(
        model=model, messages=[{"role": "user", "content": content}], max_tokens=8
    )
    assert get_text(message)


def test_thinking_is_a_separate_block(client: anthropic.Anthropic) -> None:
    request: dict[str, Any] = {
        "model": SCRIPTED,
        "messages": [HELLO],
        "max_tokens": 2048,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    assert [b.type for b in client.messages.create(**request).content] == ["thinking", "text"]
    with client.messages.stream(**request) as stream:
        thinking_text = "".join(event.thinking for event in stream if event.type == "thinking")
        final_message = stream.get_final_message()
    assert thinking_text
    assert [block.type for block in final_message.content] == ["thinking", "text"]


@pytest.mark.parametrize("model", ALL)
def test_tokens_are_counted(client: anthropic.Anthropic, model: str) -> None:
    short_count = client.messages.count_tokens(model=model, messages=[HELLO])
    long_count = client.messages.count_tokens(model=model, messages=[HELLO] * 3, system="Be kind.")
    assert 0 < short_count.input_tokens < long_count.input_tokens


def test_models_are_listed_and_retrieved(client: anthropic.Anthropic) -> None:
    names = {model.id for model in client.models.list()}
    assert {LLAMA, CLAUDE, SCRIPTED} < names
    assert client.models.retrieve(LLAMA).display_name == LLAMA


async def test_the_async_client_streams_text(text_gateway: TextGateway) -> None:
    async with (
        anthropic.AsyncAnthropic(base_url=text_gateway.url, api_key=text_gateway.api_key) as client,
        client.messages.stream(model=LLAMA, messages=[HELLO], max_tokens=8) as stream,
    ):
        texts = [piece async for piece in stream.text_stream]
    assert len(texts) > 1


def test_errors_raise_the_sdks_own_exceptions(
    client: anthropic.Anthropic, text_gateway: TextGateway
) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=SCRIPTED, messages=[HELLO], max_tokens=0)
    with pytest.raises(anthropic.NotFoundError, match="gpt-2"):
        client.messages.create(model="gpt-2", messages=[HELLO], max_tokens=8)
    with (
        anthropic.Anthropic(
            base_url=text_gateway.url, api_key="moyin_wrong", max_retries=0
        ) as wrong_key_client,
        pytest.raises(anthropic.AuthenticationError),
    ):
        wrong_key_client.messages.create(model=SCRIPTED, messages=[HELLO], max_tokens=8)
