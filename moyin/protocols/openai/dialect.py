"""OpenAI's chat completions as a `Dialect`."""

from __future__ import annotations

import time
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
from moyin.protocols.openai import wire
from moyin.protocols.openai.answers import body_of, usage_of
from moyin.protocols.openai.errors import error_event, render_error
from moyin.protocols.openai.stream import StreamTap, StreamWriter
from moyin.protocols.openai.translate import to_domain
from moyin.protocols.validation import parse_object, validated

__all__ = ["OpenAIDialect"]


@dataclass(frozen=True, slots=True)
class OpenAICall:
    """One validated chat completion; ``raw`` and ``data`` are the client's bytes and JSON."""

    raw: bytes
    data: Mapping[str, Any]
    body: wire.ChatBody

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def streams(self) -> bool:
        return bool(self.body.stream)

    @property
    def _wants_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.include_usage)

    def needs(self) -> Needs:
        body = self.body
        texts = list(_texts(body))
        images = sum(1 for part in _content_parts(body) if isinstance(part, wire.ImagePart))
        tools = estimate_tokens(to_json(self.data["tools"]).decode()) if body.tools else 0
        form = body.response_format
        return Needs(
            prompt_tokens=sum(map(estimate_tokens, texts))
            + estimate_message(len(body.messages))
            + images * IMAGE_TOKENS
            + tools,
            max_tokens=body.output_limit,
            tools=bool(body.tools),
            vision=images > 0,
            schema=form is not None and form.type == "json_schema",
        )

    def to_domain(self, model: str) -> ChatRequest:
        return replace(to_domain(self.body), model=model)

    def to_bytes(self, model: str) -> bytes:
        hides_usage = self.streams and not self._wants_usage
        if model == self.body.model and not hides_usage:
            return self.raw
        changes: dict[str, Any] = {"model": model}
        if hides_usage:
            options = self.data.get("stream_options") or {}
            changes["stream_options"] = {**options, "include_usage": True}
        return to_json({**self.data, **changes})

    def tap(self) -> StreamTap:
        return StreamTap(hide_usage=not self._wants_usage)

    def writer(self) -> StreamWriter:
        return StreamWriter(created=int(time.time()), include_usage=self._wants_usage)

    def render(self, answer: ChatAnswer) -> bytes:
        return body_of(answer, created=int(time.time()))


def _content_parts(body: wire.ChatBody) -> Iterator[wire.ContentPart]:
    for message in body.messages:
        if isinstance(message.content, list):
            yield from message.content


def _texts(body: wire.ChatBody) -> Iterator[str]:
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
        if isinstance(message, wire.AssistantMessage):
            for call in message.tool_calls or ():
                yield call.function.arguments
    for part in _content_parts(body):
        if isinstance(part, wire.TextPart):
            yield part.text


class OpenAIDialect:
    """Reads chat completions, writes OpenAI's errors."""

    wire = Wire.OPENAI
    path = "/chat/completions"

    def parse(self, body: bytes) -> OpenAICall:
        data = parse_object(body)
        return OpenAICall(body, data, validated(wire.ChatBody, data))

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        return usage_of(body) or Usage()

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody:
        return render_error(error, request_id, path)

    def error_event(self, error: MoyinError, request_id: str) -> bytes:
        return error_event(error, request_id)
