"""Adapts an Ollama host. Translated calls use the ``ollama`` SDK; forwarded bytes bypass it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, cast

import httpx
import ollama
from pydantic_core import from_json

from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.chat import (
    ChatRequest,
    ChatResponse,
    Delta,
    EmbeddingRequest,
    EmbeddingResponse,
    Finished,
    Started,
)
from moyin.domain.needs import Model, Needs
from moyin.errors import BackendTimeout, BackendUnavailable, StreamInterrupted
from moyin.text.backends.http import Endpoint, FixedEndpoint, HttpClient, iterate_until
from moyin.text.backends.response_errors import error_from_status, validate_embeddings
from moyin.text.protocol.ollama.request_to_upstream import (
    chat_request_to_upstream,
    context_window,
    embedding_request_to_upstream,
)
from moyin.text.protocol.ollama.response import (
    chat_response_to_domain,
    embedding_response_to_domain,
    message_to_deltas,
    new_response_id,
    stop_reason,
    usage_to_domain,
)

__all__ = ["OllamaBackend", "resident_models"]

_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 3.0


class _Client(ollama.AsyncClient):
    """Sends request bodies unchanged through the SDK.

    The SDK's ``chat`` rebuilds the body from its own types. These keep only four members of a
    tool's JSON schema, and read an image from the local disk if its value looks like a path.

    Methods raise the SDK's errors, and ValueError for a malformed response.
    """

    async def chat_response(self, body: Mapping[str, Any]) -> ollama.ChatResponse:
        with _object_errors():
            return await self._request(ollama.ChatResponse, "POST", "/api/chat", json=body)

    async def chat_stream(
        self, body: Mapping[str, Any]
    ) -> AsyncGenerator[ollama.ChatResponse, None]:
        objects = await self._request(
            ollama.ChatResponse, "POST", "/api/chat", json=body, stream=True
        )
        pieces = cast(AsyncGenerator[ollama.ChatResponse, None], objects)
        async with aclosing(pieces):
            with _object_errors():
                async for piece in pieces:
                    yield piece

    async def embed_inputs(self, body: Mapping[str, Any]) -> ollama.EmbedResponse:
        with _object_errors():
            return await self._request(ollama.EmbedResponse, "POST", "/api/embed", json=body)

    async def check_version(self, seconds: float) -> None:
        response = await self._client.get("/api/version", timeout=seconds)
        response.raise_for_status()


class OllamaBackend:
    """Implements `ModelBackend` and `PassThroughBackend` for Ollama's API.

    Args:
        host: URL of the server.
        contexts: the context of each model, by Ollama's name of the model.
        connections: the number of concurrent connections to the server.
    """

    api_format = ApiFormat.OLLAMA
    fetches_pictures = False
    streams_by_token = True
    can_count_tokens = False
    overrides: Mapping[str, Any] = {}

    def __init__(self, host: str, *, contexts: Mapping[str, int], connections: int) -> None:
        self._host = host
        self._http = HttpClient(
            FixedEndpoint(Endpoint(url=host)), credentials=lambda key: {}, connections=connections
        )
        self._contexts = contexts
        self._connections = connections
        self._sdk: _Client | None = None

    def additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        tokens, limit = needs.prompt_tokens, needs.max_tokens
        if needs.embeddings:
            tokens, limit = needs.longest_input or tokens, 0
        return {"options": {"num_ctx": context_window(tokens, limit, model.context)}}

    async def forward(self, request: RawRequest) -> bytes:
        return await self._http.post(request.path, request.body, request.deadline)

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        return self._http.stream(request.path, request.body, request.deadline)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        body = chat_request_to_upstream(
            request, context=self._contexts[request.model], stream=False
        )
        with _translated_errors():
            async with asyncio.timeout_at(deadline):
                response = await self._client().chat_response(body)
        return chat_response_to_domain(response.model_dump())

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        body = chat_request_to_upstream(request, context=self._contexts[request.model], stream=True)
        objects = self._client().chat_stream(body)
        tools, started = 0, False
        try:
            async with aclosing(objects), aclosing(iterate_until(deadline, objects)) as pieces:
                async for piece in pieces:
                    if not started:
                        started = True
                        yield Started(id=new_response_id(), model=str(piece.model or request.model))
                    deltas = message_to_deltas(piece.message.model_dump(), tools_before=tools)
                    tools += len(piece.message.tool_calls or ())
                    for delta in deltas:
                        yield delta
                    if piece.done:
                        final = piece.model_dump()
                        yield Finished(
                            stop=stop_reason(final, used_tools=tools > 0),
                            usage=usage_to_domain(final),
                        )
                        return
        except (ollama.ResponseError, httpx.HTTPError, TimeoutError, ValueError, OSError) as error:
            raise _stream_error(error, started=started) from None
        raise StreamInterrupted("the back end ended the stream early")

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        body = embedding_request_to_upstream(request, context=self._contexts[request.model])
        with _translated_errors():
            async with asyncio.timeout_at(deadline):
                response = await self._client().embed_inputs(body)
        return validate_embeddings(embedding_response_to_domain(response.model_dump()), request)

    async def resident_models(self) -> frozenset[str]:
        """Return the names of the models in the host's memory, without using tokens."""
        return await resident_models(self._http)

    async def probe(self) -> None:
        with _translated_errors():
            await self._client().check_version(_PROBE_SECONDS)

    async def close(self) -> None:
        await self._http.close()
        if self._sdk is not None:
            await self._sdk.close()  # type: ignore[no-untyped-call]

    def _client(self) -> _Client:
        if self._sdk is None:
            self._sdk = _Client(
                host=self._host,
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=self._connections),
                follow_redirects=False,
            )
        return self._sdk


def _stream_error(error: Exception, *, started: bool) -> Exception:
    if started:
        return StreamInterrupted("the back end closed the connection during its response")
    try:
        with _translated_errors():
            raise error
    except Exception as translated_error:
        return translated_error


@contextmanager
def _object_errors() -> Iterator[None]:
    """Translate the SDK's errors for JSON that is not an object, which it does not check."""
    try:
        yield
    except (TypeError, AttributeError):
        raise ValueError("not a JSON object") from None


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except ollama.ResponseError as error:
        message = error.error if isinstance(error.error, str) else ""
        raise error_from_status(error.status_code, message, None) from None
    except httpx.HTTPStatusError as error:
        raise error_from_status(error.response.status_code, "", None) from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, ConnectionError):
        raise BackendUnavailable("the back end is unreachable") from None
    except (httpx.TimeoutException, TimeoutError):
        raise BackendTimeout("the back end did not respond in time") from None
    except (httpx.HTTPError, ValueError):
        raise BackendUnavailable("the back end returned a malformed response") from None


_DEFAULT_TAG = ":latest"


async def resident_models(http: HttpClient) -> frozenset[str]:
    """Return the models that ``GET /api/ps`` lists; ``llama3.2:latest`` is also ``llama3.2``.

    Raises:
        BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the call failed.
    """
    body = await http.get("/api/ps", _PROBE_SECONDS)
    try:
        return frozenset(_names(from_json(body)["models"]))
    except (ValueError, KeyError, TypeError):
        raise BackendUnavailable("the back end returned a malformed response") from None


def _names(models: list[dict[str, str]]) -> Iterator[str]:
    for model in models:
        yield model["name"]
        yield model["name"].removesuffix(_DEFAULT_TAG)
