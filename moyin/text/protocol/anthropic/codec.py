"""Holds the codec of Anthropic's messages, and the request to count tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingResponse, Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.http.sse import EVENT_STREAM, encode_cost_comment
from moyin.http.validation import (
    NO_MEMBERS,
    count_text_bytes,
    find_embedded_schemas,
    new_malformed_response_error,
    parse_object,
    validate,
)
from moyin.text.protocol.anthropic import wire
from moyin.text.protocol.anthropic.errors import error_event, render_error
from moyin.text.protocol.anthropic.request_to_domain import (
    chat_constraints,
    chat_needs,
    chat_request_to_domain,
    content_blocks,
    refers_to_url,
    turns_backwards,
)
from moyin.text.protocol.anthropic.request_to_upstream import inline_pictures
from moyin.text.protocol.anthropic.response import (
    chat_response_to_client,
    chat_response_to_domain,
    usage_to_client,
    usage_to_domain,
)
from moyin.text.protocol.anthropic.stream import StreamTap, StreamWriter
from moyin.text.protocol.codec import Turn, newest_turns, replace_members

__all__ = ["AnthropicCodec", "ParsedCountRequest"]

# Shows, without a walk over the body, that a cache marker may be there: inside a JSON string the
# quotes would be escaped.
_CACHE_MARKER = b'"cache_control"'
_FORWARDED = (b"anthropic-beta", b"anthropic-version")


@dataclass(frozen=True, slots=True)
class ParsedChatRequest:
    """A validated message request; ``raw`` and ``data`` are the client's bytes and JSON."""

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
        is_marked, limit = _CACHE_MARKER in self.raw, self.body.max_tokens
        return chat_needs(self.body, self.data, max_tokens=limit, has_cache_markers=is_marked)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        return find_embedded_schemas(self.data, "input_schema")

    def constraints(self) -> ResponseConstraints:
        return chat_constraints(self.body)

    def recent_turns(self) -> tuple[Turn, ...]:
        return newest_turns(turns_backwards(self.body))

    @property
    def picture_urls(self) -> tuple[str, ...]:
        images = (b for b in content_blocks(self.body) if isinstance(b, wire.ImageBlock))
        return tuple(dict.fromkeys(i.source.url for i in images if i.source.url is not None))

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedChatRequest:
        messages = [inline_pictures(message, pictures) for message in self.data["messages"]]
        data = {**self.data, "messages": messages}
        return ParsedChatRequest(to_json(data), data, validate(wire.MessagesBody, data))

    def to_domain(self, model: str) -> ChatRequest:
        return replace(chat_request_to_domain(self.body), model=model)

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        return replace_members(self.raw, self.data, model, additions, overrides)

    def stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        return StreamTap()

    def stream_writer(self) -> StreamWriter:
        return StreamWriter()

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return chat_response_to_client(response)


@dataclass(frozen=True, slots=True)
class ParsedCountRequest:
    """A validated request to count the tokens of a prompt."""

    data: Mapping[str, Any]
    body: wire.CountBody

    @classmethod
    def parse(cls, body: bytes) -> ParsedCountRequest:
        """Parse and validate a request; raises as `AnthropicCodec.parse` does."""
        data = parse_object(body)
        return cls(data, validate(wire.CountBody, data))

    def needs(self) -> Needs:
        """Return the needs of the message request; ``prompt_tokens`` is the estimated count."""
        return chat_needs(self.body, self.data, max_tokens=None, has_cache_markers=False)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        """Yield the JSON schemas as `ParsedRequest.schemas` does."""
        return find_embedded_schemas(self.data, "input_schema")

    @property
    def has_urls(self) -> bool:
        """True if a picture or document is named by a URL, which a counting server would fetch."""
        return any(
            block.source.url is not None
            if isinstance(block, wire.ImageBlock)
            else isinstance(block, wire.OtherBlock) and refers_to_url(block.extras)
            for block in content_blocks(self.body)
        )

    def to_upstream(self, model: str) -> bytes:
        return to_json({**self.data, "model": model})


class AnthropicCodec:
    """Reads and writes messages."""

    api_format = ApiFormat.ANTHROPIC
    path = "/messages"
    stream_type = EVENT_STREAM
    read_response = staticmethod(chat_response_to_domain)
    render_error = staticmethod(render_error)
    error_event = staticmethod(error_event)
    cost_trailer = staticmethod(encode_cost_comment)

    def parse(self, body: bytes) -> ParsedChatRequest:
        data = parse_object(body)
        return ParsedChatRequest(body, data, validate(wire.MessagesBody, data))

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {k.decode(): v.decode("latin-1") for k, v in headers if k in _FORWARDED}

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        return usage_to_domain(body.get("usage"))

    def output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes(body.get("content"))

    def check_response(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("content"), list):
            raise new_malformed_response_error()

    def complete_response(self, raw: bytes, body: dict[str, Any], estimate: Usage | None) -> bytes:
        if estimate is None:
            return raw
        body["usage"] = usage_to_client(estimate)
        return to_json(body)
