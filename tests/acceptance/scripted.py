"""A deterministic mock model with OpenAI's chat completions, which reliably calls tools.

The smallest real models do not call tools reliably. This one makes the arguments of its calls from
the prompt and the tool's schema, so that every failure is the gateway's fault. A request that
violates OpenAI's own OpenAPI document gets status 400, and so fails the test that caused it.
"""

from __future__ import annotations

import json
import re
from array import array
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from aiohttp import web
from llm_comply.schema import SpecLoader

from tests.acceptance.scripted_operations import OperationServer

_TEXT = "Hello! It is sunny, and the answer is 3."
_THOUGHT = "They ask, so I answer. "
_MEMBER = re.compile(r"'([^']+)'|\"([^\"]+)\"")
_WORDS = re.compile(r"\S+\s*")


def new_scripted_app() -> web.Application:
    """Return an app with ``/v1/chat/completions`` and ``/v1/embeddings`` for any model name."""
    spec = SpecLoader(str(files("llm_comply.specs").joinpath("openai_chat.json")))

    async def complete_chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if problems := spec.validate(_remove_nulls(body), "CreateChatCompletionRequest"):
            return web.json_response(_build_refusal(problems[0]), status=400)
        scripted_answer = _ScriptedAnswer(body)
        if not body.get("stream"):
            return web.json_response(scripted_answer.build_completion())
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in scripted_answer.build_chunks():
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embed(request: web.Request) -> web.Response:
        body = await request.json()
        if problems := spec.validate(_remove_nulls(body), "CreateEmbeddingRequest"):
            return web.json_response(_build_refusal(problems[0]), status=400)
        return web.json_response(_make_vectors(body))

    async def list_models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    app = web.Application(client_max_size=8 * 2**20)
    OperationServer(spec).add_routes(app)
    app.router.add_post("/v1/embeddings", embed)
    app.router.add_get("/v1/models", list_models)
    app.router.add_post("/v1/chat/completions", complete_chat)
    return app


def _remove_nulls(value: Any) -> Any:
    """Return ``value`` without null members, which OpenAI allows but the validator rejects."""
    if isinstance(value, dict):
        return {name: _remove_nulls(item) for name, item in value.items() if item is not None}
    return [_remove_nulls(item) for item in value] if isinstance(value, list) else value


def _build_refusal(problem: str) -> dict[str, Any]:
    return {"error": {"message": f"violates OpenAI's document: {problem}"[:500], "type": "strict"}}


def _make_vectors(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an embeddings response; the vector of a text is its length and its first character."""
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vectors = [array("f", [len(text), ord(text[0])]) for text in inputs]
    encodes_base64 = body.get("encoding_format") == "base64"
    embeddings = [
        {
            "object": "embedding",
            "index": index,
            "embedding": b64encode(vector).decode() if encodes_base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    return {"object": "list", "model": body["model"], "data": embeddings, "usage": usage}


class _ScriptedAnswer:
    """Builds the scripted answer to one request, as one response or as the chunks of a stream."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._head = {"id": "chatcmpl-scripted", "created": 1, "model": body["model"]}
        self._include_usage = (body.get("stream_options") or {}).get("include_usage", False)
        prompt = _get_prompt(body)
        self._thought = _THOUGHT if body.get("reasoning_effort") not in (None, "none") else ""
        self._calls = _choose_calls(body, prompt)
        text = "" if self._calls else _choose_text(body, prompt)
        self._text, self._finish = _truncate(text, body)
        if self._calls:
            self._finish = "tool_calls"
        self._usage: dict[str, Any] = {
            "prompt_tokens": max(1, len(prompt) // 4),
            "completion_tokens": max(1, len(_WORDS.findall(self._text))),
        }
        self._usage["total_tokens"] = sum(self._usage.values())
        self._usage["completion_tokens_details"] = {"reasoning_tokens": len(self._thought.split())}

    def build_completion(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._text or None,
            "refusal": None,
            "annotations": [],
        }
        if self._thought:
            message["reasoning_content"] = self._thought
        if self._calls:
            message["tool_calls"] = self._calls
        choice = {"index": 0, "message": message, "finish_reason": self._finish, "logprobs": None}
        return self._head | {
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage,
        }

    def build_chunks(self) -> Iterator[dict[str, Any]]:
        yield self._build_chunk({"role": "assistant", "content": "" if self._text else None})
        for word in _WORDS.findall(self._thought):
            yield self._build_chunk({"reasoning_content": word})
        for word in _WORDS.findall(self._text):
            yield self._build_chunk({"content": word})
        for index, call in enumerate(self._calls):
            arguments = call["function"]["arguments"]
            function = {"name": call["function"]["name"], "arguments": ""}
            yield self._build_chunk(
                {"tool_calls": [{"index": index, **call, "function": function}]}
            )
            # In two pieces, as real servers cut them: anywhere.
            for argument_piece in (arguments[:5], arguments[5:]):
                call_delta = {"index": index, "function": {"arguments": argument_piece}}
                yield self._build_chunk({"tool_calls": [call_delta]})
        yield self._build_chunk({}, self._finish)
        if self._include_usage:
            yield self._head | {
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": self._usage,
            }

    def _build_chunk(
        self, delta: Mapping[str, Any], finish_reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}


def _get_prompt(body: Mapping[str, Any]) -> str:
    """Return the last text of the user's last message.

    Agents send texts that describe their environment before it.
    """
    for message in reversed(body["messages"]):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return next((p["text"] for p in reversed(content) if p["type"] == "text"), "")
    return ""


def _choose_calls(body: Mapping[str, Any], prompt: str) -> list[dict[str, Any]]:
    """Return the tool calls of the answer, at most one unless the prompt says "parallel".

    Calls the tool that the client forces, otherwise the first tool that was not called yet. Returns
    no call if the client forbids calls, or if a tool was called already and the client does not
    force one.
    """
    functions = [tool["function"] for tool in body.get("tools") or ()]
    choice = body.get("tool_choice") or ("auto" if functions else "none")
    called_tools = _list_called_tools(body["messages"])
    if choice == "none" or not functions or (choice == "auto" and called_tools):
        return []
    functions = [f for f in functions if f["name"] not in called_tools] or functions
    if isinstance(choice, dict):
        functions = [f for f in functions if f["name"] == choice["function"]["name"]]
    elif body.get("parallel_tool_calls") is False or "parallel" not in prompt:
        functions = functions[:1]
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {
                "name": function["name"],
                "arguments": _build_json(_get_argument_schema(function), prompt),
            },
        }
        for number, function in enumerate(functions)
    ]


