"""The port behind which every model server stands."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from moyin.domain.chat import ChatRequest, ChatResponse, Delta, EmbeddingRequest, EmbeddingResponse
from moyin.domain.needs import Model, Needs


class ApiFormat(StrEnum):
    """A wire format that clients and back ends may share."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRequest:
    """A request that passes through as bytes.

    Attributes:
        path: below the back end's base URL, such as ``/chat/completions``.
        headers: of the protocol (``anthropic-beta``), never of the client's identity.
        deadline: ``loop.time()`` at which the whole call must be over.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]
    deadline: float


class ModelBackend(Protocol):
    """A model server, spoken to in the domain's words.

    Every method raises from ``moyin.errors``: ``BackendUnavailable``, ``BackendTimeout``,
    ``Overloaded``, ``BackendRejected``, ``UnsupportedFeature`` before the first byte,
    ``StreamInterrupted`` after it. Closing a generator cancels the call upstream.
    ``deadline`` is the ``loop.time()`` at which the whole call must be over.
    """

    @property
    def fetches_pictures(self) -> bool:
        """Whether it may be sent pictures by URL. A server inside our network may not: it would
        call any address that a client names."""

    @property
    def streams_by_token(self) -> bool:
        """Whether each delta of a stream is one token, so that counting them is exact."""

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        """A whole answer."""

    def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        """An answer as it is made: `Started`, then deltas, then `Finished`."""

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        """A vector for each input."""

    async def probe(self) -> None:
        """Return when the server is up, at no cost of tokens; else raise."""

    async def close(self) -> None:
        """Release connections."""


class PassThroughBackend(Protocol):
    """A back end that takes a protocol's own bytes. Errors are those of `ModelBackend`."""

    @property
    def api_format(self) -> ApiFormat: ...

    @property
    def can_count_tokens(self) -> bool:
        """Whether it answers Anthropic's ``/messages/count_tokens``."""

    def additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        """Members that a passing request needs here, where its client did not set them; one
        level deep."""

    @property
    def overrides(self) -> Mapping[str, Any]:
        """Members that a passing request has here, whatever its client set."""

    async def forward(self, request: RawRequest) -> bytes:
        """The body of a successful answer, untouched."""

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        """The body of a successful streamed answer, in the pieces in which it comes."""
