"""Checks each LiteLLM provider that can reach the gateway, and `litellm.responses`.

Prints the result of each check as JSON: "ok", or the error. Arguments: the gateway's address, a
key, the scripted model, an embedding model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Otherwise it fetches its price list.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import yaml
from checking import PERSON, QUESTION, SENTENCE, TEXT, report_results, run_page_snippet

url, key, model, vectors = sys.argv[1:]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
FUNCTION = {"name": "weather", "description": "The weather of a city", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
OLLAMA: dict[str, Any] = {
    "api_base": f"{url}/v1/ollama",
    "extra_headers": {"Authorization": f"Bearer {key}"},
}
OPENAI: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": key}
PLACES: dict[str, dict[str, Any]] = {
    "openai": OPENAI,
    "hosted_vllm": OPENAI,
    # By itself it asks for answers of up to 128,000 tokens, which is the whole context of the model.
    "anthropic": {"api_base": url, "api_key": key, "max_tokens": 1024},
    "ollama_chat": OLLAMA,
}


def complete_chat(provider: str, **members: Any) -> Any:
    members.setdefault("messages", [{"role": "user", "content": "Say hello."}])
    return litellm.completion(model=f"{provider}/{model}", **PLACES[provider], **members)


def answers_whole(provider: str) -> None:
    completion = complete_chat(provider)
    assert completion.choices[0].message.content == TEXT, completion
    assert completion.usage.prompt_tokens > 0, completion


def streams(provider: str) -> None:
    chunks = list(complete_chat(provider, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == TEXT, text


def runs_tools(provider: str) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    tool_response = complete_chat(provider, messages=messages, tools=TOOLS)
    [call] = tool_response.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}, tool_response
    messages += [
        tool_response.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert (
        complete_chat(provider, messages=messages, tools=TOOLS).choices[0].message.content == TEXT
    )


def fills_objects(provider: str) -> None:
    messages = [{"role": "user", "content": SENTENCE}]
    completion = complete_chat(provider, messages=messages, response_format=FORM)
    assert json.loads(completion.choices[0].message.content) == PERSON, completion


def reports_errors(provider: str) -> None:
    try:
        litellm.completion(
            model=f"{provider}/gpt-2",
            messages=[{"role": "user", "content": "hi"}],
            num_retries=0,
            **PLACES[provider],
        )
    except litellm.NotFoundError as not_found_error:
        assert "gpt-2" in str(not_found_error)
    else:
        raise AssertionError("an unknown model was answered instead of refused")


def completes() -> None:
    completion = litellm.text_completion(
        model=f"text-completion-openai/{model}", prompt="Say hello.", **OPENAI
    )
    assert TEXT in completion.choices[0].text, completion


def generates() -> None:
    answer = litellm.completion(
        model=f"ollama/{model}", messages=[{"role": "user", "content": "Say hello."}], **OLLAMA
    )
    assert answer.choices[0].message.content == TEXT, answer


def embeds() -> None:
    for options in (
        {"model": f"openai/{vectors}", **OPENAI},
        {"model": f"ollama/{vectors}", **OLLAMA},
    ):
        embeddings = litellm.embedding(input=["a", "bcd"], **options)
        assert [row["embedding"] for row in embeddings.data] == [[1, 97], [3, 98]], embeddings


def responses() -> None:
    options = {"model": f"openai/{model}", **OPENAI}
    tool = {"type": "function", **FUNCTION}
    first_response = litellm.responses(input="Say hello.", instructions="Be kind.", **options)
    assert first_response.output[0].content[0].text == TEXT
    events = list(litellm.responses(input="Say hello.", stream=True, **options))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == TEXT
    assert events[-1].type == "response.completed"
    tool_response = litellm.responses(input=QUESTION, tools=[tool], **options)
    [call] = [item for item in tool_response.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Paris"}
    tool_output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    final_response = litellm.responses(
        input=[tool_output], tools=[tool], previous_response_id=tool_response.id, **options
    )
    assert final_response.output[0].content[0].text == TEXT


def stands_in_front() -> None:
    config = yaml.safe_load(Path("litellm_in_front.yaml").read_text())
    os.environ["MOYIN_API_KEY"] = key
    router = litellm.Router(model_list=config["model_list"], num_retries=0)
    messages = [{"role": "user", "content": "Say hello."}]
    assert router.completion("studio", messages).choices[0].message.content == TEXT


checks = {
    f"{provider} {check.__name__}": (lambda check=check, provider=provider: check(provider))
    for provider in PLACES
    for check in (answers_whole, streams, runs_tools, fills_objects, reports_errors)
}
report_results(
    {
        **checks,
        "text-completion-openai": completes,
        "ollama generates": generates,
        "embeddings": embeds,
        "responses": responses,
        "lines of the page": lambda: run_page_snippet("litellm", url, key, model),
        "in front of the gateway": stands_in_front,
    }
)
