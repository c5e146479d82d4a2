"""Implements the back end for servers with OpenAI's API: llama.cpp, vLLM and OpenAI itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from moyin.domain.backend import ApiFormat, OpenRequest, OpenResponse, RawRequest
from moyin.domain.chat import ChatRequest, ChatResponse, Delta, EmbeddingRequest, EmbeddingResponse
from moyin.domain.needs import Model, Needs
from moyin.errors import (
    BackendUnavailable,
    ModelNotFound,
    StreamInterrupted,
    UnsupportedFeature,
)
from moyin.http.validation import merge_defaults
from moyin.text.backends.http import (
    AUTHORIZATION,
    EndpointFinder,
    HttpClient,
    build_credentials,
)
from moyin.text.backends.openai_batches import OpenAIBatches
from moyin.text.backends.response_errors import validate_embeddings
from moyin.text.protocol.documents import refuse_documents
from moyin.text.protocol.openai.request_to_upstream import (
    chat_request_to_upstream,
    embedding_request_to_upstream,
)
from moyin.text.protocol.openai.response import (
    chat_response_to_domain,
    embedding_response_to_domain,
)
from moyin.text.protocol.openai.stream import StreamReader

OPENAI_URL = "https://api.openai.com/v1"
_AZURE_DOMAINS = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")

_PROBE_SECONDS = 3.0
# Request members that make a server report the usage in every event of a stream, so that an
# interrupted stream is charged exactly. The key is the member `owned_by` of the server's models;
# servers of another kind may reject these members.
_USAGE_REPORTING: Mapping[str, Mapping[str, Any]] = {
    "llamacpp": {"timings_per_token": True},
    "vllm": {"stream_options": {"continuous_usage_stats": True}},
}
# How each kind of server names the sampling options that OpenAI's API lacks.
_SAMPLING_OPTION_NAMES: Mapping[str, Mapping[str, str]] = {
    "llamacpp": {"min_p": "min_p", "repeat_penalty": "repeat_penalty"},
    "vllm": {"min_p": "min_p", "repeat_penalty": "repetition_penalty"},
}
# Disables thinking, if the template of the model supports it.
_NO_THINKING: Mapping[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
# Disables llama.cpp's reuse of earlier prompts, and the client's choice of a slot.
_NO_PROMPT_CACHE: Mapping[str, Any] = {"cache_prompt": False, "id_slot": -1, "n_cache_reuse": 0}


class OpenAIBackend:
    """Implements `ModelBackend`, `PassThroughBackend` and `OperationBackend` for OpenAI's API.

    Args:
        endpoints: finds the base URL, such as ``http://127.0.0.1:8080/v1``.
        connections: maximum number of concurrent connections to the server.
        auth_header: header with the API key; ``authorization`` means a bearer token.
        health_path: path of the health check; None for no check.
        prompt_cache: True lets llama.cpp reuse the computation of earlier prompts. The timing and
            ``cached_tokens`` then reveal whether another client sent the same prompt.

    Attributes:
        batches: the client of the server's batch API; most servers have none.
    """

    api_format = ApiFormat.OPENAI
    fetches_pictures = False
    streams_by_token = True
    _chat_path = "/chat/completions"

    def __init__(
        self,
        endpoints: EndpointFinder,
        *,
        connections: int,
        auth_header: str = AUTHORIZATION,
        health_path: str | None = "/models",
        prompt_cache: bool = False,
    ) -> None:
        self._owned_by = ""
        self._prompt_cache = prompt_cache
        self._health_path = health_path
        self._endpoints = endpoints
        self._http = HttpClient(
            endpoints,
            credentials=lambda key: build_credentials(auth_header, key),
            connections=connections,
        )
        endpoint = endpoints.known_endpoint
        self.batches = OpenAIBatches(
            self._http, renames_max_tokens=endpoint is not None and _is_openai(endpoint.url)
        )

    def build_additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        return _USAGE_REPORTING.get(self._owned_by, {}) if streams else {}

    @property
    def can_count_tokens(self) -> bool:
        # llama.cpp also has Anthropic's API below the same base URL.
        return self._owned_by == "llamacpp"

    @property
    def reads_files(self) -> bool:
        return self._owned_by not in _SAMPLING_OPTION_NAMES

    @property
    def overrides(self) -> Mapping[str, Any]:
        return _NO_PROMPT_CACHE if self._owned_by == "llamacpp" and not self._prompt_cache else {}

    async def forward(self, request: RawRequest) -> bytes:
        return await self._http.post(request.path, request.body, request.deadline)

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        return self._http.stream(request.path, request.body, request.deadline)

    async def open(self, request: OpenRequest) -> OpenResponse:
        return await self._http.open(request)

    def check_request(self, request: ChatRequest | EmbeddingRequest) -> None:
        if isinstance(request, ChatRequest):
            self._build_request_body(request, stream=False)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        request_body = to_json(self._build_request_body(request, stream=False))
        body = await self._http.post(self._chat_path, request_body, deadline)
        try:
            return chat_response_to_domain(from_json(body))
        except ValueError:
            raise BackendUnavailable(
                "the back end's response to /chat/completions is not JSON", may_be_billed=True
            ) from None

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        reader = StreamReader()
        request_body = self._build_request_body(request, stream=True)
        body = to_json(merge_defaults(request_body, _USAGE_REPORTING.get(self._owned_by, {})))
        async with aclosing(self._http.stream(self._chat_path, body, deadline)) as pieces:
            async for piece in pieces:
                for delta in reader.feed(piece):
                    yield delta
        for delta in reader.flush():
            yield delta
        if not reader.is_finished:
            raise StreamInterrupted("the back end ended the stream without a finish_reason")

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        body = await self._http.post(
            "/embeddings", to_json(embedding_request_to_upstream(request)), deadline
        )
        try:
            return validate_embeddings(embedding_response_to_domain(from_json(body)), request)
        except ValueError:
            raise BackendUnavailable(
                "the back end's response to /embeddings is not JSON", may_be_billed=True
            ) from None

    async def probe(self) -> None:
        if self._health_path is None:
            return
        try:
            models = await self._http.get(self._health_path, _PROBE_SECONDS)
        except ModelNotFound:
            # The server is up, but has no list of models, as on Azure and Bedrock.
            return
        self._owned_by = _read_owned_by(models)

    async def close(self) -> None:
        await self._http.close()

    def _build_request_body(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        if not self.reads_files:
            refuse_documents(request, self._owned_by)
        body = chat_request_to_upstream(request, stream=stream)
        endpoint = self._endpoints.known_endpoint
        if endpoint is not None and _is_openai(endpoint.url) and "max_tokens" in body:
            # OpenAI's reasoning models, also on Azure, reject `max_tokens`; other servers know only `max_tokens`.
            body["max_completion_tokens"] = body.pop("max_tokens")
        return {**body, **self._build_server_members(request), **self.overrides}

    def _build_server_members(self, request: ChatRequest) -> dict[str, Any]:
        """Return the request members that this kind of server accepts beyond OpenAI's API.

        Raises:
            UnsupportedFeature: the request sets a sampling option that the server lacks.
        """
        names = _SAMPLING_OPTION_NAMES.get(self._owned_by, {})
        members: dict[str, Any] = {}
        for name in ("min_p", "repeat_penalty"):
            value = getattr(request.sampling, name)
            if value is None:
                continue
            if name not in names:
                raise UnsupportedFeature(
                    f"the chosen back end does not support {name}; omit it", field=name
                )
            members[names[name]] = value
        if names and request.reasoning is not None and not request.reasoning.enabled:
            members |= _NO_THINKING
        return members


def _is_openai(url: str) -> bool:
    return url == OPENAI_URL or (urlsplit(url).hostname or "").endswith(_AZURE_DOMAINS)


def _read_owned_by(models: bytes) -> str:
    """Return ``owned_by`` of the first model in a list of models; empty if it is missing."""
    try:
        return str(from_json(models)["data"][0]["owned_by"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
