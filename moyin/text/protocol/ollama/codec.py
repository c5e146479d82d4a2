"""Implements the codecs of Ollama's calls: chats, text generation and embeddings."""

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
from moyin.text.protocol.codec import (
    BaseEmbeddingRequest,
    ParsedRequest,
    Turn,
    encode_with_changes,
    select_newest_turns,
)
from moyin.text.protocol.ollama import request_to_domain, wire
from moyin.text.protocol.ollama.errors import render_error, render_error_event
from moyin.text.protocol.ollama.response import (
    build_first_members,
    chat_response_to_client,
    chat_response_to_domain,
    embedding_response_to_client,
    generate_response_to_client,
    usage_to_domain,
)
from moyin.text.protocol.ollama.stream import (
    JSON_LINES,
    StreamTap,
    StreamWriter,
    encode_chat_content,
    encode_generate_content,
)


@dataclass(frozen=True, slots=True)
class _BaseParsedRequest:
    """Base of validated requests; ``data`` is ``raw`` parsed as JSON.

    ``started_at`` is the time of the request, from `time.perf_counter_ns`.
    """

    raw: bytes
    data: Mapping[str, Any]
    started_at: int = field(default_factory=time.perf_counter_ns, kw_only=True)

    @property
    def model(self) -> str:
        return str(self.data["model"])

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
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
        return encode_with_changes(self.raw, self.data, model, additions, overrides)

    def create_stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        return StreamTap(self.model)

    @property
    def _elapsed_nanoseconds(self) -> int:
        return time.perf_counter_ns() - self.started_at


@dataclass(frozen=True, slots=True)
class ParsedChatRequest(_BaseParsedRequest):
    """A validated request of ``/api/chat``."""

    body: wire.ChatBody

    @property
    def is_streamed(self) -> bool:
        return self.body.is_streamed

    @property
    def model_load_response(self) -> bytes | None:
        """The response to a request without messages, which only loads or unloads the model.

        None if the request has messages.
        """
        if self.body.messages:
            return None
        return _encode_model_load_response(self.body, encode_chat_content("", "", []))

    def derive_needs(self) -> Needs:
        return request_to_domain.derive_chat_needs(self.body, self.data)

    def derive_constraints(self) -> ResponseConstraints:
        tool_names = frozenset(tool.function.name for tool in self.body.tools or ())
        return ResponseConstraints(
            json=bool(self.body.format), schema=self.body.schema_, tools=tool_names
        )

    def select_recent_turns(self) -> tuple[Turn, ...]:
        return select_newest_turns(
            (message.role, message.text) for message in reversed(self.body.messages or ())
        )

    def to_domain(self, model: str) -> ChatRequest:
        return request_to_domain.chat_request_to_domain(self.body, model)

    def create_stream_writer(self) -> StreamWriter:
        return StreamWriter(encode_chat_content, self.model)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return chat_response_to_client(
            response, model=self.model, nanoseconds=self._elapsed_nanoseconds
        )


@dataclass(frozen=True, slots=True)
class ParsedGenerateRequest(_BaseParsedRequest):
    """A validated request of ``/api/generate``."""

    body: wire.GenerateBody

    @property
    def is_streamed(self) -> bool:
        return self.body.is_streamed

    @property
    def model_load_response(self) -> bytes | None:
        """The response to a request without a prompt, which only loads or unloads the model.

        None if the request has a prompt.
        """
        if self.body.prompt or self.body.images:
            return None
        return _encode_model_load_response(self.body, encode_generate_content("", "", []))

    def derive_needs(self) -> Needs:
        return request_to_domain.derive_generate_needs(self.body)

    def derive_constraints(self) -> ResponseConstraints:
        return ResponseConstraints(json=bool(self.body.format), schema=self.body.schema_)

    def select_recent_turns(self) -> tuple[Turn, ...]:
        return select_newest_turns(
            (("user", self.body.prompt or ""), ("system", self.body.system or ""))
        )

    def to_domain(self, model: str) -> ChatRequest:
        return request_to_domain.generate_request_to_domain(self.body, model)

    def create_stream_writer(self) -> StreamWriter:
        return StreamWriter(encode_generate_content, self.model)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, ChatResponse)
        return generate_response_to_client(
            response, model=self.model, nanoseconds=self._elapsed_nanoseconds
        )


