"""Provides an in-memory model back end for unit tests of `moyin.text`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.chat import (
    ChatRequest,
    ChatResponse,
    Delta,
    EmbeddingRequest,
    EmbeddingResponse,
    Finished,
    Started,
    StopReason,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolArguments,
    ToolStarted,
    ToolUse,
)
from moyin.domain.money import Usage
from moyin.domain.needs import Model, Needs
from moyin.errors import MoyinError, RequestError

T = TypeVar("T")


def make_text_response(text: str = "Hello", *, model: str = "fake") -> ChatResponse:
    """Return a text response with seven input tokens and one output token per word."""
    usage = Usage(input_tokens=7, output_tokens=len(text.split()))
    return ChatResponse(
        id="answer-1", model=model, parts=(Text(text=text),), stop=StopReason.END, usage=usage
    )


def split_into_deltas(response: ChatResponse) -> list[Delta]:
    """Return the deltas with which a back end would stream ``response``, word by word."""
    deltas: list[Delta] = [Started(id=response.id, model=response.model)]
    tool_index = 0
    for part in response.parts:
        match part:
            case Text():
                deltas += [
                    TextDelta(text=word, refusal=part.refusal) for word in _split_words(part.text)
                ]
            case Thinking():
                deltas += [ThinkingDelta(text=word) for word in _split_words(part.text)]
                if part.signature or part.redacted:
                    deltas.append(ThinkingDelta(signature=part.signature, redacted=part.redacted))
            case ToolUse():
                deltas.append(ToolStarted(index=tool_index, id=part.id, name=part.name))
                middle = len(part.arguments) // 2
                for fragment in (part.arguments[:middle], part.arguments[middle:]):
                    deltas.append(ToolArguments(index=tool_index, fragment=fragment))
                tool_index += 1
    last_delta = Finished(
        stop=response.stop, usage=response.usage, stop_sequence=response.stop_sequence
    )
    return [*deltas, last_delta]


def _split_words(text: str) -> list[str]:
    return re.findall(r"\S+ *| +", text)


class FakeBackend:
    """A model back end that returns configured responses and records its requests.

    Attributes:
        error: error to raise instead of a response; a stream first has ``chunks_before_error``
            chunks.
        unsupported_error: error to raise for each translated request, as if the back end did not
            support a feature.
        requests: all requests in order, both translated and raw.
        closed_early: number of streams that were closed before their end.
    """

    fetches_pictures = False
    streams_by_token = True
    can_count_tokens = False
    reads_files = True
    overrides: Mapping[str, Any] = {}

    def __init__(
        self,
        answer: ChatResponse | None = None,
        *,
        raw: bytes = b'{"choices":[],"content":[]}',
        raw_stream: Sequence[bytes] = (),
        error: MoyinError | None = None,
        chunks_before_error: int = 0,
        api_format: ApiFormat = ApiFormat.OPENAI,
        unsupported_error: RequestError | None = None,
    ) -> None:
        self.answer = answer or make_text_response()
        self.raw = raw
        self.raw_stream = raw_stream
        self.error = error
        self.chunks_before_error = chunks_before_error
        self.api_format = api_format
        self.requests: list[ChatRequest | EmbeddingRequest | RawRequest] = []
        self.unsupported_error = unsupported_error
        self.closed_early = 0
        self.closed = False

    def build_additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        return {}

    def check_request(self, request: ChatRequest | EmbeddingRequest) -> None:
        if self.unsupported_error is not None:
            raise self.unsupported_error

    async def forward(self, request: RawRequest) -> bytes:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return self.raw

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        self.requests.append(request)
        async with aclosing(self._replay(self.raw_stream)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        self.check_request(request)
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return self.answer

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        self.check_request(request)
        self.requests.append(request)
        async with aclosing(self._replay(split_into_deltas(self.answer))) as deltas:
            async for delta in deltas:
                yield delta

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        vectors = tuple((float(len(text)), 1.0) for text in request.inputs)
        usage = Usage(input_tokens=sum(len(text.split()) for text in request.inputs))
        return EmbeddingResponse(model=self.answer.model, vectors=vectors, usage=usage)

    async def probe(self) -> None:
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.closed = True

    async def _replay(self, items: Sequence[T]) -> AsyncGenerator[T, None]:
        is_ended = False
        try:
            for index, item in enumerate(items):
                if self.error is not None and index >= self.chunks_before_error:
                    is_ended = True
                    raise self.error
                await asyncio.sleep(0)
                yield item
            is_ended = True
            if self.error is not None:
                raise self.error
        finally:
            self.closed_early += not is_ended
