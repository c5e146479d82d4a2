"""Ollama's chat, generate and embed, each a `Dialect`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingRequest, EmbeddingResponse, Image
from moyin.domain.money import Usage
from moyin.domain.needs import (
    IMAGE_TOKENS,
    Needs,
    ResponseConstraints,
    estimate_message,
    estimate_tokens,
)
from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.validation import (
    NO_MEMBERS,
    malformed_response,
    merged,
    parse_object,
    text_bytes,
    validate,
)
from moyin.text.protocol.ollama import wire
from moyin.text.protocol.ollama.errors import error_line, render_error
from moyin.text.protocol.ollama.request_to_domain import (
    chat_to_domain,
    embed_to_domain,
    generate_to_domain,
)
from moyin.text.protocol.ollama.response import (
    answer_of,
    chat_body,
    embed_body,
    generate_body,
    head,
    usage_of,
)
from moyin.text.protocol.ollama.stream import LINES, StreamTap, StreamWriter, in_chat, in_generate
from moyin.text.protocol.turns import Turn, recent

__all__ = [
    "ChatCall",
    "GenerateCall",
    "OllamaChat",
    "OllamaEmbed",
    "OllamaEmbeddings",
    "OllamaGenerate",
]


@dataclass(frozen=True, slots=True)
class _Call:
    """``raw`` and ``data`` are the client's bytes and JSON; ``began`` when they were read."""

    raw: bytes
    data: Mapping[str, Any]
    began: int = field(default_factory=time.perf_counter_ns, kw_only=True)

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

    def to_bytes(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        if model == self.data["model"] and not additions and not overrides:
            return self.raw
        return to_json({**merged(self.data, additions), **overrides, "model": model})

    def tap(self, additions: Mapping[str, Any]) -> StreamTap:
        return StreamTap()

    @property
    def _took(self) -> int:
        return time.perf_counter_ns() - self.began


@dataclass(frozen=True, slots=True)
class ChatCall(_Call):
    """One validated ``/api/chat``."""

    body: wire.ChatBody

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def streams(self) -> bool:
        return self.body.streams

    @property
    def loaded(self) -> bytes | None:
        """The answer to a request without messages, which only asks to load or unload the model."""
        if self.body.messages:
            return None
        return _loaded(self.body, in_chat("", "", []))

    def needs(self) -> Needs:
        body = self.body
        messages = body.messages or []
        images = sum(len(message.images or ()) for message in messages)
        tools = estimate_tokens(to_json(self.data["tools"]).decode()) if body.tools else 0
        texts = sum(map(estimate_tokens, _texts(body)))
        frame = estimate_message(len(messages))
        return _needs(body, texts + frame + tools, images=images, tools=bool(body.tools))

    def form(self) -> ResponseConstraints:
        tools = frozenset(tool.function.name for tool in self.body.tools or ())
        return ResponseConstraints(
            json=bool(self.body.format), schema=self.body.schema_, tools=tools
        )

    def turns(self) -> tuple[Turn, ...]:
        return recent(
            (message.role, message.text) for message in reversed(self.body.messages or ())
        )

    def to_domain(self, model: str) -> ChatRequest:
        return chat_to_domain(self.body, model)

    def writer(self) -> StreamWriter:
        return StreamWriter(in_chat)

    def render(self, answer: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(answer, ChatResponse)
        return chat_body(answer, nanoseconds=self._took)


@dataclass(frozen=True, slots=True)
class GenerateCall(_Call):
    """One validated ``/api/generate``."""

    body: wire.GenerateBody

    @property
    def model(self) -> str:
        return self.body.model

    @property
    def streams(self) -> bool:
        return self.body.streams

    @property
    def loaded(self) -> bytes | None:
        """The answer to a request without a prompt, which only asks to load or unload the model."""
        if self.body.prompt or self.body.images:
            return None
        return _loaded(self.body, in_generate("", "", []))

    def needs(self) -> Needs:
        body = self.body
        texts = estimate_tokens(body.prompt or "") + estimate_tokens(body.system or "")
        images = len(body.images or ())
        return _needs(body, texts + estimate_message(1), images=images, tools=False)

    def form(self) -> ResponseConstraints:
        return ResponseConstraints(json=bool(self.body.format), schema=self.body.schema_)

    def turns(self) -> tuple[Turn, ...]:
        return recent((("user", self.body.prompt or ""), ("system", self.body.system or "")))

    def to_domain(self, model: str) -> ChatRequest:
        return generate_to_domain(self.body, model)

    def writer(self) -> StreamWriter:
        return StreamWriter(in_generate)

    def render(self, answer: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(answer, ChatResponse)
        return generate_body(answer, nanoseconds=self._took)


@dataclass(frozen=True, slots=True)
class EmbedCall(_Call):
    """One validated ``/api/embed``."""

    body: wire.EmbedBody | wire.EmbeddingsBody
    streams = False

    @property
    def model(self) -> str:
        return self.body.model

    def needs(self) -> Needs:
        sizes = [estimate_tokens(text) for text in self.body.inputs]
        return Needs(prompt_tokens=sum(sizes), longest_input=max(sizes, default=0), embeddings=True)

    def form(self) -> ResponseConstraints:
        return ResponseConstraints()

    def turns(self) -> tuple[Turn, ...]:
        return ()

    def to_domain(self, model: str) -> EmbeddingRequest:
        assert isinstance(self.body, wire.EmbedBody)
        return embed_to_domain(self.body, model)

    def writer(self) -> StreamWriter:
        raise AssertionError("vectors are not streamed")

    def render(self, answer: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(answer, EmbeddingResponse)
        return embed_body(answer, nanoseconds=self._took)


@dataclass(frozen=True, slots=True)
class EmbeddingsCall(EmbedCall):
    """One validated ``/api/embeddings``, the older call for one vector."""

    body: wire.EmbeddingsBody

    def to_domain(self, model: str) -> EmbeddingRequest:
        return EmbeddingRequest(model=model, inputs=self.body.inputs)

    def render(self, answer: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(answer, EmbeddingResponse)
        return to_json({"embedding": answer.vectors[0]})


def _needs(body: wire.CallBody, prompt: int, *, images: int, tools: bool) -> Needs:
    return Needs(
        prompt_tokens=prompt + images * IMAGE_TOKENS,
        attachment_bytes=0 if body.schema_ is None else len(to_json(body.schema_)),
        max_tokens=body.output_limit,
        tools=tools,
        vision=images > 0,
        schema=body.schema_ is not None,
        thinking=bool(body.think),
    )


def _texts(body: wire.ChatBody) -> Iterator[str]:
    for message in body.messages or ():
        yield message.text
        yield message.thinking or ""
        for call in message.tool_calls or ():
            yield to_json(call.function.arguments).decode()


def _loaded(body: wire.CallBody, said: Mapping[str, Any]) -> bytes:
    reason = "unload" if body.unloads else "load"
    return to_json({**head(body.model), **said, "done": True, "done_reason": reason})


class _Dialect:
    """What the three have in common."""

    api_format = ApiFormat.OLLAMA
    stream_type = LINES
    # The member that holds the answer, and what it is.
    _content: str
    _kind: type
    _counts = True

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def cost_note(self, cost: bytes) -> bytes:
        # A line after the last one would be read as one more piece of the answer.
        return b""

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        return usage_of(body)

    def answer_of(self, body: Mapping[str, Any]) -> ChatResponse:
        return answer_of(body)

    def written_size(self, body: Mapping[str, Any]) -> int:
        return text_bytes([body.get(name) for name in ("message", "response", "thinking")])

    def check_shape(self, answer: Mapping[str, Any]) -> None:
        if not isinstance(answer.get(self._content), self._kind):
            raise malformed_response()

    def completed(self, body: bytes, answer: dict[str, Any], estimate: Usage | None) -> bytes:
        if estimate is None or not self._counts:
            return body
        answer["prompt_eval_count"] = estimate.prompt_tokens
        if estimate.output_tokens:
            answer["eval_count"] = estimate.output_tokens
        return to_json(answer)

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody:
        return render_error(error, request_id, path)

    def error_event(self, error: MoyinError, request_id: str) -> bytes:
        return error_line(error, request_id)


class OllamaChat(_Dialect):
    path = "/api/chat"
    _content, _kind = "message", dict

    def parse(self, body: bytes) -> ChatCall:
        data = parse_object(body)
        return ChatCall(body, data, validate(wire.ChatBody, data))


class OllamaGenerate(_Dialect):
    path = "/api/generate"
    _content, _kind = "response", str

    def parse(self, body: bytes) -> GenerateCall:
        data = parse_object(body)
        return GenerateCall(body, data, validate(wire.GenerateBody, data))

    def answer_of(self, body: Mapping[str, Any]) -> ChatResponse:
        message = {"content": body.get("response"), "thinking": body.get("thinking")}
        return answer_of({**body, "message": message})


class OllamaEmbed(_Dialect):
    path = "/api/embed"
    _content, _kind = "embeddings", list

    def parse(self, body: bytes) -> EmbedCall:
        data = parse_object(body)
        return EmbedCall(body, data, validate(wire.EmbedBody, data))


class OllamaEmbeddings(_Dialect):
    path = "/api/embeddings"
    _content, _kind = "embedding", list
    _counts = False

    def parse(self, body: bytes) -> EmbeddingsCall:
        data = parse_object(body)
        return EmbeddingsCall(body, data, validate(wire.EmbeddingsBody, data))
