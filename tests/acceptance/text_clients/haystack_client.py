"""Checks Haystack's generators for three protocols, its agent, and its embedders.

Prints the result of each check as JSON: "ok", or the error. Arguments: the gateway's address, a
key, the scripted model, an embedding model.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# Otherwise it reports its use.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from checking import PERSON, QUESTION, RESULT, SENTENCE, TEXT, report_results, run_page_snippet
from haystack import Document
from haystack.components.agents import Agent
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from haystack_integrations.components.generators.anthropic import AnthropicChatGenerator
from haystack_integrations.components.generators.ollama import OllamaChatGenerator
from pydantic import BaseModel

url, key, model, vectors = sys.argv[1:]
# The generators for Anthropic and Ollama leave these to the clients below.
os.environ |= {"ANTHROPIC_BASE_URL": url, "OLLAMA_API_KEY": key}
OPENAI: dict[str, Any] = {"api_base_url": f"{url}/v1", "api_key": Secret.from_token(key)}


class Person(BaseModel):
    name: str
    age: int


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


def new_generator(name: str) -> Any:
    match name:
        case "openai":
            return run_page_snippet("haystack", url, key, model)["chat"]
        case "openai responses":
            return run_page_snippet("haystack", url, key, model)["responses"]
        case "anthropic":
            return AnthropicChatGenerator(
                model=model, api_key=Secret.from_token(key), max_retries=0
            )
        case _:
            return OllamaChatGenerator(model=model, url=f"{url}/v1/ollama")


def chats(name: str) -> None:
    messages = [ChatMessage.from_system("Be kind."), ChatMessage.from_user("Say hello.")]
    [reply] = new_generator(name).run(messages)["replies"]
    assert reply.text == TEXT, reply
    streamed_texts: list[str] = []
    streaming_generator = new_generator(name)
    streaming_generator.streaming_callback = lambda chunk: streamed_texts.append(
        chunk.content or ""
    )
    [reply] = streaming_generator.run(messages)["replies"]
    assert reply.text == TEXT and "".join(streamed_texts) == TEXT, (reply, streamed_texts)


def runs_an_agent(name: str) -> None:
    agent = Agent(chat_generator=new_generator(name), tools=[create_tool_from_function(weather)])
    agent_run = agent.run([ChatMessage.from_user(QUESTION)])
    tool_results = [m.tool_call_result.result for m in agent_run["messages"] if m.tool_call_result]
    assert (agent_run["last_message"].text, tool_results) == (TEXT, [RESULT]), agent_run


def fills_objects() -> None:
    generation_options = {"response_format": Person}
    schema_generator = OpenAIChatGenerator(
        model=model, generation_kwargs=generation_options, max_retries=0, **OPENAI
    )
    [reply] = schema_generator.run([ChatMessage.from_user(SENTENCE)])["replies"]
    assert json.loads(reply.text) == PERSON, reply


def embeds() -> None:
    embedder_options = {"model": vectors, **OPENAI}
    assert OpenAITextEmbedder(**embedder_options).run("bcd")["embedding"] == [3, 98]
    embedding_run = OpenAIDocumentEmbedder(progress_bar=False, **embedder_options).run(
        [Document(content="a")]
    )
    assert embedding_run["documents"][0].embedding == [1, 97]


checks = {
    f"{name} {check.__name__}": (lambda check=check, name=name: check(name))
    for name in ("openai", "openai responses", "anthropic", "ollama")
    for check in (chats, runs_an_agent)
}
report_results({**checks, "openai fills_objects": fills_objects, "embeddings": embeds})
