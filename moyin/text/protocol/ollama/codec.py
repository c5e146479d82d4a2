"""Holds the codecs of Ollama's calls: chat, generate, embed and the older embeddings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse, Image
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.http.validation import (
    NO_MEMBERS,
    count_text_bytes,
    new_malformed_response_error,
    parse_object,
    validate,
)
from moyin.text.protocol.codec import Turn, UnstreamedRequest, newest_turns, replace_members
from moyin.text.protocol.ollama import wire
from moyin.text.protocol.ollama.errors import error_event, render_error
from moyin.text.protocol.ollama.request_to_domain import (
    chat_needs,
    chat_request_to_domain,
    embedding_needs,
    embedding_request_to_domain,
    generate_needs,
    generate_request_to_domain,
)
from moyin.text.protocol.ollama.response import (
    chat_response_to_client,
    chat_response_to_domain,
    embedding_response_to_client,
    first_members,
    generate_response_to_client,
    usage_to_domain,
)
from moyin.text.protocol.ollama.stream import (
    LINES,
    StreamTap,
    StreamWriter,
    chat_members,
    generate_members,
)

__all__ = [
    "OllamaChatCodec",
    "OllamaEmbedCodec",
    "OllamaEmbeddingsCodec",
    "OllamaGenerateCodec",
    "ParsedChatRequest",
    "ParsedGenerateRequest",
]


@dataclass(frozen=True, slots=True)
class _ParsedRequest:
    """A validated request; ``raw`` and ``data`` are the client's bytes and JSON.

    ``began`` is the ``perf_counter_ns`` at which they were read.
    """

    raw: bytes
    data: Mapping[str, Any]
    began: int = field(default_factory=time.perf_counter_ns, kw_only=True)

    @property
    def model(self) -> str:
        return str(self.data["model"])

    def schemas(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.data.get("format"), dict):
            yield "format", self.data["format"]
        for number, tool in enumerate(self.data.get("tools") or ()):
            yield f"tools.{number}.function.parameters", tool["function"].get("parameters")

    @property
    def picture_urls(self) -> tuple[str, ...]:
        return ()

    def with_pictures(self, pictures: Mapping[str, Image]) -> Self:
        return self

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        return replace_members(self.raw, self.data, model, additions, overrides)

    def stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        return StreamTap()

    @property
    def _elapsed(self) -> int:
        return time.perf_counter_ns() - self.began


@dataclass(frozen=True, slots=True)
class ParsedChatRequest(_ParsedRequest):
    """A validated ``/api/chat``."""

    body: wire.ChatBody

    @property
    def streams(self) -> bool:
        return self.body.streams

    @property
    def load_response(self) -> bytes | None:
        """The response to a request without messages, which only loads or unloads the model."""
        if self.body.messages:
            return None
        return _load_response(self.body, chat_members("", "", []))

    def needs(self) -> Needs:
        return chat_needs(self.body, self.data)

    def constraints(self) -> ResponseConstraints:
        tools = frozenset(tool.function.name for tool in self.body.tools or ())
        return ResponseConstraints(
            json=bool(self.body.format), schema=self.body.schema_, tools=tools
        )

    def recent_turns(self) -> tuple[Turn, ...]:
        return newest_turns(
            (message.role, message.text) for message in reversed(self.body.messages or ())
        )

    def to_domain(self, model: str) -> ChatRequest:
        return chat_request_to_domain(self.body, model)

    def stream_writer(self) -> StreamWriter:
        return StreamWriter(chat_members)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return chat_response_to_client(response, nanoseconds=self._elapsed)


@dataclass(frozen=True, slots=True)
class ParsedGenerateRequest(_ParsedRequest):
    """A validated ``/api/generate``."""

    body: wire.GenerateBody

    @property
    def streams(self) -> bool:
        return self.body.streams

    @property
    def load_response(self) -> bytes | None:
        """The response to a request without a prompt, which only loads or unloads the model."""
        if self.body.prompt or self.body.images:
            return None
        return _load_response(self.body, generate_members("", "", []))

    def needs(self) -> Needs:
        return generate_needs(self.body)

    def constraints(self) -> ResponseConstraints:
        return ResponseConstraints(json=bool(self.body.format), schema=self.body.schema_)

    def recent_turns(self) -> tuple[Turn, ...]:
        return newest_turns((("user", self.body.prompt or ""), ("system", self.body.system or "")))

    def to_domain(self, model: str) -> ChatRequest:
        return generate_request_to_domain(self.body, model)

    def stream_writer(self) -> StreamWriter:
        return StreamWriter(generate_members)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return generate_response_to_client(response, nanoseconds=self._elapsed)


@dataclass(frozen=True, slots=True)
class ParsedEmbedRequest(UnstreamedRequest, _ParsedRequest):
    """A validated ``/api/embed``."""

    body: wire.EmbedBody | wire.EmbeddingsBody

    def needs(self) -> Needs:
        return embedding_needs(self.body)

    def to_domain(self, model: str) -> EmbeddingRequest:
        assert isinstance(self.body, wire.EmbedBody)
        return embedding_request_to_domain(self.body, model)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, EmbeddingResponse)
        return embedding_response_to_client(response, nanoseconds=self._elapsed)


@dataclass(frozen=True, slots=True)
class ParsedEmbeddingsRequest(ParsedEmbedRequest):
    """A validated ``/api/embeddings``, the older call for a single vector."""

    body: wire.EmbeddingsBody

    def to_domain(self, model: str) -> EmbeddingRequest:
        return EmbeddingRequest(model=model, inputs=self.body.inputs)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, EmbeddingResponse)
        return to_json({"embedding": response.vectors[0]})


def _load_response(body: wire.CallBody, content: Mapping[str, Any]) -> bytes:
    reason = "unload" if body.unloads else "load"
    return to_json({**first_members(body.model), **content, "done": True, "done_reason": reason})


class _Codec:
    """Holds what Ollama's codecs have in common."""

    api_format = ApiFormat.OLLAMA
    stream_type = LINES
    render_error = staticmethod(render_error)
    error_event = staticmethod(error_event)
    read_usage = staticmethod(usage_to_domain)
    # The member that holds the answer, and its type.
    _content: str
    _content_type: type
    _has_usage = True

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def cost_trailer(self, cost: bytes) -> bytes:
        # Clients would read a line after the last one as a part of the answer.
        return b""

    def read_response(self, body: Mapping[str, Any]) -> ChatResponse:
        return chat_response_to_domain(body)

    def output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes([body.get(name) for name in ("message", "response", "thinking")])

    def check_response(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get(self._content), self._content_type):
            raise new_malformed_response_error()

    def complete_response(self, raw: bytes, body: dict[str, Any], estimate: Usage | None) -> bytes:
        if estimate is None or not self._has_usage:
            return raw
        body["prompt_eval_count"] = estimate.prompt_tokens
        if estimate.output_tokens:
            body["eval_count"] = estimate.output_tokens
        return to_json(body)


