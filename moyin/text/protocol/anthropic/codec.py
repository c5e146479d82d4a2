"""Anthropic's messages as a `Dialect`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatRequest, ChatResponse, EmbeddingResponse, Image
from moyin.domain.money import Usage
from moyin.domain.needs import (
    IMAGE_TOKENS,
    Needs,
    ResponseConstraints,
    estimate_message,
    estimate_tokens,
    text_size,
    tokens_in,
)
from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.sse import EVENT_STREAM, cost_comment
from moyin.http.validation import (
    NO_MEMBERS,
    embedded_schemas,
    malformed_response,
    merged,
    parse_object,
    text_bytes,
    validate,
)
from moyin.text.protocol.anthropic import wire
from moyin.text.protocol.anthropic.errors import error_event, render_error
from moyin.text.protocol.anthropic.request_to_domain import to_domain
from moyin.text.protocol.anthropic.response import answer_of, body_of, usage_body, usage_of
from moyin.text.protocol.anthropic.stream import StreamTap, StreamWriter
from moyin.text.protocol.turns import Turn, recent

__all__ = ["AnthropicCodec", "CountCall"]

# Inside a JSON string its quotes would be escaped.
_MARKER = b'"cache_control"'
# Members of a block of another kind that say where its content is.
_BASE64 = b'"type":"base64"'
_FILE = (b'"type":"file"', b'"file_id":')
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
        marked = _MARKER in self.raw
        return _needs(self.body, self.data, max_tokens=self.body.max_tokens, cached=marked)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        return embedded_schemas(self.data, "input_schema")

    def form(self) -> ResponseConstraints:
        config = self.body.output_config
        form = None if config is None else config.format
        return ResponseConstraints(
            json=form is not None,
            schema=None if form is None else form.schema_,
            tools=frozenset(tool.name for tool in self.body.tools or ()),
        )

    def turns(self) -> tuple[Turn, ...]:
        return recent(_turns(self.body))

    @property
    def picture_urls(self) -> tuple[str, ...]:
        images = (block for block in _blocks(self.body) if isinstance(block, wire.ImageBlock))
        return tuple(dict.fromkeys(i.source.url for i in images if i.source.url is not None))

    def with_pictures(self, pictures: Mapping[str, Image]) -> AnthropicCall:
        data = {**self.data, "messages": [_inlined(m, pictures) for m in self.data["messages"]]}
        return AnthropicCall(to_json(data), data, validate(wire.MessagesBody, data))

    def to_domain(self, model: str) -> ChatRequest:
        return replace(to_domain(self.body), model=model)

    def to_bytes(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        if model == self.body.model and not additions and not overrides:
            return self.raw
        return to_json({**merged(self.data, additions), **overrides, "model": model})

    def tap(self, additions: Mapping[str, Any]) -> StreamTap:
        return StreamTap()

    def writer(self) -> StreamWriter:
        return StreamWriter()

    def render(self, answer: ChatResponse | EmbeddingResponse) -> bytes:
        assert isinstance(answer, ChatResponse)
        return body_of(answer)


def _inlined(block: Mapping[str, Any], pictures: Mapping[str, Image]) -> Mapping[str, Any]:
    """A message, or a block in it, with the pictures that it names by URL."""
    if isinstance(block.get("content"), list):
        return {**block, "content": [_inlined(part, pictures) for part in block["content"]]}
    if block.get("type") != "image":
        return block
    picture = pictures.get(block["source"].get("url"))
    if picture is None:
        return block
    source = {"type": "base64", "media_type": picture.media_type, "data": picture.data}
    return {**block, "source": source}


def _needs(
    body: wire.CountBody, data: Mapping[str, Any], *, max_tokens: int | None, cached: bool
) -> Needs:
    blocks = list(_blocks(body))
    images = sum(1 for block in blocks if isinstance(block, wire.ImageBlock))
    tools = estimate_tokens(to_json(data["tools"]).decode()) if body.tools else 0
    form = body.output_config.format if body.output_config is not None else None
    schema = 0 if form is None else len(to_json(form))
    rest = [block for block in blocks if isinstance(block, wire.OtherBlock)]
    others = list(map(_serialised, rest))
    addresses = any(_names_address(block.extras) for block in rest)
    texts = sum(map(estimate_tokens, _texts(body, blocks)))
    texts += sum(tokens_in(len(other)) for other, _ in others if _BASE64 not in other)
    return Needs(
        prompt_tokens=texts + estimate_message(len(body.messages)) + images * IMAGE_TOKENS + tools,
        attachment_bytes=sum(len(other) + size for other, size in others if _BASE64 in other)
        + schema,
        has_external_content=addresses
        or any(mark in other for other, _ in others for mark in _FILE)
        or any(tool.remote for tool in body.tools or ())
        or bool(body.extras.get("mcp_servers")),
        has_urls=addresses,
        max_tokens=max_tokens,
        tools=bool(body.tools),
        vision=images > 0,
        schema=form is not None,
        thinking=body.thinking is not None and body.thinking.type != "disabled",
        has_cache_markers=cached,
    )


def _serialised(block: wire.OtherBlock) -> tuple[bytes, int]:
    """The block without what it holds in base64, which may be large, and the bytes of that."""
    source = block.extras.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return to_json(block), 0
    data = source.get("data")
    if not isinstance(data, str):
        return to_json(block), 0
    return to_json({**block.extras, "source": {**source, "data": ""}}), text_size(data)


def _blocks(body: wire.CountBody) -> Iterator[Any]:
    for message in body.messages:
        if isinstance(message.content, str):
            continue
        for block in message.content:
            yield block
            if isinstance(block, wire.ToolResultBlock) and isinstance(block.content, list):
                yield from block.content


def _texts(body: wire.CountBody, blocks: Iterable[Any]) -> Iterator[str]:
    if isinstance(body.system, str):
        yield body.system
    else:
        for block in body.system or ():
            yield block.text
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
    for block in blocks:
        match block:
            case wire.TextBlock():
                yield block.text
            case wire.ThinkingBlock():
                yield block.thinking
            case wire.RedactedThinkingBlock():
                yield block.data
            case wire.ToolUseBlock():
                yield to_json(block.input).decode()
            case wire.ToolResultBlock() if isinstance(block.content, str):
                yield block.content


def _turns(body: wire.CountBody) -> Iterator[Turn]:
    """Yield role and text, newest first, the system prompt last."""
    for message in reversed(body.messages):
        content = message.content
        if isinstance(content, str):
            yield message.role, content
            continue
        yield message.role, _joined(content, wire.TextBlock)
        if any(isinstance(block, wire.ToolResultBlock) for block in content):
            # What a tool says is not what the user says.
            yield "tool", _joined(content, wire.ToolResultBlock)
    if isinstance(body.system, str):
        yield "system", body.system
    elif body.system:
        yield "system", "\n".join(block.text for block in body.system)


def _joined(content: list[Any], kind: type[wire.TextBlock | wire.ToolResultBlock]) -> str:
    texts = (_text(block) for block in content if isinstance(block, kind))
    return "\n".join(filter(None, texts))


def _text(block: wire.TextBlock | wire.ToolResultBlock) -> str:
    if isinstance(block, wire.TextBlock):
        return block.text
    return block.content if isinstance(block.content, str) else "(result)"


def _names_address(value: Any) -> bool:
    """Whether a source within is a URL, which who reads it may call, whatever its type says. Results
    of a search hold URLs as well, which nobody calls: they are no sources."""
    if isinstance(value, list):
        return any(map(_names_address, value))
    if not isinstance(value, dict):
        return False
    source = value.get("source")
    names = isinstance(source, dict) and source.get("url") is not None
    return names or any(map(_names_address, value.values()))


@dataclass(frozen=True, slots=True)
class CountCall:
    """One validated request to count a prompt's tokens."""

    data: Mapping[str, Any]
    body: wire.CountBody

    @classmethod
    def parse(cls, body: bytes) -> CountCall:
        """Raises as `AnthropicCodec.parse` does."""
        data = parse_object(body)
        return cls(data, validate(wire.CountBody, data))

    def needs(self) -> Needs:
        """Its ``prompt_tokens`` are the estimate."""
        return _needs(self.body, self.data, max_tokens=None, cached=False)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        """As those of a call."""
        return embedded_schemas(self.data, "input_schema")

    @property
    def names_addresses(self) -> bool:
        """Whether a picture or a document is named by a URL, so that who counts it would call it."""
        return any(
            block.source.url is not None
            if isinstance(block, wire.ImageBlock)
            else isinstance(block, wire.OtherBlock) and _names_address(block.extras)
            for block in _blocks(self.body)
        )

    def to_bytes(self, model: str) -> bytes:
        return to_json({**self.data, "model": model})