def _get_argument_schema(function: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments, without optional ones if the tool is not strict."""
    schema = function.get("parameters") or {}
    if function.get("strict") is not False or "required" not in schema:
        return schema
    properties = {name: schema["properties"][name] for name in schema["required"]}
    return {**schema, "properties": properties}


def _list_called_tools(messages: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of the tools that were called since the last message of the user."""
    names: set[str] = set()
    for message in reversed(messages):
        if message["role"] == "user":
            break
        names |= {call["function"]["name"] for call in message.get("tool_calls") or ()}
    return names


def _choose_text(body: Mapping[str, Any], prompt: str) -> str:
    response_format = body.get("response_format") or {}
    if response_format.get("type") == "json_schema":
        return _build_json(response_format["json_schema"]["schema"], prompt)
    if response_format.get("type") == "json_object":
        # Without a schema the members that the prompt quotes, or names.
        names = [a or b for a, b in _MEMBER.findall(prompt)] or ["setup", "punchline"]
        return json.dumps(dict.fromkeys(names, "cats"))
    return _TEXT


def _truncate(text: str, body: Mapping[str, Any]) -> tuple[str, str]:
    """Return ``text`` up to a stop sequence or the token limit, and the finish reason."""
    stop_sequences = body.get("stop") or ()
    for stop in [stop_sequences] if isinstance(stop_sequences, str) else stop_sequences:
        text = text.partition(stop)[0]
    token_limit = body.get("max_completion_tokens") or body.get("max_tokens")
    words = _WORDS.findall(text)
    if token_limit is not None and len(words) > token_limit:
        return "".join(words[:token_limit]), "length"
    return text, "stop"


def _build_json(schema: Mapping[str, Any], prompt: str) -> str:
    numbers = chain((int(n) for n in re.findall(r"\d+", prompt)), iter(lambda: 1, None))
    quoted_texts = chain((a or b for a, b in _MEMBER.findall(prompt)), iter(lambda: prompt, None))
    value = _make_value(schema, schema, numbers, quoted_texts)
    return json.dumps(value, ensure_ascii=False)


def _make_value(
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    numbers: Iterator[int],
    quoted_texts: Iterator[str],
) -> Any:
    """Return a value that matches ``schema``, made of the prompt's numbers and quoted words.

    Args:
        root: the whole schema, to which references in ``schema`` refer.
    """
    if (reference := schema.get("$ref")) is not None:
        target_schema: Any = root
        for name in reference.removeprefix("#/").split("/"):
            target_schema = target_schema[name]
        return _make_value(target_schema, root, numbers, quoted_texts)
    for keyword in ("anyOf", "oneOf", "allOf"):
        if keyword in schema:
            return _make_value(schema[keyword][0], root, numbers, quoted_texts)
    if "enum" in schema or "const" in schema:
        return schema.get("const", (schema.get("enum") or [None])[0])
    match schema.get("type"):
        case "object":
            properties = schema.get("properties") or {}
            return {n: _make_value(s, root, numbers, quoted_texts) for n, s in properties.items()}
        case "array":
            return [_make_value(schema.get("items") or {}, root, numbers, quoted_texts)]
        case "integer" | "number":
            return next(numbers)
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return next(quoted_texts)