class OllamaChatCodec(_Codec):
    """Reads and writes ``/api/chat``."""

    path = "/api/chat"
    _content, _content_type = "message", dict

    def parse(self, body: bytes) -> ParsedChatRequest:
        data = parse_object(body)
        return ParsedChatRequest(body, data, validate(wire.ChatBody, data))


class OllamaGenerateCodec(_Codec):
    """Reads and writes ``/api/generate``."""

    path = "/api/generate"
    _content, _content_type = "response", str

    def parse(self, body: bytes) -> ParsedGenerateRequest:
        data = parse_object(body)
        return ParsedGenerateRequest(body, data, validate(wire.GenerateBody, data))

    def read_response(self, body: Mapping[str, Any]) -> ChatResponse:
        message = {"content": body.get("response"), "thinking": body.get("thinking")}
        return chat_response_to_domain({**body, "message": message})


class OllamaEmbedCodec(_Codec):
    """Reads and writes ``/api/embed``."""

    path = "/api/embed"
    _content, _content_type = "embeddings", list

    def parse(self, body: bytes) -> ParsedEmbedRequest:
        data = parse_object(body)
        return ParsedEmbedRequest(body, data, validate(wire.EmbedBody, data))


class OllamaEmbeddingsCodec(_Codec):
    """Reads and writes ``/api/embeddings``."""

    path = "/api/embeddings"
    _content, _content_type = "embedding", list
    _has_usage = False

    def parse(self, body: bytes) -> ParsedEmbeddingsRequest:
        data = parse_object(body)
        return ParsedEmbeddingsRequest(body, data, validate(wire.EmbeddingsBody, data))
