"""What the models app needs of a protocol, so that one path serves all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import (
    ChatRequest,
    ChatResponse,
    Delta,
    EmbeddingRequest,
    EmbeddingResponse,
    Image,
)
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.validation import NO_MEMBERS
from moyin.text.protocol.turns import Turn

__all__ = ["ParsedRequest", "ProtocolCodec", "StreamTap", "StreamWriter"]


class StreamWriter(Protocol):
    def write(self, delta: Delta) -> bytes: ...


class StreamTap(Protocol):
    """Lets a stream pass as bytes. ``usage`` is what upstream said so far, ``tokens`` how many
    went by as far as the pieces tell, ``finished`` whether the protocol's last event was seen.
    ``transcript``, where one is set, takes down what the model writes."""

    usage: Usage | None
    finished: bool
    transcript: Transcript | None

    @property
    def tokens(self) -> int: ...

    def feed(self, piece: bytes) -> bytes: ...

    def end(self) -> bytes:
        """Return what may still go to the client once the upstream has closed its stream. Where
        that completes the answer, ``finished`` is set.

        Raises:
            StreamInterrupted: the upstream broke off within an event.
        """


class ParsedRequest(Protocol):
    """One validated request of a protocol."""

    @property
    def model(self) -> str: ...

    @property
    def streams(self) -> bool: ...

    def needs(self) -> Needs:
        """What a model must be able to do to answer."""

    def form(self) -> ResponseConstraints:
        """Return the form that a whole answer must have."""

    def turns(self) -> tuple[Turn, ...]:
        """Return the newest turns of the conversation, oldest first; nothing for embeddings."""

    @property
    def raw(self) -> bytes:
        """The client's bytes."""

    @property
    def data(self) -> Mapping[str, Any]:
        """The client's JSON."""

    def schemas(self) -> Iterator[tuple[str, Any]]:
        """JSON schemas that an answer is held to, each with the field that holds it.

        Raises:
            UnsupportedFeature: a member holds a grammar of another kind.
        """

    @property
    def picture_urls(self) -> tuple[str, ...]:
        """Addresses of the pictures that are not in the request itself."""

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedRequest:
        """The same call with these pictures, by URL, in it."""

    def to_domain(self, model: str) -> ChatRequest | EmbeddingRequest:
        """For a back end of another wire format.

        Raises:
            UnsupportedFeature: naming the member that can't be carried.
        """

    def to_bytes(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        """For a back end of the same wire format: the client's own bytes, but for the model's
        name, whatever makes upstream report usage, ``additions``, one level deep, where the
        client did not set them, and ``overrides`` even where it did."""

    def tap(self, additions: Mapping[str, Any]) -> StreamTap:
        """For the stream that answers ``to_bytes`` with these ``additions``: what the client did
        not ask for stays here."""

    def writer(self) -> StreamWriter: ...

    def render(self, answer: ChatResponse | EmbeddingResponse) -> bytes: ...


class ProtocolCodec(Protocol):
    """A protocol: how its requests are read, and its errors written."""

    @property
    def api_format(self) -> ApiFormat: ...

    @property
    def path(self) -> str:
        """Of the call, below a back end's base URL."""

    def parse(self, body: bytes) -> ParsedRequest:
        """A validated request.

        Raises:
            InvalidJson, InvalidRequest: naming the field.
        """

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """Those of a client's headers (names in lower case) that belong to the protocol."""

    @property
    def stream_type(self) -> bytes:
        """Content type of a streamed answer."""

    def cost_note(self, cost: bytes) -> bytes:
        """What follows a stream to say its cost in US dollars; empty where clients would choke."""

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        """The usage in a whole answer; without any where it tells none."""

    def answer_of(self, body: Mapping[str, Any]) -> ChatResponse:
        """Return a whole answer of a chat in the domain's words.

        Raises:
            MoyinError: it has another shape, or parts that the domain has no words for.
        """

    def written_size(self, body: Mapping[str, Any]) -> int:
        """Bytes of what the model wrote in a whole answer."""

    def check_shape(self, answer: Mapping[str, Any]) -> None:
        """See that a whole answer of a back end is one.

        Raises:
            BackendUnavailable: it lacks what the answer is in.
        """

    def completed(self, body: bytes, answer: dict[str, Any], estimate: Usage | None) -> bytes:
        """Return a whole answer of a back end with every member that the vendor's document requires,
        which clients that check the shape look for.

        Args:
            body: the back end's own bytes; returned as they are where no member is missing.
            answer: the same as JSON; what is missing is added to it.
            estimate: the usage to state, where the back end states none.
        """

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody: ...

    def error_event(self, error: MoyinError, request_id: str) -> bytes: ...
