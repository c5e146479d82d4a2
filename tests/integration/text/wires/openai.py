"""Parses and writes the format of OpenAI's chat completions as vLLM serves them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.integration.text.wires.script import CACHED, PROMPT, SCHEMA, WireAnswer, WireRequest

KNOWN = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "stop", "temperature", "top_p",
        "seed", "tools", "tool_choice", "parallel_tool_calls", "response_format", "n",
        "reasoning_effort", "user", "stream", "stream_options",
    }
)  # fmt: skip


def _decode_image(url: str) -> bytes:
    # Fetching would be ours to answer for: a server inside takes bytes only.
    assert url.startswith("data:image/png;base64,"), url
    return base64.b64decode(url.partition(",")[2])


def parse_request(body: Mapping[str, Any]) -> WireRequest:
    messages = body["messages"]
    parts = [p for m in messages if isinstance(m.get("content"), list) for p in m["content"]]
    texts = [p["text"] for p in parts if p["type"] == "text"]
    texts += [m["content"] for m in messages if isinstance(m.get("content"), str)]
    form = body.get("response_format") or {}
    choice = body.get("tool_choice", "auto")
    stop = body.get("stop") or ()
    return WireRequest(
        system=" ".join(m["content"] for m in messages if m["role"] == "system"),
        turns=sum(m["role"] in ("user", "assistant") for m in messages),
        text=" ".join(texts),
        tools=tuple(
            tool["function"]["name"]
            for tool in body.get("tools") or ()
            if tool["function"]["parameters"] == SCHEMA
        ),
        forces_tool=choice == "required" or isinstance(choice, dict),
        allows_single_tool_call=body.get("parallel_tool_calls") is False,
        results=tuple(m["content"] for m in messages if m["role"] == "tool"),
        images=tuple(
            _decode_image(p["image_url"]["url"]) for p in parts if p["type"] == "image_url"
        ),
        has_schema=form.get("type") == "json_schema" and form["json_schema"]["schema"] == SCHEMA,
        wants_json=form.get("type") == "json_object",
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        thinking=body.get("reasoning_effort", "none") != "none",
        seed=body.get("seed"),
    )


def _tool_calls(answer: WireAnswer) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(answer.calls)
    ]


def _usage(answer: WireAnswer) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT,
        "completion_tokens": answer.tokens,
        "total_tokens": PROMPT + answer.tokens,
        "prompt_tokens_details": {"cached_tokens": CACHED},
    }


def whole_answer(answer: WireAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.calls:
        message["tool_calls"] = _tool_calls(answer)
    reason = "tool_calls" if answer.calls else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    if answer.stopped_by is not None:
        choice["stop_reason"] = answer.stopped_by  # as vLLM does
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "up",
        "choices": [choice],
        "usage": _usage(answer),
    }


def stream_answer(answer: WireAnswer, *, usage: bool) -> Iterator[bytes]:
    common_members = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "up",
    }

    def chunk(delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        if reason is not None and answer.stopped_by is not None:
            choice["stop_reason"] = answer.stopped_by
        return b"data: " + json.dumps(common_members | {"choices": [choice]}).encode() + b"\n\n"

    yield chunk({"role": "assistant", "content": ""})
    if answer.thinking:
        yield chunk({"reasoning_content": answer.thinking})
    for word in answer.words if answer.text else ():
        yield chunk({"content": word})
    for index, call in enumerate(_tool_calls(answer)):
        arguments = call["function"]["arguments"]
        first_delta = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield chunk({"tool_calls": [first_delta]})
        for piece in (arguments[:4], arguments[4:]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, "tool_calls" if answer.calls else "stop")
    if usage:
        usage_chunk = common_members | {"choices": [], "usage": _usage(answer)}
        yield b"data: " + json.dumps(usage_chunk).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
