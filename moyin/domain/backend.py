"""Defines the interfaces of model back ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from moyin.domain.chat import ChatRequest, ChatResponse, Delta, EmbeddingRequest, EmbeddingResponse
from moyin.domain.needs import Model, Needs


class ApiFormat(StrEnum):
    """The API format of a client or a back end."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    RESPONSES = "responses"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRequest:
    """A request that is forwarded as bytes.

    Attributes:
        path: below the back end's base URL, such as ``/chat/completions``.
        headers: headers of the protocol (``anthropic-beta``), never the client's credentials.
        deadline: the ``loop.time()`` by which the whole call must end.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]
    deadline: float


class ModelBackend(Protocol):
    """A model server that accepts and returns domain types.

    Methods raise ``BackendUnavailable``, ``BackendTimeout``, ``Overloaded``, ``BackendRejected``
    or ``UnsupportedFeature`` before the first byte, and ``StreamInterrupted`` after it. Closing a
    generator cancels the call. ``deadline`` is the ``loop.time()`` by which the whole call must
    end.
    """

    @property
    def fetches_pictures(self) -> bool:
        """True if pictures may be sent by URL.

        False for a server inside our network, because it would fetch any address that a client
        names.
        """

    @property
    def streams_by_token(self) -> bool:
        """True if each delta of a stream is one token, so that counting deltas is exact."""

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        """Return a whole response."""

    def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        """Stream a response: `Started`, then deltas, then `Finished`."""

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        """Return a vector for each input."""

    async def probe(self) -> None:
        """Check that the server is up, without using tokens; raise if it is not."""

    async def close(self) -> None:
        """Close the connections."""


class PassThroughBackend(Protocol):
    """A back end that accepts the bytes of an API format. Errors are those of `ModelBackend`."""

    @property
    def api_format(self) -> ApiFormat: ...

    @property
    def can_count_tokens(self) -> bool:
        """True if the back end supports Anthropic's ``/messages/count_tokens``."""

    def additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        """Return the members to add to a forwarded request where the client did not set them.

        Objects are merged one level deep.
        """

    @property
    def overrides(self) -> Mapping[str, Any]:
        """Members that replace the client's own in every forwarded request."""

    async def forward(self, request: RawRequest) -> bytes:
        """Forward a request and return the unchanged body of a successful response."""

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        """Forward a request and stream the unchanged body of a successful response."""
