"""Claude, and servers that speak its protocol.

Translated calls go through the ``anthropic`` SDK; passing bytes go around it, since its parser
costs a streamed event eight times as much.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import anthropic
import httpx2
from anthropic.types import Message

from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.chat import ChatRequest, ChatResponse, Delta, EmbeddingRequest, EmbeddingResponse
from moyin.domain.needs import Model, Needs
from moyin.errors import (
    BackendTimeout,
    BackendUnavailable,
    MoyinError,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.text.backends.endpoint import Endpoint, Fixed
from moyin.text.backends.http import HttpClient, iterate_until
from moyin.text.backends.responses import error_from_status
from moyin.text.protocol.anthropic.request_to_upstream import chat_request_to_upstream
from moyin.text.protocol.anthropic.response import chat_response_to_domain
from moyin.text.protocol.anthropic.stream import EventReader

__all__ = ["CLAUDE_URL", "AnthropicBackend"]

CLAUDE_URL = "https://api.anthropic.com"

_VERSION = {"anthropic-version": "2023-06-01"}
_PROBE_SECONDS = 5.0
# The SDK types no sampling, which older Claude models and other servers know.
_UNTYPED = ("temperature", "top_p", "top_k")


class AnthropicBackend:
    """A `ModelBackend` and `PassThroughBackend`.

    Args:
        endpoint: ``url`` without ``/v1``, as the SDK wants it.
        connections: to the server, at most.
    """

    api_format = ApiFormat.ANTHROPIC
    streams_by_token = False
    can_count_tokens = True
    overrides: Mapping[str, Any] = {}

    def __init__(self, endpoint: Endpoint, *, connections: int) -> None:
        # Claude fetches from its own network; a server of the same protocol may stand in ours.
        self.fetches_pictures = endpoint.url == CLAUDE_URL
        self._endpoint = endpoint
        self._sdk: anthropic.AsyncAnthropic | None = None
        self._http = HttpClient(
            Fixed(endpoint), credentials=lambda key: {"x-api-key": key}, connections=connections
        )

    def additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        return {}

    async def forward(self, request: RawRequest) -> bytes:
        headers = {**_VERSION, **request.headers}
        return await self._http.post(f"/v1{request.path}", request.body, request.deadline, headers)

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        headers = {**_VERSION, **request.headers}
        return self._http.stream(f"/v1{request.path}", request.body, request.deadline, headers)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        arguments = _arguments(request, deadline)
        with _sorted_errors():
            async with asyncio.timeout_at(deadline):
                message = await self._client().messages.create(**arguments)
        # What is no JSON by its content type, the SDK hands over as text.
        if not isinstance(message, Message):
            raise BackendUnavailable("the back end's answer is not JSON")
        return chat_response_to_domain(message.to_dict(mode="json"))

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        arguments = _arguments(request, deadline)
        reader = EventReader()
        with _sorted_errors():
            events = await self._client().messages.create(**arguments, stream=True)
        started = False
        try:
            async with events, aclosing(iterate_until(deadline, aiter(events))) as pieces:
                async for event in pieces:
                    # What is JSON but no object, the SDK hands over as it is.
                    if not isinstance(event, anthropic.BaseModel):
                        raise StreamInterrupted("the back end sent an event of an unknown shape")
                    for delta in reader.feed(event.to_dict(mode="json")):
                        started = True
                        yield delta
        except (anthropic.AnthropicError, httpx2.HTTPError, ValueError, OSError) as error:
            raise _stream_error(error, started=started) from None
        if not reader.finished:
            raise StreamInterrupted("the back end ended its answer early")

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        raise UnsupportedFeature("Claude makes no embeddings", field="model")

    async def probe(self) -> None:
        await self._http.get("/v1/models", _PROBE_SECONDS)

    async def close(self) -> None:
        await self._http.close()
        if self._sdk is not None:
            await self._sdk.close()

    def _client(self) -> anthropic.AsyncAnthropic:
        if self._sdk is None:
            # No retries of its own: the dispatcher falls back to another back end instead.
            self._sdk = anthropic.AsyncAnthropic(
                api_key=self._endpoint.key,
                base_url=self._endpoint.url,
                max_retries=0,
                http_client=anthropic.DefaultAioHttpClient(),
            )
        return self._sdk


def _arguments(request: ChatRequest, deadline: float) -> dict[str, Any]:
    body = chat_request_to_upstream(request)
    untyped = {name: body.pop(name) for name in _UNTYPED if name in body}
    remaining = deadline - asyncio.get_running_loop().time()
    return {**body, "extra_body": untyped or None, "timeout": max(remaining, 0.001)}


def _stream_error(error: Exception, *, started: bool) -> MoyinError:
    if started:
        late = isinstance(error, TimeoutError | httpx2.TimeoutException)
        return StreamInterrupted(
            "the answer took longer than its deadline" if late else "the back end cut its answer"
        )
    if isinstance(error, anthropic.APIStatusError) and error.status_code == 200:
        # An error that is said by an event.
        return BackendUnavailable("the back end broke off with an error")
    try:
        with _sorted_errors():
            raise error
    except MoyinError as sorted_error:
        return sorted_error


@contextmanager
def _sorted_errors() -> Iterator[None]:
    try:
        yield
    except anthropic.APIStatusError as error:
        told = error.body.get("error") if isinstance(error.body, dict) else None
        message = str(told.get("message", "")) if isinstance(told, dict) else ""
        raise error_from_status(
            error.status_code, message, error.response.headers.get("retry-after")
        ) from None
    except (anthropic.APITimeoutError, httpx2.TimeoutException, TimeoutError):
        raise BackendTimeout("the back end did not answer in time") from None
    except anthropic.APIConnectionError:
        raise BackendUnavailable("the back end can't be reached") from None
    except (httpx2.HTTPError, OSError):
        # Of a body that is cut: the SDK sorts only what comes before it.
        raise BackendUnavailable("the back end cut its answer") from None
    except (anthropic.AnthropicError, ValueError):
        raise BackendUnavailable("the back end's answer has not the shape of one") from None
