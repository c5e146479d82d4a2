"""Holds the codecs of OpenAI's chat completions and embeddings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse, Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.http.sse import EVENT_STREAM, encode_cost_comment
from moyin.http.validation import (
    NO_MEMBERS,
    count_text_bytes,
    find_embedded_schemas,
    merge_defaults,
    new_malformed_response_error,
    parse_object,
    validate,
)
from moyin.text.protocol.codec import Turn, UnstreamedRequest, newest_turns, replace_members
from moyin.text.protocol.openai import wire
from moyin.text.protocol.openai.errors import error_event, render_error
from moyin.text.protocol.openai.request_to_domain import (
    chat_constraints,
    chat_needs,
    chat_request_to_domain,
    content_parts,
    embedding_needs,
    embedding_request_to_domain,
    message_text,
)
from moyin.text.protocol.openai.request_to_upstream import inline_pictures
from moyin.text.protocol.openai.response import (
    add_required_members,
    chat_response_to_client,
    chat_response_to_domain,
    choice_messages,
    embedding_response_to_client,
    usage_to_client,
    usage_to_domain,
)
from moyin.text.protocol.openai.stream import StreamTap, StreamWriter

__all__ = ["OpenAICodec", "OpenAIEmbeddingsCodec"]

# The member of `stream_options` that makes vLLM report the usage in every event.
_CONTINUOUS_USAGE = "continuous_usage_stats"


@dataclass(frozen=True, slots=True)
class ParsedChatRequest:
    """A validated chat completion; ``raw`` and ``data`` are the client's bytes and JSON."""

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

    @property
    def _wants_continuous_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.extras.get(_CONTINUOUS_USAGE))

    def needs(self) -> Needs:
        return chat_needs(self.body, self.data, self.raw)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        return find_embedded_schemas(self.data, "function.parameters")

    def constraints(self) -> ResponseConstraints:
        return chat_constraints(self.body, self.data)

    def recent_turns(self) -> tuple[Turn, ...]:
        return newest_turns((m.role, message_text(m)) for m in reversed(self.body.messages))

    @property
    def picture_urls(self) -> tuple[str, ...]:
        parts = (part for part in content_parts(self.body) if isinstance(part, wire.ImagePart))
        urls = (part.image_url.url for part in parts)
        return tuple(dict.fromkeys(url for url in urls if not url.startswith("data:")))

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedChatRequest:
        messages = [inline_pictures(message, pictures) for message in self.data["messages"]]
        data = {**self.data, "messages": messages}
        return ParsedChatRequest(to_json(data), data, validate(wire.ChatBody, data))

    def to_domain(self, model: str) -> ChatRequest:
        return replace(chat_request_to_domain(self.body), model=model)

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        hides_usage = self.streams and not self._wants_usage
        if model == self.body.model and not hides_usage and not additions and not overrides:
            return self.raw
        data = {**(merge_defaults(self.data, additions) if additions else self.data), **overrides}
        data["model"] = model
        if hides_usage:
            data["stream_options"] = {**(data.get("stream_options") or {}), "include_usage": True}
        return to_json(data)

    def stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        hides_usage = not self._wants_usage
        is_continuous = _CONTINUOUS_USAGE in (additions.get("stream_options") or ())
        return StreamTap(
            hide_usage=hides_usage,
            hide_progress=(hides_usage or is_continuous) and not self._wants_continuous_usage,
            choices=self.body.n or 1,
        )

    def stream_writer(self) -> StreamWriter:
        return StreamWriter(created=int(time.time()), include_usage=self._wants_usage)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return chat_response_to_client(response, created=int(time.time()))


@dataclass(frozen=True, slots=True)
class ParsedEmbeddingRequest(UnstreamedRequest):
    """A validated request for embeddings; ``raw`` and ``data`` as in `ParsedChatRequest`."""

    raw: bytes
    data: Mapping[str, Any]
    body: wire.EmbeddingBody

    @property
    def model(self) -> str:
        return self.body.model

    def needs(self) -> Needs:
        return embedding_needs(self.body)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def to_domain(self, model: str) -> EmbeddingRequest:
        return embedding_request_to_domain(self.body, model)

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        return replace_members(self.raw, self.data, model, additions, overrides)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, EmbeddingResponse)
        as_base64 = self.body.encoding_format == "base64"
        return embedding_response_to_client(response, as_base64=as_base64)


class _Codec:
    """Holds what both of OpenAI's codecs have in common."""

    api_format = ApiFormat.OPENAI
    stream_type = EVENT_STREAM
    read_response = staticmethod(chat_response_to_domain)
    render_error = staticmethod(render_error)
    error_event = staticmethod(error_event)
    cost_trailer = staticmethod(encode_cost_comment)

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        return usage_to_domain(body) or Usage()

    def output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes(choice_messages(body))


class OpenAICodec(_Codec):
    """Reads and writes chat completions."""

    path = "/chat/completions"

    def check_response(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("choices"), list):
            raise new_malformed_response_error()

    def complete_response(self, raw: bytes, body: dict[str, Any], estimate: Usage | None) -> bytes:
        was_incomplete = add_required_members(body)
        if estimate is not None:
            body["usage"] = usage_to_client(estimate)
        return to_json(body) if was_incomplete or estimate is not None else raw

    def parse(self, body: bytes) -> ParsedChatRequest:
        data = parse_object(body)
        return ParsedChatRequest(body, data, validate(wire.ChatBody, data))


class OpenAIEmbeddingsCodec(_Codec):
    """Reads requests for embeddings and writes their responses."""

    path = "/embeddings"

    def check_response(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("data"), list):
            raise new_malformed_response_error()

    def complete_response(self, raw: bytes, body: dict[str, Any], estimate: Usage | None) -> bytes:
        if estimate is None:
            return raw
        tokens = estimate.prompt_tokens
        body["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        return to_json(body)

    def parse(self, body: bytes) -> ParsedEmbeddingRequest:
        data = parse_object(body)
        return ParsedEmbeddingRequest(body, data, validate(wire.EmbeddingBody, data))
