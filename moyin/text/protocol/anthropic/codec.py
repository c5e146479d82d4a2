"""Implements the codec of ``POST /v1/messages``, and parses ``POST /v1/messages/count_tokens``."""

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
from moyin.text.protocol.anthropic import request_to_domain, wire
from moyin.text.protocol.anthropic.errors import render_error, render_error_event
from moyin.text.protocol.anthropic.request_to_upstream import embed_pictures
from moyin.text.protocol.anthropic.response import (
    chat_response_to_client,
    chat_response_to_domain,
    usage_to_client,
    usage_to_domain,
)
from moyin.text.protocol.anthropic.stream import StreamTap, StreamWriter
from moyin.text.protocol.codec import ParsedRequest, Turn, encode_with_changes, select_newest_turns

# A body without these bytes has no cache marker. Searching bytes is faster than walking the JSON,
# and a text can't contain them, because quotes in a JSON string are escaped.
_CACHE_MARKER = b'"cache_control"'
_FORWARDED_HEADERS = (b"anthropic-beta", b"anthropic-version")


@dataclass(frozen=True, slots=True)
class ParsedChatRequest:
    """A validated request of ``POST /v1/messages``; ``data`` is ``raw`` parsed as JSON."""

    raw: bytes
    data: Mapping[str, Any]
    body: wire.MessagesBody

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.stream)

    def derive_needs(self) -> Needs:
        return request_to_domain.derive_chat_needs(
            self.body,
            self.data,
            max_tokens=self.body.max_tokens,
            has_cache_markers=_CACHE_MARKER in self.raw,
        )

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
        return find_embedded_schemas(self.data, "input_schema")

    def derive_constraints(self) -> ResponseConstraints:
        return request_to_domain.derive_chat_constraints(self.body)

    def select_recent_turns(self) -> tuple[Turn, ...]:
        return select_newest_turns(request_to_domain.iterate_turns_newest_first(self.body))

    @property
    def picture_urls(self) -> tuple[str, ...]:
        blocks = request_to_domain.iterate_content_blocks(self.body)
        images = (block for block in blocks if isinstance(block, wire.ImageBlock))
        return tuple(dict.fromkeys(i.source.url for i in images if i.source.url is not None))

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedChatRequest:
        messages = [embed_pictures(message, pictures) for message in self.data["messages"]]
        data = {**self.data, "messages": messages}
        return ParsedChatRequest(to_json(data), data, validate(wire.MessagesBody, data))

    def to_domain(self, model: str) -> ChatRequest:
        return replace(request_to_domain.chat_request_to_domain(self.body), model=model)

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        return encode_with_changes(self.raw, self.data, model, additions, overrides)

    def create_stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        return StreamTap()

    def create_stream_writer(self) -> StreamWriter:
        return StreamWriter()

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return chat_response_to_client(response)


@dataclass(frozen=True, slots=True)
class ParsedCountTokensRequest:
    """A validated request of ``POST /v1/messages/count_tokens``; ``data`` is its JSON."""

    data: Mapping[str, Any]
    body: wire.CountBody

    @classmethod
    def parse(cls, body: bytes) -> ParsedCountTokensRequest:
        """Parse and validate a request.

        Raises:
            InvalidJson, InvalidRequest: the body is invalid; the error names the field.
        """
        data = parse_object(body)
        return cls(data, validate(wire.CountBody, data))

    def derive_needs(self) -> Needs:
        """Return the prompt's estimated tokens, and the abilities that a model needs to read it."""
        return request_to_domain.derive_chat_needs(
            self.body, self.data, max_tokens=None, has_cache_markers=False
        )

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
        """Yield the path and content of each JSON schema of a tool or of the answer."""
        return find_embedded_schemas(self.data, "input_schema")

    @property
    def has_urls(self) -> bool:
        """True if a server must fetch a picture or document from a URL to count its tokens."""
        return any(
            block.source.url is not None
            if isinstance(block, wire.ImageBlock)
            else isinstance(block, wire.OtherBlock)
            and request_to_domain.refers_to_url(block.extras)
            for block in request_to_domain.iterate_content_blocks(self.body)
        )

    def to_upstream(self, model: str) -> bytes:
        return to_json({**self.data, "model": model})


class AnthropicCodec:
    """The codec of ``POST /v1/messages``."""

    api_format = ApiFormat.ANTHROPIC
    path = "/messages"
    stream_content_type = EVENT_STREAM
    read_response = staticmethod(chat_response_to_domain)
    render_error = staticmethod(render_error)
    render_error_event = staticmethod(render_error_event)
    encode_cost_trailer = staticmethod(encode_cost_comment)
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {
        "tools": ("tools", "tool_choice"),
        "thinking": ("thinking",),
    }

    def replace_body(self, request: ParsedRequest, data: Mapping[str, Any]) -> ParsedChatRequest:
        return self.parse(to_json(data))

    def parse(self, body: bytes) -> ParsedChatRequest:
        data = parse_object(body)
        return ParsedChatRequest(body, data, validate(wire.MessagesBody, data))

    def select_forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {k.decode(): v.decode("latin-1") for k, v in headers if k in _FORWARDED_HEADERS}

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        return usage_to_domain(body.get("usage"))

    def count_output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes(body.get("content"))

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("content"), list):
            raise new_malformed_response_error()

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        if estimated_usage is None:
            return raw
        body["usage"] = usage_to_client(estimated_usage)
        return to_json(body)
