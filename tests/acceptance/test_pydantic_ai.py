"""Tests pydantic-ai agents with tools and typed outputs, through three clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import openai
import pytest
from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.acceptance.text_gateway import LLAMA, PNG, SCRIPTED, TextGateway

SUITE = f"pydantic-ai {version('pydantic-ai-slim')}"
PROMPT = 'The person "Ada" is 36 years old.'
THROUGH = ["openai", "anthropic"]


class Person(BaseModel):
    name: str
    age: int


@asynccontextmanager
async def _open_model(
    text_gateway: TextGateway, client_name: str, model: str
) -> AsyncIterator[Model]:
    """Yield ``model``, called through one of the clients that pydantic-ai supports."""
    if client_name == "anthropic":
        async with AsyncAnthropic(
            base_url=text_gateway.url, api_key=text_gateway.api_key
        ) as anthropic_client:
            provider = AnthropicProvider(anthropic_client=anthropic_client)
            # pydantic-ai knows by their names which Claudes can be held to a schema.
            yield AnthropicModel(
                model, provider=provider, profile={"supports_json_schema_output": True}
            )
    else:
        async with openai.AsyncOpenAI(
            base_url=text_gateway.openai_url, api_key=text_gateway.api_key
        ) as client:
            yield OpenAIChatModel(model, provider=OpenAIProvider(openai_client=client))


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
@pytest.mark.parametrize("client_name", THROUGH)
async def test_text_is_answered_whole_and_streamed(
    text_gateway: TextGateway, client_name: str, model: str
) -> None:
    async with _open_model(text_gateway, client_name, model) as llm:
        agent = Agent(llm, instructions="Be kind.")
        whole_run = await agent.run("Say hello.", model_settings={"max_tokens": 16})
        assert whole_run.output
        assert whole_run.usage.output_tokens > 0
        async with agent.run_stream("Say hello.", model_settings={"max_tokens": 16}) as stream:
            texts = [text async for text in stream.stream_text(delta=True, debounce_by=None)]
        assert "".join(texts) == whole_run.output


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
@pytest.mark.parametrize("client_name", THROUGH)
async def test_typed_output_uses_a_schema(
    text_gateway: TextGateway, client_name: str, model: str
) -> None:
    async with _open_model(text_gateway, client_name, model) as llm:
        agent = Agent(llm, output_type=NativeOutput(Person), retries=0)
        result = await agent.run(PROMPT, model_settings={"max_tokens": 64})
        assert result.output == Person(name="Ada", age=36)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
@pytest.mark.parametrize("client_name", THROUGH)
async def test_a_typed_output_is_made_by_a_tool(
    text_gateway: TextGateway, client_name: str, model: str
) -> None:
    async with _open_model(text_gateway, client_name, model) as llm:
        agent = Agent(llm, output_type=ToolOutput(Person), retries=0)
        result = await agent.run(PROMPT, model_settings={"max_tokens": 64})
        assert result.output == Person(name="Ada", age=36)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
@pytest.mark.parametrize("client_name", THROUGH)
async def test_a_tool_is_called_before_the_answer(
    text_gateway: TextGateway, client_name: str, model: str
) -> None:
    async with _open_model(text_gateway, client_name, model) as llm:
        agent = Agent(llm, retries=0)
        requested_cities: list[str] = []

        def get_weather(city: str) -> str:
            """Return the weather of a city."""
            requested_cities.append(city)
            return "Sunny."

        agent.tool_plain(get_weather)
        result = await agent.run("What is the weather in 'Paris'?")
        assert requested_cities == ["Paris"]
        assert result.output


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
@pytest.mark.parametrize("client_name", THROUGH)
async def test_a_picture_is_sent_to_the_model(
    text_gateway: TextGateway, client_name: str, model: str
) -> None:
    async with _open_model(text_gateway, client_name, model) as llm:
        agent = Agent(llm)
        picture = BinaryContent(PNG, media_type="image/png")
        result = await agent.run(["What is it?", picture], model_settings={"max_tokens": 8})
        assert result.output
