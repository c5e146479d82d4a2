"""Anthropic's messages as a `Dialect`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.backend import Wire
from moyin.domain.chat import ChatAnswer, ChatRequest
from moyin.domain.money import Usage
from moyin.domain.needs import IMAGE_TOKENS, Needs, estimate_message, estimate_tokens
from moyin.errors import MoyinError
from moyin.gatekeeper.problems import ErrorBody
from moyin.protocols.anthropic import wire
from moyin.protocols.anthropic.answers import body_of, usage_of
from moyin.protocols.anthropic.errors import error_event, render_error
from moyin.protocols.anthropic.stream import StreamTap, StreamWriter
from moyin.protocols.anthropic.translate import to_domain
from moyin.protocols.validation import parse_object, validated

__all__ = ["AnthropicDialect"]

_FORWARDED = (b"anthropic-beta", b"anthropic-version")


@dataclass(frozen=True, slots=True)
class AnthropicCall:
    """One validated message request; ``raw`` and ``data`` are the client's bytes and JSON."""

    raw: bytes
    data: Mapping[str, Any]
    body: wire.MessagesBody

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def streams(self) -> bool:
        return bool(self.body.stream)

    def needs(self) -> Needs:
        body = self.body
        images = sum(1 for block in _blocks(body) if isinstance(block, wire.ImageBlock))
        tools = estimate_tokens(to_json(self.data["tools"]).decode()) if body.tools else 0
        return Needs(
            prompt_tokens=sum(map(estimate_tokens, _texts(body)))
            + estimate_message(len(body.messages))
            + images * IMAGE_TOKENS
            + tools,
            max_tokens=body.max_tokens,
            tools=bool(body.tools),
            vision=images > 0,
            schema=body.output_config is not None and body.output_config.format is not None,
        )

    def to_domain(self, model: str) -> ChatRequest:
        return replace(to_domain(self.body), model=model)

    def to_bytes(self, model: str) -> bytes:
        if model == self.body.model:
            return self.raw
        return to_json({**self.data, "model": model})

    def tap(self) -> StreamTap:
        return StreamTap()

    def writer(self) -> StreamWriter:
        return StreamWriter()

    def render(self, answer: ChatAnswer) -> bytes:
        return body_of(answer)


def _blocks(body: wire.MessagesBody) -> Iterator[Any]:
    for message in body.messages:
        if isinstance(message.content, str):
            continue
        for block in message.content:
            yield block
            if isinstance(block, wire.ToolResultBlock) and isinstance(block.content, list):
                yield from block.content


def _texts(body: wire.MessagesBody) -> Iterator[str]:
    if isinstance(body.system, str):
        yield body.system
    else:
        for block in body.system or ():
            yield block.text
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
    for block in _blocks(body):
        match block:
            case wire.TextBlock():
                yield block.text
            case wire.ThinkingBlock():
                yield block.thinking
            case wire.ToolUseBlock():
                yield to_json(block.input).decode()
            case wire.ToolResultBlock() if isinstance(block.content, str):
                yield block.content


class AnthropicDialect:
    """Reads messages, writes Anthropic's errors."""

    wire = Wire.ANTHROPIC
    path = "/messages"

    def parse(self, body: bytes) -> AnthropicCall:
        data = parse_object(body)
        return AnthropicCall(body, data, validated(wire.MessagesBody, data))

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {k.decode(): v.decode("latin-1") for k, v in headers if k in _FORWARDED}

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        return usage_of(body.get("usage"))

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody:
        return render_error(error, request_id, path)

    def error_event(self, error: MoyinError, request_id: str) -> bytes:
        return error_event(error, request_id)
