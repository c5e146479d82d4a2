"""Servers that speak OpenAI's chat completions: llama.cpp, vLLM, OpenAI itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json, to_json

from moyin.domain.backend import ApiFormat, RawRequest
from moyin.domain.chat import ChatRequest, ChatResponse, Delta, EmbeddingRequest, EmbeddingResponse
from moyin.domain.needs import Model, Needs
from moyin.errors import BackendUnavailable, StreamInterrupted, UnsupportedFeature
from moyin.http.validation import merged
from moyin.text.backends.endpoint import Endpoints
from moyin.text.backends.http import HttpClient
from moyin.text.backends.responses import check_vectors
from moyin.text.protocol.openai.request_to_upstream import (
    chat_request_to_upstream,
    embedding_request_to_upstream,
)
from moyin.text.protocol.openai.response import (
    chat_response_to_domain,
    embedding_response_to_domain,
)
from moyin.text.protocol.openai.stream import StreamReader

__all__ = ["OPENAI_URL", "OpenAIBackend"]

OPENAI_URL = "https://api.openai.com/v1"

_PROBE_SECONDS = 3.0
# What makes a server count in every piece of a stream, so that a cut one is booked to the token; by
# whom the server's list of models names. Others may refuse a member they don't know.
_COUNTING: Mapping[str, Mapping[str, Any]] = {
    "llamacpp": {"timings_per_token": True},
    "vllm": {"stream_options": {"continuous_usage_stats": True}},
}
# What servers call the samplers that OpenAI has not.
_SAMPLERS: Mapping[str, Mapping[str, str]] = {
    "llamacpp": {"min_p": "min_p", "repeat_penalty": "repeat_penalty"},
    "vllm": {"min_p": "min_p", "repeat_penalty": "repetition_penalty"},
}
# What makes these servers' models answer without thinking, where their template knows of it.
_NO_THINKING: Mapping[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
# What keeps llama.cpp from reusing what it keeps of other prompts, and clients from choosing whose.
_FORGETTING: Mapping[str, Any] = {"cache_prompt": False, "id_slot": -1, "n_cache_reuse": 0}


class OpenAIBackend:
    """A `ModelBackend` and `PassThroughBackend`.

    Args:
        endpoints: of the base URL, such as ``http://127.0.0.1:8080/v1``.
        connections: to the server, at most.
        prompt_cache: llama.cpp may reuse what it keeps of earlier prompts. Whoever asks can tell by
            the time and by ``cached_tokens`` what others asked.
    """

    api_format = ApiFormat.OPENAI
    fetches_pictures = False
    streams_by_token = True
    _path = "/chat/completions"

    def __init__(
        self, endpoints: Endpoints, *, connections: int, prompt_cache: bool = False
    ) -> None:
        self._owner = ""
        self._prompt_cache = prompt_cache
        self._endpoints = endpoints
        self._http = HttpClient(
            endpoints,
            credentials=lambda key: {"authorization": f"Bearer {key}"},
            connections=connections,
        )

    def additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        return _COUNTING.get(self._owner, {}) if streams else {}

    @property
    def can_count_tokens(self) -> bool:
        # llama.cpp speaks Anthropic's protocol as well, below the same base URL.
        return self._owner == "llamacpp"

    @property
    def overrides(self) -> Mapping[str, Any]:
        return _FORGETTING if self._owner == "llamacpp" and not self._prompt_cache else {}

    async def forward(self, request: RawRequest) -> bytes:
        return await self._http.post(request.path, request.body, request.deadline)

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        return self._http.stream(request.path, request.body, request.deadline)

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        asked = to_json(self._asked(request, stream=False))
        body = await self._http.post(self._path, asked, deadline)
        try:
            return chat_response_to_domain(from_json(body))
        except ValueError:
            raise BackendUnavailable("the back end's answer is not JSON") from None

    async def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        reader = StreamReader()
        asked = self._asked(request, stream=True)
        body = to_json(merged(asked, _COUNTING.get(self._owner, {})))
        async with aclosing(self._http.stream(self._path, body, deadline)) as pieces:
            async for piece in pieces:
                for delta in reader.feed(piece):
                    yield delta
        for delta in reader.end():
            yield delta
        if not reader.finished:
            raise StreamInterrupted("the back end ended its answer early")

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        body = await self._http.post(
            "/embeddings", to_json(embedding_request_to_upstream(request)), deadline
        )
        try:
            return check_vectors(embedding_response_to_domain(from_json(body)), request)
        except ValueError:
            raise BackendUnavailable("the back end's answer is not JSON") from None

    async def probe(self) -> None:
        self._owner = _owner(await self._http.get("/models", _PROBE_SECONDS))

    async def close(self) -> None:
        await self._http.close()

    def _asked(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        body = chat_request_to_upstream(request, stream=stream)
        known = self._endpoints.known
        if known is not None and known.url == OPENAI_URL and "max_tokens" in body:
            # Its models that reason refuse the older name, which is all that other servers know.
            body["max_completion_tokens"] = body.pop("max_tokens")
        return {**body, **self._extras(request), **self.overrides}

    def _extras(self, request: ChatRequest) -> dict[str, Any]:
        """Return what the server takes beyond OpenAI's own members.

        Raises:
            UnsupportedFeature: it has no such sampler.
        """
        names = _SAMPLERS.get(self._owner, {})
        extras: dict[str, Any] = {}
        for name in ("min_p", "repeat_penalty"):
            value = getattr(request.sampling, name)
            if value is None:
                continue
            if name not in names:
                raise UnsupportedFeature(f"this back end has no {name}", field=name)
            extras[names[name]] = value
        if names and request.reasoning is not None and not request.reasoning.enabled:
            extras |= _NO_THINKING
        return extras


def _owner(models: bytes) -> str:
    """Whom a list of models names as their owner; empty where it names nobody."""
    try:
        return str(from_json(models)["data"][0]["owned_by"])
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
