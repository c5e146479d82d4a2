"""Implements the back end for Claude and other servers with Anthropic's API.

Requests in another API format are translated and sent through the ``anthropic`` SDK. Requests in
Anthropic's own format are forwarded as bytes without the SDK, because its parser makes a streamed
event eight times as expensive.
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
    ModelNotFound,
    MoyinError,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.text.backends.anthropic_batches import AnthropicBatches
from moyin.text.backends.http import (
    AUTHORIZATION,
    Endpoint,
    FixedEndpoint,
    HttpClient,
    build_credentials,
    iterate_until_deadline,
)
from moyin.text.backends.response_errors import error_from_status
from moyin.text.protocol.anthropic.request_to_upstream import chat_request_to_upstream
from moyin.text.protocol.anthropic.response import chat_response_to_domain
from moyin.text.protocol.anthropic.stream import EventReader

CLAUDE_URL = "https://api.anthropic.com"

_VERSION_HEADER = {"anthropic-version": "2023-06-01"}
_PROBE_SECONDS = 5.0
# The SDK has no parameters for sampling, which older Claude models and other servers support.
_UNTYPED_PARAMETERS = ("temperature", "top_p", "top_k")


class AnthropicBackend:
    """Implements `ModelBackend` and `PassThroughBackend` for Anthropic's API.

    Args:
        endpoint: the server's base URL without ``/v1``, and its API key.
        connections: maximum number of concurrent connections to the server.
        auth_header: header with the API key; ``authorization`` means a bearer token.

    Attributes:
        batches: the client of the server's batch API.
    """

    api_format = ApiFormat.ANTHROPIC
    streams_by_token = False
    can_count_tokens = True
    reads_files = True
    overrides: Mapping[str, Any] = {}

    def __init__(
        self, endpoint: Endpoint, *, connections: int, auth_header: str = "x-api-key"
    ) -> None:
        # Claude fetches pictures from its own network. Another server may be in ours, and must not
        # fetch a URL that a client chose.
        self.fetches_pictures = endpoint.url == CLAUDE_URL
        self._endpoint = endpoint
        self._auth_header = auth_header
        self._sdk: anthropic.AsyncAnthropic | None = None
        self._http = HttpClient(
            FixedEndpoint(endpoint),
            credentials=lambda key: build_credentials(auth_header, key),
            connections=connections,
        )
        self.batches = AnthropicBatches(self._http)

    def build_additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        return {}

    async def forward(self, request: RawRequest) -> bytes:
        headers = {**_VERSION_HEADER, **request.headers}
        return await self._http.post(f"/v1{request.path}", request.body, request.deadline, headers)

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        headers = {**_VERSION_HEADER, **request.headers}
        return self._http.stream(f"/v1{request.path}", request.body, request.deadline, headers)

    def check_request(self, request: ChatRequest | EmbeddingRequest) -> None:
        if isinstance(request, EmbeddingRequest):
            raise _new_no_embeddings_error()
        chat_request_to_upstream(request)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        arguments = _build_sdk_arguments(request, deadline)
        with _translate_errors():
            async with asyncio.timeout_at(deadline):
                message = await self._get_sdk().messages.create(**arguments)
        # The SDK returns a response as text if its content type is not JSON.
        if not isinstance(message, Message):
            raise BackendUnavailable(
                "the back end's response to /v1/messages is not JSON", may_be_billed=True
            )
        return chat_response_to_domain(message.to_dict(mode="json"))

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        arguments = _build_sdk_arguments(request, deadline)
        reader = EventReader()
        with _translate_errors():
            events = await self._get_sdk().messages.create(**arguments, stream=True)
        has_started = False
        try:
            async with events, aclosing(iterate_until_deadline(deadline, aiter(events))) as pieces:
                async for event in pieces:
                    # The SDK returns JSON that is not an object unchanged.
                    if not isinstance(event, anthropic.BaseModel):
                        raise StreamInterrupted(
                            "the back end sent an event that is not a JSON object"
                        )
                    for delta in reader.feed(event.to_dict(mode="json")):
                        has_started = True
                        yield delta
        except (anthropic.AnthropicError, httpx2.HTTPError, ValueError, OSError) as error:
            raise _translate_stream_error(error, has_started=has_started) from None
        if not reader.is_finished:
            raise StreamInterrupted("the back end ended the stream without the event message_stop")

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        raise _new_no_embeddings_error()

    async def probe(self) -> None:
        try:
            await self._http.get("/v1/models", _PROBE_SECONDS)
        except ModelNotFound:
            # The server is up but has no list of models, as with Claude on Bedrock, Vertex or
            # Azure.
            return

    async def close(self) -> None:
        await self._http.close()
        if self._sdk is not None:
            await self._sdk.close()

    def _get_sdk(self) -> anthropic.AsyncAnthropic:
        if self._sdk is None:
            endpoint = self._endpoint
            is_bearer = self._auth_header == AUTHORIZATION
            credentials: dict[str, Any] = {}
            if not is_bearer:
                # The SDK also sends `api_key` as a bearer token.
                credentials = {AUTHORIZATION: anthropic.Omit()}
                credentials |= build_credentials(self._auth_header, endpoint.key)
            # No retries in the SDK, because the router falls back to another back end.
            self._sdk = anthropic.AsyncAnthropic(
                # The SDK sends a bearer token itself, and requires a key or a token.
                api_key=None if is_bearer else endpoint.key,
                auth_token=endpoint.key if is_bearer else None,
                base_url=endpoint.url,
                default_headers={**endpoint.headers, **credentials},
                max_retries=0,
                http_client=anthropic.DefaultAioHttpClient(),
            )
        return self._sdk


def _new_no_embeddings_error() -> UnsupportedFeature:
    return UnsupportedFeature(
        "Anthropic's API has no embeddings; use a model of another back end", field="model"
    )


def _build_sdk_arguments(request: ChatRequest, deadline: float) -> dict[str, Any]:
    body = chat_request_to_upstream(request)
    untyped_parameters = {name: body.pop(name) for name in _UNTYPED_PARAMETERS if name in body}
    seconds_left = deadline - asyncio.get_running_loop().time()
    return {**body, "extra_body": untyped_parameters or None, "timeout": max(seconds_left, 0.001)}


def _translate_stream_error(error: Exception, *, has_started: bool) -> MoyinError:
    if has_started:
        is_timeout = isinstance(error, TimeoutError | httpx2.TimeoutException)
        return StreamInterrupted(
            "the back end's response exceeded the timeout and was cut off"
            if is_timeout
            else "the back end closed the connection during its response to /v1/messages"
        )
    if isinstance(error, anthropic.APIStatusError) and error.status_code == 200:
        # The first event reports the error.
        return BackendUnavailable("the back end began the stream with an error event; retry later")
    try:
        with _translate_errors():
            raise error
    except MoyinError as translated_error:
        return translated_error


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except anthropic.APIStatusError as error:
        details = error.body.get("error") if isinstance(error.body, dict) else None
        message = str(details.get("message", "")) if isinstance(details, dict) else ""
        raise error_from_status(
            error.status_code, message, error.response.headers.get("retry-after")
        ) from None
    except (anthropic.APITimeoutError, httpx2.TimeoutException, TimeoutError) as error:
        if isinstance(error.__cause__ or error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
            raise BackendUnavailable(
                "cannot connect to the back end for /v1/messages; check that its server is running"
            ) from None
        raise BackendTimeout(
            "the back end did not respond to /v1/messages within the timeout"
        ) from None
    except anthropic.APIConnectionError:
        raise BackendUnavailable(
            "cannot connect to the back end for /v1/messages; check that its server is running"
        ) from None
    except (httpx2.HTTPError, OSError):
        # The connection broke while the body was read. The SDK translates only earlier errors.
        raise BackendUnavailable(
            "the back end closed the connection during its response to /v1/messages",
            may_be_billed=True,
        ) from None
    except (anthropic.AnthropicError, ValueError):
        raise BackendUnavailable(
            "the back end's response to /v1/messages is malformed", may_be_billed=True
        ) from None
