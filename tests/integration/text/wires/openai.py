"""Parses and writes the format of OpenAI's chat completions as vLLM serves them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.integration.text.wires.script import CACHED, PROMPT, SCHEMA, Said, WireRequest

KNOWN = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "stop", "temperature", "top_p",
        "seed", "tools", "tool_choice", "parallel_tool_calls", "response_format", "n",
        "reasoning_effort", "user", "stream", "stream_options",
    }
)  # fmt: skip


def _image(url: str) -> bytes:
    # Fetching would be ours to answer for: a server inside takes bytes only.
    assert url.startswith("data:image/png;base64,"), url
    return base64.b64decode(url.partition(",")[2])


def asked_of(body: Mapping[str, Any]) -> WireRequest:
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
        forced=choice == "required" or isinstance(choice, dict),
        single=body.get("parallel_tool_calls") is False,
        results=tuple(m["content"] for m in messages if m["role"] == "tool"),
        images=tuple(_image(p["image_url"]["url"]) for p in parts if p["type"] == "image_url"),
        schema=form.get("type") == "json_schema" and form["json_schema"]["schema"] == SCHEMA,
        json=form.get("type") == "json_object",
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        thinking=body.get("reasoning_effort", "none") != "none",
        seed=body.get("seed"),
    )


def _calls(said: Said) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(said.calls)
    ]


def _usage(said: Said) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT,
        "completion_tokens": said.tokens,
        "total_tokens": PROMPT + said.tokens,
        "prompt_tokens_details": {"cached_tokens": CACHED},
    }


def whole(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None}
    if said.thinking:
        message["reasoning_content"] = said.thinking
    if said.calls:
        message["tool_calls"] = _calls(said)
    reason = "tool_calls" if said.calls else "stop"
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    if said.stopped_by is not None:
        choice["stop_reason"] = said.stopped_by  # as vLLM does
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "up",
        "choices": [choice],
        "usage": _usage(said),
    }


def pieces(said: Said, *, usage: bool) -> Iterator[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up"}

    def chunk(delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        if reason is not None and said.stopped_by is not None:
            choice["stop_reason"] = said.stopped_by
        return b"data: " + json.dumps(head | {"choices": [choice]}).encode() + b"\n\n"

    yield chunk({"role": "assistant", "content": ""})
    if said.thinking:
        yield chunk({"reasoning_content": said.thinking})
    for word in said.words if said.text else ():
        yield chunk({"content": word})
    for index, call in enumerate(_calls(said)):
        arguments = call["function"]["arguments"]
        begun = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield chunk({"tool_calls": [begun]})
        for piece in (arguments[:4], arguments[4:]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, "tool_calls" if said.calls else "stop")
    if usage:
        total = head | {"choices": [], "usage": _usage(said)}
        yield b"data: " + json.dumps(total).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
