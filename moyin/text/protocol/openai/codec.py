"""Implements the codecs of ``POST /v1/chat/completions`` and ``POST /v1/embeddings``."""

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
from moyin.text.protocol.codec import (
    BaseEmbeddingRequest,
    ParsedRequest,
    Turn,
    encode_with_changes,
    select_newest_turns,
)
from moyin.text.protocol.openai import request_to_domain, wire
from moyin.text.protocol.openai.errors import render_error, render_error_event
from moyin.text.protocol.openai.request_to_upstream import embed_pictures
from moyin.text.protocol.openai.response import (
    add_required_members,
    chat_response_to_client,
    chat_response_to_domain,
    embedding_response_to_client,
    list_choice_messages,
    usage_to_client,
    usage_to_domain,
)
from moyin.text.protocol.openai.stream import StreamTap, StreamWriter

# Member of `stream_options` with which vLLM reports the usage in every event.
_CONTINUOUS_USAGE = "continuous_usage_stats"


@dataclass(frozen=True, slots=True)
class BaseGenerationRequest:
    """Base of validated requests for text; ``data`` is ``raw`` parsed as JSON."""

    raw: bytes
    data: Mapping[str, Any]
    body: wire.GenerationBody

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.stream)

    @property
    def wants_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.include_usage)

    @property
    def _wants_continuous_usage(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.extras.get(_CONTINUOUS_USAGE))

    @property
    def _choice_count(self) -> int:
        return self.body.n or 1

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
        return find_embedded_schemas(self.data, "function.parameters")

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        hides_usage = self.is_streamed and not self.wants_usage
        if model == self.body.model and not hides_usage and not additions and not overrides:
            return self.raw
        data = {**(merge_defaults(self.data, additions) if additions else self.data), **overrides}
        data["model"] = model
        if hides_usage:
            data["stream_options"] = {**(data.get("stream_options") or {}), "include_usage": True}
        return to_json(data)

    def create_stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        hides_usage = not self.wants_usage
        return StreamTap(
            hide_usage=hides_usage,
            # Gemini reports the usage in every event, even if it is not requested.
            hide_progress=not self._wants_continuous_usage,
            choice_count=self._choice_count,
        )


@dataclass(frozen=True, slots=True)
class ParsedChatRequest(BaseGenerationRequest):
    """A validated request of ``POST /v1/chat/completions``."""

    body: wire.ChatBody

    def derive_needs(self) -> Needs:
        return request_to_domain.derive_chat_needs(self.body, self.data, self.raw)

    def derive_constraints(self) -> ResponseConstraints:
        return request_to_domain.derive_chat_constraints(self.body, self.data)

    def select_recent_turns(self) -> tuple[Turn, ...]:
        return select_newest_turns(
            (m.role, request_to_domain.join_text_parts(m)) for m in reversed(self.body.messages)
        )

    @property
    def picture_urls(self) -> tuple[str, ...]:
        parts = (
            part
            for part in request_to_domain.iterate_content_parts(self.body)
            if isinstance(part, wire.ImagePart)
        )
        urls = (part.image_url.url for part in parts)
        return tuple(dict.fromkeys(url for url in urls if not url.startswith("data:")))

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedChatRequest:
        messages = [embed_pictures(message, pictures) for message in self.data["messages"]]
        data = {**self.data, "messages": messages}
        return ParsedChatRequest(to_json(data), data, validate(wire.ChatBody, data))

    def to_domain(self, model: str) -> ChatRequest:
        return replace(request_to_domain.chat_request_to_domain(self.body), model=model)

    def create_stream_writer(self) -> StreamWriter:
        return StreamWriter(created=int(time.time()), include_usage=self.wants_usage)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return chat_response_to_client(response, created=int(time.time()))


@dataclass(frozen=True, slots=True)
class ParsedEmbeddingRequest(BaseEmbeddingRequest):
    """A validated request of ``POST /v1/embeddings``; ``data`` is ``raw`` parsed as JSON."""

    raw: bytes
    data: Mapping[str, Any]
    body: wire.EmbeddingBody

    @property
    def model(self) -> str:
        return self.body.model

    def derive_needs(self) -> Needs:
        return request_to_domain.derive_embedding_needs(self.body)

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def to_domain(self, model: str) -> EmbeddingRequest:
        return request_to_domain.embedding_request_to_domain(self.body, model)

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        return encode_with_changes(self.raw, self.data, model, additions, overrides)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, EmbeddingResponse)
        as_base64 = self.body.encoding_format == "base64"
        return embedding_response_to_client(response, as_base64=as_base64)


class BaseCodec:
    """Implements the methods that OpenAI's codecs share."""

    api_format = ApiFormat.OPENAI
    stream_content_type = EVENT_STREAM
    read_response = staticmethod(chat_response_to_domain)
    render_error = staticmethod(render_error)
    render_error_event = staticmethod(render_error_event)
    encode_cost_trailer = staticmethod(encode_cost_comment)
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {}

    def replace_body(self, request: ParsedRequest, data: Mapping[str, Any]) -> ParsedRequest:
        return self.parse(to_json(data))

    def parse(self, body: bytes) -> ParsedRequest:
        raise NotImplementedError

    def select_forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        return usage_to_domain(body) or Usage()

    def count_output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes(list_choice_messages(body))


class OpenAICodec(BaseCodec):
    """The codec of ``POST /v1/chat/completions``."""

    path = "/chat/completions"
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {
        "tools": ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        "thinking": ("reasoning_effort",),
    }

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("choices"), list):
            raise new_malformed_response_error()

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        was_incomplete = add_required_members(body)
        if estimated_usage is not None:
            body["usage"] = usage_to_client(estimated_usage)
        return to_json(body) if was_incomplete or estimated_usage is not None else raw

    def parse(self, body: bytes) -> ParsedChatRequest:
        data = parse_object(body)
        return ParsedChatRequest(body, data, validate(wire.ChatBody, data))


class OpenAIEmbeddingsCodec(BaseCodec):
    """The codec of ``POST /v1/embeddings``."""

    path = "/embeddings"

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get("data"), list):
            raise new_malformed_response_error()

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        if estimated_usage is None:
            return raw
        prompt_tokens = estimated_usage.prompt_tokens
        body["usage"] = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
        return to_json(body)

    def parse(self, body: bytes) -> ParsedEmbeddingRequest:
        data = parse_object(body)
        return ParsedEmbeddingRequest(body, data, validate(wire.EmbeddingBody, data))
