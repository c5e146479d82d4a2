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
    # Moyin must fetch the picture itself and send its bytes, never its URL.
    assert url.startswith("data:image/png;base64,"), url
    return base64.b64decode(url.partition(",")[2])


def parse_request(body: Mapping[str, Any]) -> WireRequest:
    messages = body["messages"]
    content_parts = [
        p for m in messages if isinstance(m.get("content"), list) for p in m["content"]
    ]
    texts = [p["text"] for p in content_parts if p["type"] == "text"]
    texts += [m["content"] for m in messages if isinstance(m.get("content"), str)]
    response_format = body.get("response_format") or {}
    tool_choice = body.get("tool_choice", "auto")
    stop_member = body.get("stop") or ()
    return WireRequest(
        system=" ".join(m["content"] for m in messages if m["role"] == "system"),
        turn_count=sum(m["role"] in ("user", "assistant") for m in messages),
        text=" ".join(texts),
        tools=tuple(
            tool["function"]["name"]
            for tool in body.get("tools") or ()
            if tool["function"]["parameters"] == SCHEMA
        ),
        forces_tool=tool_choice == "required" or isinstance(tool_choice, dict),
        allows_single_tool_call=body.get("parallel_tool_calls") is False,
        tool_results=tuple(m["content"] for m in messages if m["role"] == "tool"),
        images=tuple(
            _decode_image(p["image_url"]["url"]) for p in content_parts if p["type"] == "image_url"
        ),
        has_schema=response_format.get("type") == "json_schema"
        and response_format["json_schema"]["schema"] == SCHEMA,
        wants_json=response_format.get("type") == "json_object",
        stop=(stop_member,) if isinstance(stop_member, str) else tuple(stop_member),
        thinking=body.get("reasoning_effort", "none") != "none",
        seed=body.get("seed"),
    )


def _build_tool_calls(answer: WireAnswer) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for number, (name, arguments) in enumerate(answer.calls)
    ]


def _build_usage(answer: WireAnswer) -> dict[str, Any]:
    return {
        "prompt_tokens": PROMPT,
        "completion_tokens": answer.token_count,
        "total_tokens": PROMPT + answer.token_count,
        "prompt_tokens_details": {"cached_tokens": CACHED},
    }


def build_answer(answer: WireAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None}
    if answer.thinking:
        message["reasoning_content"] = answer.thinking
    if answer.calls:
        message["tool_calls"] = _build_tool_calls(answer)
    finish_reason = "tool_calls" if answer.calls else "stop"
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    if answer.stopped_by is not None:
        choice["stop_reason"] = answer.stopped_by  # as vLLM does
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "up",
        "choices": [choice],
        "usage": _build_usage(answer),
    }


def stream_answer(answer: WireAnswer, *, with_usage: bool) -> Iterator[bytes]:
    common_members = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "up",
    }

    def build_chunk(delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        if finish_reason is not None and answer.stopped_by is not None:
            choice["stop_reason"] = answer.stopped_by
        return b"data: " + json.dumps(common_members | {"choices": [choice]}).encode() + b"\n\n"

    yield build_chunk({"role": "assistant", "content": ""})
    if answer.thinking:
        yield build_chunk({"reasoning_content": answer.thinking})
    for word in answer.words if answer.text else ():
        yield build_chunk({"content": word})
    for index, call in enumerate(_build_tool_calls(answer)):
        arguments = call["function"]["arguments"]
        first_delta = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield build_chunk({"tool_calls": [first_delta]})
        for fragment in (arguments[:4], arguments[4:]):
            yield build_chunk(
                {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
            )
    yield build_chunk({}, "tool_calls" if answer.calls else "stop")
    if with_usage:
        usage_chunk = common_members | {"choices": [], "usage": _build_usage(answer)}
        yield b"data: " + json.dumps(usage_chunk).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"
