"""Parses and writes the formats of Ollama's chat and generate calls."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.integration.text.wires.script import PROMPT, SCHEMA, WireAnswer, WireRequest

KNOWN = frozenset(
    {"model", "messages", "tools", "format", "think", "options", "stream", "keep_alive"}
)


GENERATE_KNOWN = KNOWN - {"messages", "tools"} | {"prompt", "system", "images"}


def parse_generate_request(body: Mapping[str, Any]) -> WireRequest:
    user_message = {"role": "user", "content": body["prompt"], "images": body.get("images")}
    system_message = {"role": "system", "content": body.get("system") or ""}
    return parse_request({**body, "messages": [system_message, user_message]})


def parse_request(body: Mapping[str, Any]) -> WireRequest:
    messages, options = body["messages"], body.get("options") or {}
    return WireRequest(
        system=" ".join(m["content"] for m in messages if m["role"] == "system"),
        turn_count=sum(m["role"] in ("user", "assistant") for m in messages),
        text=" ".join(m["content"] for m in messages),
        tools=tuple(
            tool["function"]["name"]
            for tool in body.get("tools") or ()
            if tool["function"]["parameters"] == SCHEMA
        ),
        forces_tool=False,
        allows_single_tool_call=False,
        tool_results=tuple(m["content"] for m in messages if m["role"] == "tool"),
        images=tuple(base64.b64decode(i) for m in messages for i in m.get("images") or ()),
        has_schema=body.get("format") == SCHEMA,
        wants_json=body.get("format") == "json",
        stop=tuple(options.get("stop") or ()),
        thinking=bool(body.get("think")),
        seed=options.get("seed"),
    )


def _build_message(
    answer: WireAnswer,
    text: str,
    thinking: str = "",
    *,
    with_calls: bool = False,
    is_chat: bool = True,
) -> dict[str, Any]:
    common_members = {"model": "up", "created_at": "2026-01-01T00:00:00Z"}
    if not is_chat:
        return {**common_members, "response": text, "thinking": thinking}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if with_calls and answer.calls:
        message["tool_calls"] = [
            {"function": {"name": name, "arguments": arguments}} for name, arguments in answer.calls
        ]
    return {**common_members, "message": message}


def _build_end_members(answer: WireAnswer) -> dict[str, Any]:
    counts = {"prompt_eval_count": PROMPT, "eval_count": answer.token_count}
    return {"done": True, "done_reason": "stop", **counts}


def build_answer(answer: WireAnswer, *, is_chat: bool = True) -> dict[str, Any]:
    return _build_message(
        answer, answer.text, answer.thinking, with_calls=True, is_chat=is_chat
    ) | _build_end_members(answer)


def stream_answer(answer: WireAnswer, *, is_chat: bool = True) -> Iterator[bytes]:
    chunks = (
        [_build_message(answer, "", answer.thinking, is_chat=is_chat)] if answer.thinking else []
    )
    chunks += [
        _build_message(answer, word, is_chat=is_chat)
        for word in (answer.words if answer.text else ())
    ]
    if answer.calls:
        chunks.append(_build_message(answer, "", with_calls=True))
    for chunk in chunks:
        yield json.dumps({**chunk, "done": False}).encode() + b"\n"
    yield (
        json.dumps(
            _build_message(answer, "", is_chat=is_chat) | _build_end_members(answer)
        ).encode()
        + b"\n"
    )