@dataclass(frozen=True, slots=True)
class ParsedEmbedRequest(BaseEmbeddingRequest, _BaseParsedRequest):
    """A validated request of ``/api/embed``."""

    body: wire.EmbedBody | wire.EmbeddingsBody

    def derive_needs(self) -> Needs:
        return request_to_domain.derive_embedding_needs(self.body)

    def to_domain(self, model: str) -> EmbeddingRequest:
        assert isinstance(self.body, wire.EmbedBody)
        return request_to_domain.embedding_request_to_domain(self.body, model)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, EmbeddingResponse)
        return embedding_response_to_client(
            response, model=self.model, nanoseconds=self._elapsed_nanoseconds
        )


@dataclass(frozen=True, slots=True)
class ParsedEmbeddingsRequest(ParsedEmbedRequest):
    """A validated request of ``/api/embeddings``, the older call for a single vector."""

    body: wire.EmbeddingsBody

    def to_domain(self, model: str) -> EmbeddingRequest:
        return EmbeddingRequest(model=model, inputs=self.body.inputs)

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(response, EmbeddingResponse)
        return to_json({"embedding": response.vectors[0]})


def _encode_model_load_response(body: wire.GenerationBody, content: Mapping[str, Any]) -> bytes:
    done_reason = "unload" if body.unloads_model else "load"
    return to_json(
        {**build_first_members(body.model), **content, "done": True, "done_reason": done_reason}
    )


class _BaseCodec:
    """Implements the methods that Ollama's codecs share."""

    api_format = ApiFormat.OLLAMA
    stream_content_type = JSON_LINES
    render_error = staticmethod(render_error)
    render_error_event = staticmethod(render_error_event)
    read_usage = staticmethod(usage_to_domain)
    _content: str  # the member of a response that contains the answer
    _content_type: type  # the type of that member
    _has_usage = True
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {}

    def parse(self, body: bytes) -> ParsedRequest:
        raise NotImplementedError

    def replace_body(self, request: ParsedRequest, data: Mapping[str, Any]) -> ParsedRequest:
        return self.parse(to_json(data))

    def select_forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def encode_cost_trailer(self, cost: bytes) -> bytes:
        # Clients would treat a line after the last one as a part of the answer.
        return b""

    def read_response(self, body: Mapping[str, Any]) -> ChatResponse:
        return chat_response_to_domain(body)

    def count_output_bytes(self, body: Mapping[str, Any]) -> int:
        return count_text_bytes([body.get(name) for name in ("message", "response", "thinking")])

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        if not isinstance(body.get(self._content), self._content_type):
            raise new_malformed_response_error()

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        if estimated_usage is None or not self._has_usage:
            return raw
        body["prompt_eval_count"] = estimated_usage.prompt_tokens
        if estimated_usage.output_tokens:
            body["eval_count"] = estimated_usage.output_tokens
        return to_json(body)


class OllamaChatCodec(_BaseCodec):
    """The codec of ``/api/chat``."""

    path = "/api/chat"
    _content, _content_type = "message", dict
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {
        "tools": ("tools",),
        "thinking": ("think",),
    }

    def parse(self, body: bytes) -> ParsedChatRequest:
        data = parse_object(body)
        return ParsedChatRequest(body, data, validate(wire.ChatBody, data))


class OllamaGenerateCodec(_BaseCodec):
    """The codec of ``/api/generate``."""

    path = "/api/generate"
    _content, _content_type = "response", str
    request_fields_by_ability: Mapping[str, tuple[str, ...]] = {"thinking": ("think",)}

    def parse(self, body: bytes) -> ParsedGenerateRequest:
        data = parse_object(body)
        return ParsedGenerateRequest(body, data, validate(wire.GenerateBody, data))

    def read_response(self, body: Mapping[str, Any]) -> ChatResponse:
        message = {"content": body.get("response"), "thinking": body.get("thinking")}
        return chat_response_to_domain({**body, "message": message})


class OllamaEmbedCodec(_BaseCodec):
    """The codec of ``/api/embed``."""

    path = "/api/embed"
    _content, _content_type = "embeddings", list

    def parse(self, body: bytes) -> ParsedEmbedRequest:
        data = parse_object(body)
        return ParsedEmbedRequest(body, data, validate(wire.EmbedBody, data))


class OllamaEmbeddingsCodec(_BaseCodec):
    """The codec of ``/api/embeddings``, the older call for a single vector."""

    path = "/api/embeddings"
    _content, _content_type = "embedding", list
    _has_usage = False

    def parse(self, body: bytes) -> ParsedEmbeddingsRequest:
        data = parse_object(body)
        return ParsedEmbeddingsRequest(body, data, validate(wire.EmbeddingsBody, data))
