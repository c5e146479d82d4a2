"""Tests instructor, which parses answers into pydantic models and retries invalid answers."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import anthropic
import instructor
import openai
import pytest
from pydantic import BaseModel, Field

from tests.acceptance.text_gateway import LLAMA, SCRIPTED, TextGateway

SUITE = f"instructor {version('instructor')}"
PROMPT: Any = [{"role": "user", "content": 'The person "Ada" is 36 years old.'}]


class Person(BaseModel):
    name: str
    age: int = Field(ge=0, le=150)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
@pytest.mark.parametrize("mode", [instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS])
def test_the_openai_client_gets_structured_output(
    text_gateway: TextGateway, model: str, mode: instructor.Mode
) -> None:
    with openai.OpenAI(base_url=text_gateway.openai_url, api_key=text_gateway.api_key) as client:
        person = instructor.from_openai(client, mode=mode).chat.completions.create(
            model=model, messages=PROMPT, response_model=Person, max_tokens=64, max_retries=0
        )
    assert (person.name, person.age) == ("Ada", 36)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_the_anthropic_client_gets_structured_output(text_gateway: TextGateway, model: str) -> None:
    with anthropic.Anthropic(base_url=text_gateway.url, api_key=text_gateway.api_key) as client:
        person = instructor.from_anthropic(client).messages.create(
            model=model, messages=PROMPT, response_model=Person, max_tokens=64, max_retries=0
        )
    assert (person.name, person.age) == ("Ada", 36)


@pytest.mark.parametrize("model", [LLAMA, SCRIPTED])
def test_partial_answers_grow(text_gateway: TextGateway, model: str) -> None:
    with openai.OpenAI(base_url=text_gateway.openai_url, api_key=text_gateway.api_key) as client:
        partial_persons = list(
            instructor.from_openai(
                client, mode=instructor.Mode.JSON_SCHEMA
            ).chat.completions.create_partial(
                model=model, messages=PROMPT, response_model=Person, max_tokens=64, max_retries=0
            )
        )
    assert len(partial_persons) > 1
    assert (partial_persons[-1].name, partial_persons[-1].age) == ("Ada", 36)


@pytest.mark.parametrize("model", [SCRIPTED])
async def test_async_client_gets_structured_output(text_gateway: TextGateway, model: str) -> None:
    async with openai.AsyncOpenAI(
        base_url=text_gateway.openai_url, api_key=text_gateway.api_key
    ) as client:
        person = await instructor.from_openai(client).chat.completions.create(
            model=model, messages=PROMPT, response_model=Person, max_retries=0
        )
    assert (person.name, person.age) == ("Ada", 36)