class AnthropicCodec:
    """Reads messages, writes Anthropic's errors."""

    api_format = ApiFormat.ANTHROPIC
    path = "/messages"
    stream_type = EVENT_STREAM

    def parse(self, body: bytes) -> AnthropicCall:
        data = parse_object(body)
        return AnthropicCall(body, data, validate(wire.MessagesBody, data))

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {k.decode(): v.decode("latin-1") for k, v in headers if k in _FORWARDED}

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        return usage_of(body.get("usage"))

    def answer_of(self, body: Mapping[str, Any]) -> ChatResponse:
        return answer_of(body)

    def written_size(self, body: Mapping[str, Any]) -> int:
        return text_bytes(body.get("content"))

    def check_shape(self, answer: Mapping[str, Any]) -> None:
        if not isinstance(answer.get("content"), list):
            raise malformed_response()

    def completed(self, body: bytes, answer: dict[str, Any], estimate: Usage | None) -> bytes:
        if estimate is None:
            return body
        answer["usage"] = usage_body(estimate)
        return to_json(answer)

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody:
        return render_error(error, request_id, path)

    def cost_note(self, cost: bytes) -> bytes:
        return cost_comment(cost)

    def error_event(self, error: MoyinError, request_id: str) -> bytes:
        return error_event(error, request_id)
