"""Parses and writes the format of Anthropic's Messages API."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tests.integration.text.wires.script import CACHED, PROMPT, SCHEMA, WireAnswer, WireRequest

KNOWN = frozenset(
    {
        "model", "messages", "max_tokens", "system", "stream", "stop_sequences", "temperature",
        "top_p", "top_k", "tools", "tool_choice", "thinking", "output_config", "metadata",
    }
)  # fmt: skip


def parse_request(body: Mapping[str, Any]) -> WireRequest:
    blocks: list[Any] = [
        block
        for message in body["messages"]
        for block in (
            [{"type": "text", "text": message["content"]}]
            if isinstance(message["content"], str)
            else message["content"]
        )
    ]
    system_prompt = body.get("system") or ""
    images = [block["source"] for block in blocks if block["type"] == "image"]
    assert all(source["type"] == "base64" for source in images)
    form = (body.get("output_config") or {}).get("format") or {}
    choice = body.get("tool_choice") or {"type": "auto"}
    return WireRequest(
        system=system_prompt
        if isinstance(system_prompt, str)
        else " ".join(b["text"] for b in system_prompt),
        turns=len(body["messages"]),
        text=" ".join(block["text"] for block in blocks if block["type"] == "text"),
        tools=tuple(t["name"] for t in body.get("tools") or () if t["input_schema"] == SCHEMA),
        forces_tool=choice["type"] in ("any", "tool"),
        allows_single_tool_call=bool(choice.get("disable_parallel_tool_use")),
        results=tuple(_tool_result(block) for block in blocks if block["type"] == "tool_result"),
        images=tuple(base64.b64decode(source["data"]) for source in images),
        has_schema=form.get("schema") == SCHEMA,
        wants_json=False,
        stop=tuple(body.get("stop_sequences") or ()),
        thinking=(body.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
        seed=None,
    )


def _tool_result(block: Mapping[str, Any]) -> str:
    content = block["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _usage(output: int) -> dict[str, Any]:
    return {
        "input_tokens": PROMPT - CACHED,
        "cache_read_input_tokens": CACHED,
        "cache_creation_input_tokens": 0,
        "output_tokens": output,
    }


def _end_members(answer: WireAnswer) -> dict[str, Any]:
    reason = "stop_sequence" if answer.stopped_by is not None else "end_turn"
    return {
        "stop_reason": "tool_use" if answer.calls else reason,
        "stop_sequence": answer.stopped_by,
    }


def _new_message(content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "up",
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def whole_answer(answer: WireAnswer) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": "signed"})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    for number, (name, arguments) in enumerate(answer.calls):
        content.append(
            {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}
        )
    return _new_message(content, _usage(answer.tokens)) | _end_members(answer)


def stream_answer(answer: WireAnswer) -> Iterator[bytes]:
    def event(kind: str, **members: Any) -> bytes:
        body = json.dumps({"type": kind, **members})
        return f"event: {kind}\ndata: {body}\n\n".encode()

    yield event("message_start", message=_new_message([], _usage(1)))
    index = 0
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if answer.thinking:
        thinking_delta = {"type": "thinking_delta", "thinking": answer.thinking}
        signature = {"type": "signature_delta", "signature": "signed"}
        empty_block = {"type": "thinking", "thinking": "", "signature": ""}
        blocks.append((empty_block, [thinking_delta, signature]))
    if answer.text:
        words = [{"type": "text_delta", "text": word} for word in answer.words]
        blocks.append(({"type": "text", "text": ""}, words))
    for number, (name, arguments) in enumerate(answer.calls):
        text = json.dumps(arguments)
        first_block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        pieces = [
            {"type": "input_json_delta", "partial_json": piece} for piece in (text[:4], text[4:])
        ]
        blocks.append((first_block, pieces))
    for index, (block, deltas) in enumerate(blocks):
        yield event("content_block_start", index=index, content_block=block)
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    usage = {"output_tokens": answer.tokens}
    yield event("message_delta", delta=_end_members(answer), usage=usage)
    yield event("message_stop")
