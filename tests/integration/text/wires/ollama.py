"""Parses and writes the formats of Ollama's chat and generate calls."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.integration.text.wires.script import PROMPT, SCHEMA, Said, WireRequest

KNOWN = frozenset(
    {"model", "messages", "tools", "format", "think", "options", "stream", "keep_alive"}
)


GENERATE_KNOWN = KNOWN - {"messages", "tools"} | {"prompt", "system", "images"}


def asked_to_generate(body: Mapping[str, Any]) -> WireRequest:
    turn = {"role": "user", "content": body["prompt"], "images": body.get("images")}
    system = {"role": "system", "content": body.get("system") or ""}
    return asked_of({**body, "messages": [system, turn]})


def asked_of(body: Mapping[str, Any]) -> WireRequest:
    messages, options = body["messages"], body.get("options") or {}
    return WireRequest(
        system=" ".join(m["content"] for m in messages if m["role"] == "system"),
        turns=sum(m["role"] in ("user", "assistant") for m in messages),
        text=" ".join(m["content"] for m in messages),
        tools=tuple(
            tool["function"]["name"]
            for tool in body.get("tools") or ()
            if tool["function"]["parameters"] == SCHEMA
        ),
        forced=False,
        single=False,
        results=tuple(m["content"] for m in messages if m["role"] == "tool"),
        images=tuple(base64.b64decode(i) for m in messages for i in m.get("images") or ()),
        schema=body.get("format") == SCHEMA,
        json=body.get("format") == "json",
        stop=tuple(options.get("stop") or ()),
        thinking=bool(body.get("think")),
        seed=options.get("seed"),
    )


def _message(
    said: Said, text: str, thinking: str = "", *, calls: bool = False, chat: bool = True
) -> dict[str, Any]:
    head = {"model": "up", "created_at": "2026-01-01T00:00:00Z"}
    if not chat:
        return {**head, "response": text, "thinking": thinking}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls and said.calls:
        message["tool_calls"] = [
            {"function": {"name": name, "arguments": arguments}} for name, arguments in said.calls
        ]
    return {**head, "message": message}


def _end(said: Said) -> dict[str, Any]:
    counts = {"prompt_eval_count": PROMPT, "eval_count": said.tokens}
    return {"done": True, "done_reason": "stop", **counts}


def whole(said: Said, *, chat: bool = True) -> dict[str, Any]:
    return _message(said, said.text, said.thinking, calls=True, chat=chat) | _end(said)


def pieces(said: Said, *, chat: bool = True) -> Iterator[bytes]:
    pieces = [_message(said, "", said.thinking, chat=chat)] if said.thinking else []
    pieces += [_message(said, word, chat=chat) for word in (said.words if said.text else ())]
    if said.calls:
        pieces.append(_message(said, "", calls=True))
    for piece in pieces:
        yield json.dumps({**piece, "done": False}).encode() + b"\n"
    yield json.dumps(_message(said, "", chat=chat) | _end(said)).encode() + b"\n"
