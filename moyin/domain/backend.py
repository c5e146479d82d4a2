"""Defines the interfaces of model back ends, such as Claude or a local llama.cpp server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from moyin.domain.chat import ChatRequest, ChatResponse, Delta, EmbeddingRequest, EmbeddingResponse
from moyin.domain.needs import Model, Needs


class ApiFormat(StrEnum):
    """The API format that a client or a back end uses."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    RESPONSES = "responses"


@dataclass(frozen=True, kw_only=True, slots=True)
class RawRequest:
    """A client's request that is forwarded to a back end as unchanged bytes.

    Attributes:
        path: the path below the back end's base URL, such as ``/chat/completions``.
        headers: headers of the API format (``anthropic-beta``), never the client's credentials.
        deadline: the ``loop.time()`` by which the whole call must end.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]
    deadline: float


class ModelBackend(Protocol):
    """The interface of a model server, with requests and responses as domain types.

    Methods raise ``BackendUnavailable``, ``BackendTimeout``, ``Overloaded``, ``BackendRejected``
    or ``UnsupportedFeature`` before the first byte of a response, and ``StreamInterrupted`` after
    that byte. Closing a generator cancels the call. ``deadline`` is the ``loop.time()`` by which
    the whole call must end.
    """

    @property
    def fetches_pictures(self) -> bool:
        """True if requests may contain URLs of pictures, which the server then fetches.

        This is False for a server inside our network: a client could make such a server fetch any
        internal address.
        """

    @property
    def streams_by_token(self) -> bool:
        """True if each delta of a stream is one token, so that counting deltas is exact."""

    def check_request(self, request: ChatRequest | EmbeddingRequest) -> None:
        """Check that the server's API can express a request; raise ``RequestError`` if not."""

    async def chat(self, request: ChatRequest, deadline: float) -> ChatResponse:
        """Send a chat request and return the whole response.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
        """

    def stream(self, request: ChatRequest, deadline: float) -> AsyncGenerator[Delta, None]:
        """Send a chat request and yield its response: `Started`, then deltas, then `Finished`.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
        """

    async def embed(self, request: EmbeddingRequest, deadline: float) -> EmbeddingResponse:
        """Return an embedding vector for each input text.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
        """

    async def probe(self) -> None:
        """Check that the server is up, without using tokens, and raise an error if it is down."""

    async def close(self) -> None: ...


class PassThroughBackend(Protocol):
    """The interface of a back end that forwards a client's bytes; errors are as in `ModelBackend`."""

    @property
    def api_format(self) -> ApiFormat: ...

    @property
    def can_count_tokens(self) -> bool:
        """True if the back end supports Anthropic's ``/messages/count_tokens``."""

    @property
    def reads_files(self) -> bool:
        """True if the back end reads files, such as PDFs, in requests that are forwarded unchanged.

        If not, requests with files are translated instead of forwarded.
        """

    def build_additions(self, model: Model, needs: Needs, *, streams: bool) -> Mapping[str, Any]:
        """Return members that this back end adds to a client's request, unless it has them.

        If the request has a member already and both its value and the added value are objects, the
        members of the added object are added in the same way, one level deep.

        Args:
            needs: the needs of the request.
            streams: True if the client requested a stream.
        """

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The members that replace the client's own in every forwarded request."""

    async def forward(self, request: RawRequest) -> bytes:
        """Forward a request and return the unchanged body of a successful response."""

    def forward_stream(self, request: RawRequest) -> AsyncGenerator[bytes, None]:
        """Forward a request and stream the unchanged body of a successful response."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRequest:
    """A request whose response, of any media type, is read as it arrives.

    Attributes:
        path: the path below the back end's base URL, such as ``/audio/speech``.
        get_content: returns the body; called again for each retry.
        length: the size of the body in bytes.
        deadline: the ``loop.time()`` by which the whole call must end.
    """

    path: str
    content_type: str
    get_content: Callable[[], bytes | AsyncIterable[bytes]]
    length: int
    deadline: float


class OpenResponse(Protocol):
    """A successful response whose body was not read; its reader must call `close`."""

    @property
    def media_type(self) -> str:
        """The media type in lower case without parameters; empty if there is none."""

    @property
    def content_type(self) -> str:
        """The media type with its parameters, as the back end sent it."""

    async def read(self) -> bytes:
        """Read and return the whole body.

        If the connection fails, raise the same errors that `ModelBackend` raises for failures
        before the first byte.
        """

    def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives; raise StreamInterrupted if the connection fails."""

    def close(self) -> None:
        """Close the connection unless the body was read to its end."""


class OperationBackend(Protocol):
    """The interface of a back end for the calls in `moyin.domain.operation.Operation`."""

    async def open(self, request: OpenRequest) -> OpenResponse:
        """Send a request and return its response, whose body is not read yet.

        Raise the same errors that `ModelBackend` raises for failures before the first byte.
        """
