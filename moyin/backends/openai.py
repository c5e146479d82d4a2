"""Servers that speak OpenAI's chat completions: llama.cpp, vLLM, OpenAI itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic_core import from_json, to_json

from moyin.backends.endpoint import Endpoints
from moyin.backends.http import HttpClient
from moyin.domain.backend import RawRequest, Wire
from moyin.domain.chat import ChatAnswer, ChatRequest, Delta
from moyin.errors import BackendUnavailable, StreamInterrupted
from moyin.protocols.openai.answers import answer_of
from moyin.protocols.openai.stream import StreamReader
from moyin.protocols.openai.translate import to_body

__all__ = ["OpenAIBackend"]

_PROBE_SECONDS = 3.0


class OpenAIBackend:
    """A `ModelBackend` and `PassThrough`.

    Args:
        endpoints: of the base URL, such as ``http://127.0.0.1:8080/v1``.
        connections: to the server, at most.
    """

    wire = Wire.OPENAI
    _path = "/chat/completions"

    def __init__(self, endpoints: Endpoints, *, connections: int) -> None:
        self._http = HttpClient(
            endpoints,
            credentials=lambda key: {"authorization": f"Bearer {key}"},
            connections=connections,
        )

    async def forward(self, request: RawRequest) -> bytes:
        return await self._http.post(request.path, request.body, request.deadline)

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        return self._http.stream(request.path, request.body, request.deadline)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatAnswer:
        body = await self._http.post(self._path, to_json(to_body(request, stream=False)), deadline)
        try:
            return answer_of(from_json(body))
        except ValueError:
            raise BackendUnavailable("the back end's answer is not JSON") from None

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        reader = StreamReader()
        body = to_json(to_body(request, stream=True))
        async with aclosing(self._http.stream(self._path, body, deadline)) as pieces:
            async for piece in pieces:
                for delta in reader.feed(piece):
                    yield delta
        if not reader.finished:
            raise StreamInterrupted("the back end ended its answer early")

    async def probe(self) -> None:
        await self._http.get("/models", _PROBE_SECONDS)

    async def close(self) -> None:
        await self._http.close()
