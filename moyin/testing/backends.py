"""A model back end in memory: the twin of `moyin.text.backends` for unit tests."""

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
from moyin.errors import MoyinError

__all__ = ["FakeBackend", "deltas_of", "text_answer"]

T = TypeVar("T")


def text_answer(text: str = "Hello", *, model: str = "fake") -> ChatResponse:
    """An answer of plain text: seven tokens in, as many out as there are words."""
    usage = Usage(input_tokens=7, output_tokens=len(text.split()))
    return ChatResponse(
        id="answer-1", model=model, parts=(Text(text=text),), stop=StopReason.END, usage=usage
    )


def deltas_of(answer: ChatResponse) -> list[Delta]:
    """``answer`` as a stream would bring it, texts cut into words."""
    deltas: list[Delta] = [Started(id=answer.id, model=answer.model)]
    tools = 0
    for part in answer.parts:
        match part:
            case Text():
                deltas += [TextDelta(text=piece) for piece in _pieces(part.text)]
            case Thinking():
                deltas += [ThinkingDelta(text=piece) for piece in _pieces(part.text)]
                if part.signature or part.redacted:
                    deltas.append(ThinkingDelta(signature=part.signature, redacted=part.redacted))
            case ToolUse():
                deltas.append(ToolStarted(index=tools, id=part.id, name=part.name))
                half = len(part.arguments) // 2
                for fragment in (part.arguments[:half], part.arguments[half:]):
                    deltas.append(ToolArguments(index=tools, fragment=fragment))
                tools += 1
    finished = Finished(stop=answer.stop, usage=answer.usage, stop_sequence=answer.stop_sequence)
    return [*deltas, finished]


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S+ *| +", text)


class FakeBackend:
    """Gives the answers that it was told to.

    Attributes:
        error: raised instead of answering; after ``pieces_before_error`` pieces of a stream.
        asked: every request, translated or raw, in order.
        closed_early: streams that were closed before their end.
    """

    fetches_pictures = False
    streams_by_token = True
    can_count_tokens = False
    overrides: Mapping[str, Any] = {}

    def __init__(
        self,
        answer: ChatResponse | None = None,
        *,
        raw: bytes = b'{"choices":[],"content":[]}',
        raw_stream: Sequence[bytes] = (),
        error: MoyinError | None = None,
        pieces_before_error: int = 0,
        api_format: ApiFormat = ApiFormat.OPENAI,
    ) -> None:
        self.answer = answer or text_answer()
        self.raw = raw
        self.raw_stream = raw_stream
        self.error = error
        self.pieces_before_error = pieces_before_error
        self.api_format = api_format
        self.asked: list[ChatRequest | EmbeddingRequest | RawRequest] = []
        self.closed_early = 0
        self.closed = False

    def additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        return {}

    async def forward(self, request: RawRequest) -> bytes:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return self.raw

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        self.asked.append(request)
        async with aclosing(self._told(self.raw_stream)) as pieces:
            async for piece in pieces:
                yield piece

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return self.answer

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        async with aclosing(self._told(deltas_of(self.answer))) as deltas:
            async for delta in deltas:
                yield delta

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        self.asked.append(request)
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

    async def _told(self, items: Sequence[T]) -> AsyncGenerator[T, None]:
        ended = False
        try:
            for number, item in enumerate(items):
                if self.error is not None and number >= self.pieces_before_error:
                    ended = True
                    raise self.error
                await asyncio.sleep(0)
                yield item
            ended = True
            if self.error is not None:
                raise self.error
        finally:
            self.closed_early += not ended
