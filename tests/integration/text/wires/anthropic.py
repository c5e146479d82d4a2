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
    output_format = (body.get("output_config") or {}).get("format") or {}
    tool_choice = body.get("tool_choice") or {"type": "auto"}
    return WireRequest(
        system=system_prompt
        if isinstance(system_prompt, str)
        else " ".join(b["text"] for b in system_prompt),
        turn_count=len(body["messages"]),
        text=" ".join(block["text"] for block in blocks if block["type"] == "text"),
        tools=tuple(t["name"] for t in body.get("tools") or () if t["input_schema"] == SCHEMA),
        forces_tool=tool_choice["type"] in ("any", "tool"),
        allows_single_tool_call=bool(tool_choice.get("disable_parallel_tool_use")),
        tool_results=tuple(
            _join_tool_result(block) for block in blocks if block["type"] == "tool_result"
        ),
        images=tuple(base64.b64decode(source["data"]) for source in images),
        has_schema=output_format.get("schema") == SCHEMA,
        wants_json=False,
        stop=tuple(body.get("stop_sequences") or ()),
        thinking=(body.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
        seed=None,
    )


def _join_tool_result(block: Mapping[str, Any]) -> str:
    content = block["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _build_usage(output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": PROMPT - CACHED,
        "cache_read_input_tokens": CACHED,
        "cache_creation_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _build_end_members(answer: WireAnswer) -> dict[str, Any]:
    text_stop_reason = "stop_sequence" if answer.stopped_by is not None else "end_turn"
    return {
        "stop_reason": "tool_use" if answer.calls else text_stop_reason,
        "stop_sequence": answer.stopped_by,
    }


def _build_message(content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
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


def build_answer(answer: WireAnswer) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if answer.thinking:
        content.append({"type": "thinking", "thinking": answer.thinking, "signature": "signed"})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    for number, (name, arguments) in enumerate(answer.calls):
        content.append(
            {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments}
        )
    return _build_message(content, _build_usage(answer.token_count)) | _build_end_members(answer)


def stream_answer(answer: WireAnswer) -> Iterator[bytes]:
    def build_event(event_type: str, **members: Any) -> bytes:
        payload = json.dumps({"type": event_type, **members})
        return f"event: {event_type}\ndata: {payload}\n\n".encode()

    yield build_event("message_start", message=_build_message([], _build_usage(1)))
    index = 0
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if answer.thinking:
        thinking_delta = {"type": "thinking_delta", "thinking": answer.thinking}
        signature_delta = {"type": "signature_delta", "signature": "signed"}
        empty_block = {"type": "thinking", "thinking": "", "signature": ""}
        blocks.append((empty_block, [thinking_delta, signature_delta]))
    if answer.text:
        text_deltas = [{"type": "text_delta", "text": word} for word in answer.words]
        blocks.append(({"type": "text", "text": ""}, text_deltas))
    for number, (name, arguments) in enumerate(answer.calls):
        arguments_json = json.dumps(arguments)
        first_block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        argument_deltas = [
            {"type": "input_json_delta", "partial_json": fragment}
            for fragment in (arguments_json[:4], arguments_json[4:])
        ]
        blocks.append((first_block, argument_deltas))
    for index, (block, deltas) in enumerate(blocks):
        yield build_event("content_block_start", index=index, content_block=block)
        for delta in deltas:
            yield build_event("content_block_delta", index=index, delta=delta)
        yield build_event("content_block_stop", index=index)
    usage = {"output_tokens": answer.token_count}
    yield build_event("message_delta", delta=_build_end_members(answer), usage=usage)
    yield build_event("message_stop")
