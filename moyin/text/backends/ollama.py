"""Implements the back end for Ollama's API.

Requests in another API format are translated and sent through the ``ollama`` SDK. Requests in
Ollama's own format are forwarded as bytes without the SDK.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
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
    Text,
    Thinking,
)
from moyin.domain.needs import Model, Needs
from moyin.errors import BackendTimeout, BackendUnavailable, Overloaded, StreamInterrupted
from moyin.text.backends.http import (
    Endpoint,
    FixedEndpoint,
    HttpClient,
    RawResponse,
    iterate_until_deadline,
)
from moyin.text.backends.learned_limit import LearnedLimit, TrackedCall
from moyin.text.backends.ollama_models import DEFAULT_TAG, HostModels
from moyin.text.backends.response_errors import error_from_status, validate_embeddings
from moyin.text.protocol.ollama.request_to_upstream import (
    chat_request_to_upstream,
    choose_context_window,
    embedding_request_to_upstream,
)
from moyin.text.protocol.ollama.response import (
    chat_response_to_domain,
    create_response_id,
    embedding_response_to_domain,
    message_to_deltas,
    read_generation_seconds,
    read_stop_reason,
    usage_to_domain,
)

_CONNECT_SECONDS = 5.0
_PROBE_SECONDS = 3.0
_CHAT_PATH = "/api/chat"
_EMBED_PATH = "/api/embed"
# The context length in tokens of models for which neither the configuration nor the host has one.
DEFAULT_CONTEXT = 4096


class _OllamaClient(ollama.AsyncClient):
    """SDK client that sends request bodies unchanged.

    The SDK's own ``chat`` converts the body to its types. That drops most members of a tool's JSON
    schema, and reads an image from the local disk if its value looks like a path.

    All methods raise the SDK's errors, or ValueError for a malformed response.
    """

    async def request_chat(self, body: Mapping[str, Any]) -> ollama.ChatResponse:
        with _check_json_object():
            return await self._request(ollama.ChatResponse, "POST", "/api/chat", json=body)

    async def request_chat_stream(
        self, body: Mapping[str, Any]
    ) -> AsyncGenerator[ollama.ChatResponse, None]:
        untyped_responses = await self._request(
            ollama.ChatResponse, "POST", "/api/chat", json=body, stream=True
        )
        responses = cast(AsyncGenerator[ollama.ChatResponse, None], untyped_responses)
        async with aclosing(responses):
            with _check_json_object():
                async for response in responses:
                    yield response

    async def request_embeddings(self, body: Mapping[str, Any]) -> ollama.EmbedResponse:
        with _check_json_object():
            return await self._request(ollama.EmbedResponse, "POST", "/api/embed", json=body)

    async def request_version(self, timeout_seconds: float) -> None:
        response = await self._client.get("/api/version", timeout=timeout_seconds)
        response.raise_for_status()


class OllamaBackend:
    """Implements `ModelBackend` and `PassThroughBackend` for Ollama's API.

    Args:
        host: base URL of the server.
        contexts: configured context lengths in tokens, by Ollama's name of the model.
        models: the models on the host's disk, for context lengths that are not configured.
        limit: learns how many calls the host runs concurrently; None if the configuration sets a
            fixed number.
        max_connections: maximum number of concurrent connections to the server.
    """

    api_format = ApiFormat.OLLAMA
    fetches_pictures = False
    streams_by_token = True
    can_count_tokens = False
    reads_files = False
    overrides: Mapping[str, Any] = {}

    def __init__(
        self,
        host: str,
        *,
        contexts: Mapping[str, int],
        max_connections: int,
        models: HostModels | None = None,
        limit: LearnedLimit | None = None,
    ) -> None:
        self._host = host
        self._http = HttpClient(
            FixedEndpoint(Endpoint(url=host)),
            credentials=lambda key: {},
            max_connections=max_connections,
        )
        self._contexts = contexts
        self._models = models or HostModels()
        self._limit = limit
        self._max_connections = max_connections
        self._sdk: _OllamaClient | None = None

    def build_additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        prompt_tokens, max_tokens = needs.prompt_tokens, needs.max_tokens
        if needs.embeddings:
            prompt_tokens, max_tokens = needs.longest_input or prompt_tokens, 0
        return {
            "options": {"num_ctx": choose_context_window(prompt_tokens, max_tokens, model.context)}
        }

    async def forward(self, request: RawRequest) -> bytes:
        with self._track_call(request.path, len(request.body)) as call:
            body = await self._http.post(request.path, request.body, request.deadline)
            call.record_first_token(read_generation_seconds(body))
            return body

    async def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        pieces = self._http.stream(request.path, request.body, request.deadline)
        with self._track_call(request.path, len(request.body)) as call:
            async with aclosing(pieces):
                async for piece in pieces:
                    call.record_first_token()
                    yield piece

    def check_request(self, request: ChatRequest | EmbeddingRequest) -> None:
        if isinstance(request, ChatRequest):
            context = self._find_context(request.model)
            chat_request_to_upstream(request, context=context, stream=False)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        body = chat_request_to_upstream(
            request, context=self._find_context(request.model), stream=False
        )
        with self._track_call(_CHAT_PATH, _measure_prompt(request)) as call, _translate_errors():
            async with asyncio.timeout_at(deadline):
                response = await self._get_sdk().request_chat(body)
            call.record_first_token((response.eval_duration or 0) / 1e9)
        return chat_response_to_domain(response.model_dump())

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        deltas = self._stream(request, deadline)
        with self._track_call(_CHAT_PATH, _measure_prompt(request)) as call:
            async with aclosing(deltas):
                async for delta in deltas:
                    call.record_first_token()
                    yield delta

    async def _stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        context = self._find_context(request.model)
        body = chat_request_to_upstream(request, context=context, stream=True)
        responses = self._get_sdk().request_chat_stream(body)
        tool_count, has_started = 0, False
        try:
            async with (
                aclosing(responses),
                aclosing(iterate_until_deadline(deadline, responses)) as timed_responses,
            ):
                async for response in timed_responses:
                    if not has_started:
                        has_started = True
                        yield Started(
                            id=create_response_id(), model=str(response.model or request.model)
                        )
                    deltas = message_to_deltas(
                        response.message.model_dump(),
                        earlier_tool_count=tool_count,
                        logprobs=[token.model_dump() for token in response.logprobs or ()],
                    )
                    tool_count += len(response.message.tool_calls or ())
                    for delta in deltas:
                        yield delta
                    if response.done:
                        last_response = response.model_dump()
                        yield Finished(
                            stop=read_stop_reason(last_response, has_tool_calls=tool_count > 0),
                            usage=usage_to_domain(last_response),
                        )
                        return
        except (ollama.ResponseError, httpx.HTTPError, TimeoutError, ValueError, OSError) as error:
            raise _translate_stream_error(error, has_started=has_started) from None
        raise StreamInterrupted(
            'the Ollama server ended the stream without "done": true; retry later'
        )

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        body = embedding_request_to_upstream(request, context=self._find_context(request.model))
        size = sum(map(len, request.inputs))
        with self._track_call(_EMBED_PATH, size) as call, _translate_errors():
            async with asyncio.timeout_at(deadline):
                response = await self._get_sdk().request_embeddings(body)
            call.record_first_token()
        return validate_embeddings(embedding_response_to_domain(response.model_dump()), request)

    async def list_resident_models(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the models in the server's memory by name, as ``GET /api/ps`` describes them.

        Models with the same weights share the memory. The server lists only one of their names; the
        result has all of them.
        """
        descriptions = await list_resident_models(self._http)
        models_by_name: dict[str, Mapping[str, Any]] = {}
        for name, description in descriptions.items():
            for model_name in (name, *self._models.find_names_sharing_weights(frozenset({name}))):
                models_by_name[model_name] = models_by_name[
                    model_name.removesuffix(DEFAULT_TAG)
                ] = description
        return models_by_name

    async def refresh_models(self) -> bool:
        """Reload the list of models on the host's disk; return True if it changed."""
        return await self._models.refresh(self._http)

    def forward_request(
        self, method: str, path: str, data: bytes | AsyncIterable[bytes] | None
    ) -> AbstractAsyncContextManager[RawResponse]:
        """Forward a request that does not call a model; see `HttpClient.forward_request`."""
        return self._http.forward_request(method, path, data)

    @contextmanager
    def _track_call(self, kind: str, size: int) -> Iterator[TrackedCall]:
        """Track a call for the learned limit during the ``with`` block, and yield it.

        If the block raises `Overloaded`, the call is recorded as having waited in the server's
        queue.

        Args:
            kind: a name for similar calls; see `LearnedLimit.track`.
            size: the approximate size of the request in bytes.
        """
        if self._limit is None:
            yield TrackedCall()
            return
        with self._limit.track(kind, size) as call:
            try:
                yield call
            except Overloaded:
                self._limit.record_waiting(call)
                raise

    def _find_context(self, model: str) -> int:
        if (context := self._contexts.get(model)) is not None:
            return context
        model_file = self._models.find(model)
        return (model_file and model_file.context) or DEFAULT_CONTEXT

    async def probe(self) -> None:
        with _translate_errors():
            await self._get_sdk().request_version(_PROBE_SECONDS)

    async def close(self) -> None:
        await self._http.close()
        if self._sdk is not None:
            await self._sdk.close()  # type: ignore[no-untyped-call]

    def _get_sdk(self) -> _OllamaClient:
        if self._sdk is None:
            self._sdk = _OllamaClient(
                host=self._host,
                timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS, pool=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=self._max_connections),
                follow_redirects=False,
            )
        return self._sdk


