"""Checks LlamaIndex with four model classes and with embeddings.

Prints the result of each check as JSON: "ok", or the error. Arguments: the gateway's address, a
key, the scripted model, an embedding model.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from checking import PERSON, QUESTION, RESULT, SENTENCE, TEXT, report_results, run_page_snippet
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.anthropic import Anthropic
from llama_index.llms.openai import OpenAI
from pydantic import BaseModel

url, key, model, vectors = sys.argv[1:]
HEADERS = {"authorization": f"Bearer {key}"}


class Person(BaseModel):
    name: str
    age: int


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


# These two know the context of the vendors' own models only, so they ask aliases of such names.
OPENAI = OpenAI(model="gpt-4o", api_base=f"{url}/v1", api_key=key, max_retries=0)
ANTHROPIC = Anthropic(model="claude-sonnet-4-5", base_url=url, api_key=key, max_retries=0)
PAGE = run_page_snippet("llama_index", url, key, model)
LIKE = PAGE["like"]
CHATS: dict[str, Any] = {
    "OpenAI": OPENAI,
    "Anthropic": ANTHROPIC,
    "OpenAILike chat": PAGE["chat"],
    "Ollama": PAGE["ollama"],
}
HELLO = [ChatMessage(role="system", content="Be kind."), ChatMessage(content="Say hello.")]


def chats(llm: Any) -> None:
    assert llm.chat(HELLO).message.content == TEXT
    streamed_texts = [chunk.delta or "" for chunk in llm.stream_chat(HELLO)]
    assert "".join(streamed_texts) == TEXT, streamed_texts
    assert llm.complete("Say hello.").text == TEXT


def runs_tools(llm: Any) -> None:
    tool_response = llm.chat_with_tools([FunctionTool.from_defaults(weather)], user_msg=QUESTION)
    [call] = llm.get_tool_calls_from_response(tool_response)
    assert (call.tool_name, call.tool_kwargs) == ("weather", {"city": "Paris"}), call


def runs_an_agent(llm: Any) -> None:
    async def run() -> tuple[str, list[str]]:
        answer = await FunctionAgent(tools=[weather], llm=llm).run(QUESTION)
        return str(answer), [str(call.tool_output) for call in answer.tool_calls]

    answer, tool_outputs = asyncio.run(run())
    assert (answer, tool_outputs) == (TEXT, [RESULT]), (answer, tool_outputs)


def fills_objects(llm: Any) -> None:
    filled_person = llm.as_structured_llm(Person).complete(SENTENCE).raw
    assert filled_person == Person(**PERSON), filled_person


def completes() -> None:
    # Its default is OpenAI's older call.
    assert TEXT in LIKE.complete("Say hello.").text
    assert TEXT in "".join(chunk.delta or "" for chunk in LIKE.stream_complete("Say hello."))
    assert TEXT in str(LIKE.chat(HELLO).message.content)


def embeds() -> None:
    options = {"api_base": f"{url}/v1", "api_key": key, "model_name": vectors, "max_retries": 0}
    for embedding in (
        OpenAIEmbedding(**options),
        OpenAILikeEmbedding(**options),
        OllamaEmbedding(vectors, base_url=f"{url}/v1/ollama", client_kwargs={"headers": HEADERS}),
    ):
        assert embedding.get_text_embedding_batch(["a", "bcd"]) == [[1, 97], [3, 98]]


checks = {
    f"{name} {check.__name__}": (lambda check=check, llm=llm: check(llm))
    for name, llm in CHATS.items()
    for check in (chats, runs_tools, runs_an_agent, fills_objects)
}
report_results({**checks, "OpenAILike completes": completes, "embeddings": embeds})
