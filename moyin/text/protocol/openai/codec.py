"""OpenAI's chat completions and embeddings, each a `Dialect`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import ChatAnswer, ChatRequest, EmbedAnswer, EmbedRequest, Image
from moyin.domain.form import ANY_FORM, Form
from moyin.domain.money import Usage
from moyin.domain.needs import IMAGE_TOKENS, Needs, estimate_message, estimate_tokens, text_size
from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.sse import EVENT_STREAM, cost_comment
from moyin.http.validation import (
    NOTHING,
    held_to,
    merged,
    parse_object,
    shapeless,
    size_of,
    validated,
)
from moyin.text.protocol.openai import embeddings, wire
from moyin.text.protocol.openai.errors import error_event, render_error
from moyin.text.protocol.openai.request_to_domain import to_domain
from moyin.text.protocol.openai.request_to_upstream import data_url
from moyin.text.protocol.openai.response import (
    answer_of,
    body_of,
    complete,
    messages_of,
    usage_body,
    usage_of,
)
from moyin.text.protocol.openai.stream import StreamTap, StreamWriter
from moyin.text.protocol.turns import Turn, recent

__all__ = ["OpenAICodec", "OpenAIEmbeddings"]


# Inside a JSON string its quotes would be escaped.
_MARKER = b'"cache_control"'
_SOUND = b'"audio"'
# The member of `stream_options` that makes vLLM tell the usage in every event.
_COUNTS = "continuous_usage_stats"


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

    @property
    def _wants_progress(self) -> bool:
        options = self.body.stream_options
        return options is not None and bool(options.extras.get(_COUNTS))

    def needs(self) -> Needs:
        body = self.body
        parts = list(_content_parts(body))
        images, others = 0, []
        for part in parts:
            if isinstance(part, wire.OtherPart):
                others.append(part)
            elif not isinstance(part, wire.TextPart):
                images += 1
        tools = estimate_tokens(to_json(self.data["tools"]).decode()) if body.tools else 0
        form = body.response_format
        schema = len(to_json(form.json_schema)) if form and form.json_schema else 0
        return Needs(
            prompt_tokens=sum(map(estimate_tokens, _texts(body, parts)))
            + estimate_message(len(body.messages))
            + images * IMAGE_TOKENS
            + tools,
            max_tokens=body.most_output,
            tools=bool(body.tools),
            vision=images > 0,
            schema=form is not None and form.type == "json_schema",
            thinking=body.reasoning_effort not in (None, "none"),
            cached=_MARKER in self.raw,
            attached=sum(map(_size, others)) + schema,
            elsewhere=any(map(_is_elsewhere, others))
            or (_SOUND in self.raw and _repeats_sound(body)),
        )

    def schemas(self) -> Iterator[tuple[str, Any]]:
        return held_to(self.data, "function.parameters")

    def form(self) -> Form:
        form, body = self.body.response_format, self.body
        if form is None and not body.tools and not body.n and "modalities" not in self.data:
            return ANY_FORM
        schema = None if form is None else form.json_schema
        # Nobody has looked at this member: the back end says what is wrong with it.
        modalities = self.data.get("modalities")
        speaks = isinstance(modalities, list) and "audio" in modalities
        return Form(
            json=form is not None and form.type != "text",
            schema=None if schema is None else schema.schema_,
            tools=frozenset(tool.function.name for tool in body.tools or ()),
            plain=(body.n or 1) == 1 and not speaks,
        )

    def turns(self) -> tuple[Turn, ...]:
        return recent((m.role, _text(m)) for m in reversed(self.body.messages))

    @property
    def picture_urls(self) -> tuple[str, ...]:
        parts = (part for part in _content_parts(self.body) if isinstance(part, wire.ImagePart))
        urls = (part.image_url.url for part in parts)
        return tuple(dict.fromkeys(url for url in urls if not url.startswith("data:")))

    def with_pictures(self, pictures: Mapping[str, Image]) -> OpenAICall:
        data = {**self.data, "messages": [_inlined(m, pictures) for m in self.data["messages"]]}
        return OpenAICall(to_json(data), data, validated(wire.ChatBody, data))

    def to_domain(self, model: str) -> ChatRequest:
        return replace(to_domain(self.body), model=model)

    def to_bytes(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NOTHING
    ) -> bytes:
        hides_usage = self.streams and not self._wants_usage
        if model == self.body.model and not hides_usage and not additions and not overrides:
            return self.raw
        data = {**(merged(self.data, additions) if additions else self.data), **overrides}
        data["model"] = model
        if hides_usage:
            data["stream_options"] = {**(data.get("stream_options") or {}), "include_usage": True}
        return to_json(data)

    def tap(self, additions: Mapping[str, Any]) -> StreamTap:
        hides_usage = not self._wants_usage
        progress = _COUNTS in (additions.get("stream_options") or ())
        return StreamTap(
            hide_usage=hides_usage,
            hide_progress=(hides_usage or progress) and not self._wants_progress,
            choices=self.body.n or 1,
        )

    def writer(self) -> StreamWriter:
        return StreamWriter(created=int(time.time()), include_usage=self._wants_usage)

    def render(self, answer: ChatAnswer | EmbedAnswer) -> bytes:
        assert isinstance(answer, ChatAnswer)
        return body_of(answer, created=int(time.time()))


def _inlined(message: Mapping[str, Any], pictures: Mapping[str, Image]) -> dict[str, Any]:
    if not isinstance(message.get("content"), list):
        return {**message}
    return {**message, "content": [_inlined_part(p, pictures) for p in message["content"]]}


def _inlined_part(part: Mapping[str, Any], pictures: Mapping[str, Image]) -> Mapping[str, Any]:
    if part["type"] != "image_url":
        return part
    picture = pictures.get(part["image_url"]["url"])
    if picture is None:
        return part
    return {**part, "image_url": {**part["image_url"], "url": data_url(picture)}}


def _content_parts(body: wire.ChatBody) -> Iterator[wire.ContentPart]:
    for message in body.messages:
        if isinstance(message.content, list):
            yield from message.content


def _text(message: wire.Message) -> str:
    content = message.content
    if isinstance(content, str) or content is None:
        return content or ""
    return "\n".join(part.text for part in content if isinstance(part, wire.TextPart))


def _size(part: wire.OtherPart) -> int:
    """Bytes of a file or a sound; it may be too large to be serialised on the way."""
    content = part.extras.get(part.type)
    if not isinstance(content, dict):
        return len(to_json(part))
    return sum(text_size(value) for value in content.values() if isinstance(value, str))


def _is_elsewhere(part: wire.OtherPart) -> bool:
    """Whether it is a file that is named by its id or its URL."""
    if part.type != "file":
        return False
    file = part.extras.get("file")
    if not isinstance(file, dict) or file.get("file_id"):
        return True
    data = file.get("file_data")
    return not isinstance(data, str) or data.startswith(("http:", "https:"))


def _repeats_sound(body: wire.ChatBody) -> bool:
    """Whether an answer by voice comes again, which is named by its id."""
    return any(
        isinstance(message, wire.AssistantMessage) and message.extras.get("audio")
        for message in body.messages
    )


def _texts(body: wire.ChatBody, parts: Iterable[wire.ContentPart]) -> Iterator[str]:
    for message in body.messages:
        if isinstance(message.content, str):
            yield message.content
        if isinstance(message, wire.AssistantMessage):
            for call in message.tool_calls or ():
                yield call.function.arguments
            yield from _thoughts(message)
    for part in parts:
        if isinstance(part, wire.TextPart):
            yield part.text


def _thoughts(message: wire.AssistantMessage) -> Iterator[str]:
    """Blocks say the same as the plain text beside them."""
    for block in message.thinking_blocks or ():
        yield block.thinking or block.data or ""
    if not message.thinking_blocks:
        yield message.reasoning_content or ""


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """One validated request for embeddings; ``raw`` and ``data`` as in `OpenAICall`."""

    raw: bytes
    data: Mapping[str, Any]
    body: embeddings.EmbedBody
    streams = False
    picture_urls = ()

    @property
    def model(self) -> str:
        return self.body.model

    def needs(self) -> Needs:
        inputs = self.body.inputs
        sizes = [estimate_tokens(i) if isinstance(i, str) else len(i) for i in inputs]
        return Needs(prompt_tokens=sum(sizes), longest=max(sizes, default=0), embeddings=True)

    def schemas(self) -> Iterator[tuple[str, Any]]:
        return iter(())

    def form(self) -> Form:
        return Form()

    def turns(self) -> tuple[Turn, ...]:
        return ()

    def with_pictures(self, pictures: Mapping[str, Image]) -> EmbedCall:
        return self

    def to_domain(self, model: str) -> EmbedRequest:
        return embeddings.to_domain(self.body, model)

    def to_bytes(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NOTHING
    ) -> bytes:
        if model == self.body.model and not additions and not overrides:
            return self.raw
        return to_json({**merged(self.data, additions), **overrides, "model": model})

    def tap(self, additions: Mapping[str, Any]) -> StreamTap:
        raise AssertionError("vectors are not streamed")

    def writer(self) -> StreamWriter:
        raise AssertionError("vectors are not streamed")

    def render(self, answer: ChatAnswer | EmbedAnswer) -> bytes:
        assert isinstance(answer, EmbedAnswer)
        return embeddings.body_of(answer, as_base64=self.body.encoding_format == "base64")


class _Dialect:
    """What the two have in common."""

    wire = ApiFormat.OPENAI
    stream_type = EVENT_STREAM

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        return {}

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        return usage_of(body) or Usage()

    def answer_of(self, body: Mapping[str, Any]) -> ChatAnswer:
        return answer_of(body)

    def written_size(self, body: Mapping[str, Any]) -> int:
        return size_of(messages_of(body))

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody:
        return render_error(error, request_id, path)

    def cost_note(self, cost: bytes) -> bytes:
        return cost_comment(cost)

    def error_event(self, error: MoyinError, request_id: str) -> bytes:
        return error_event(error, request_id)


class OpenAICodec(_Dialect):
    """Reads chat completions, writes OpenAI's errors."""

    path = "/chat/completions"

    def check_shape(self, answer: Mapping[str, Any]) -> None:
        if not isinstance(answer.get("choices"), list):
            raise shapeless()

    def completed(self, body: bytes, answer: dict[str, Any], estimate: Usage | None) -> bytes:
        missing = complete(answer)
        if estimate is not None:
            answer["usage"] = usage_body(estimate)
        return to_json(answer) if missing or estimate is not None else body

    def parse(self, body: bytes) -> OpenAICall:
        data = parse_object(body)
        return OpenAICall(body, data, validated(wire.ChatBody, data))


class OpenAIEmbeddings(_Dialect):
    """Reads requests for embeddings."""

    path = "/embeddings"

    def check_shape(self, answer: Mapping[str, Any]) -> None:
        if not isinstance(answer.get("data"), list):
            raise shapeless()

    def completed(self, body: bytes, answer: dict[str, Any], estimate: Usage | None) -> bytes:
        if estimate is None:
            return body
        tokens = estimate.prompt_tokens
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        return to_json(answer)

    def parse(self, body: bytes) -> EmbedCall:
        data = parse_object(body)
        return EmbedCall(body, data, validated(embeddings.EmbedBody, data))