def _measure_prompt(request: ChatRequest) -> int:
    """Return the size of the prompt in characters, an estimate of the request's size in bytes."""
    text_lengths = [len(part.text) for part in request.system]
    text_lengths += [
        len(part.text)
        for message in request.messages
        for part in message.parts
        if isinstance(part, Text | Thinking)
    ]
    return sum(text_lengths)


def _translate_stream_error(error: Exception, *, has_started: bool) -> Exception:
    if has_started:
        return StreamInterrupted(
            "the Ollama server closed the connection during its response; retry later"
        )
    try:
        with _translate_errors():
            raise error
    except Exception as translated_error:
        return translated_error


@contextmanager
def _check_json_object() -> Iterator[None]:
    """Turn the SDK's TypeError for a response that is no JSON object into a ValueError.

    The SDK must be called in the ``with`` block.
    """
    try:
        yield
    except (TypeError, AttributeError):
        raise ValueError("the Ollama server's response is not a JSON object") from None


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except ollama.ResponseError as error:
        message = error.error if isinstance(error.error, str) else ""
        raise error_from_status(error.status_code, message, None) from None
    except httpx.HTTPStatusError as error:
        raise error_from_status(error.response.status_code, "", None) from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, ConnectionError):
        raise BackendUnavailable(
            "cannot connect to the Ollama server; check that it is running"
        ) from None
    except (httpx.TimeoutException, TimeoutError):
        raise BackendTimeout(
            "the Ollama server did not respond within the timeout; retry later"
        ) from None
    except (httpx.HTTPError, ValueError):
        raise BackendUnavailable(
            "the Ollama server's response is malformed; check its URL in the configuration",
            may_be_billed=True,
        ) from None


async def list_resident_models(http: HttpClient) -> dict[str, Mapping[str, Any]]:
    """Return the models that ``GET /api/ps`` lists as being in the server's memory, by name.

    Raises:
        BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the call failed.
    """
    body = await http.get("/api/ps", _PROBE_SECONDS)
    try:
        return {str(model["name"]): dict(model) for model in from_json(body)["models"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackendUnavailable(
            "the Ollama server's response to /api/ps is malformed; check its URL in the configuration"
        ) from None
