"""Defines the interface of a protocol codec, so that one path serves every protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, Protocol, Self

from pydantic_core import to_json

from moyin.domain.backend import ApiFormat
from moyin.domain.chat import (
    ChatRequest,
    ChatResponse,
    Delta,
    EmbeddingRequest,
    EmbeddingResponse,
    Image,
    Message,
    Part,
    Role,
)
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.validation import NO_MEMBERS, merge_defaults

__all__ = [
    "MAX_TURNS",
    "ParsedRequest",
    "ProtocolCodec",
    "StreamTap",
    "StreamWriter",
    "Turn",
    "UnstreamedRequest",
    "merge_turns",
    "newest_turns",
    "replace_members",
]

# The role and the text of one message.
Turn = tuple[str, str]
# Three turns of the user, with the answers between them.
MAX_TURNS = 6


class StreamWriter(Protocol):
    """Encodes deltas as a stream of the protocol."""

    def write(self, delta: Delta) -> bytes: ...


class StreamTap(Protocol):
    """Passes a stream through as bytes and reads the usage from it.

    Attributes:
        usage: the latest usage that the back end reported.
        finished: the protocol's last event has passed.
        tokens: the output tokens that have passed, as far as the events show them.
        transcript: records what the model writes, where one is set.
    """

    usage: Usage | None
    finished: bool
    transcript: Transcript | None

    @property
    def tokens(self) -> int: ...

    def feed(self, piece: bytes) -> bytes: ...

    def end(self) -> bytes:
        """Return the bytes that are left for the client when the back end has closed its stream.

        Sets ``finished`` where these bytes complete the answer.

        Raises:
            StreamInterrupted: the back end stopped within an event.
        """


class ParsedRequest(Protocol):
    """A validated request of a protocol."""

    @property
    def model(self) -> str: ...

    @property
    def streams(self) -> bool: ...

    def needs(self) -> Needs:
        """Return the abilities that a model must have to answer."""

    def constraints(self) -> ResponseConstraints:
        """Return the constraints that a whole response must meet."""

    def recent_turns(self) -> tuple[Turn, ...]:
        """Return the newest turns of the conversation, oldest first; none for embeddings."""

    @property
    def raw(self) -> bytes:
        """The client's bytes."""

    @property
    def data(self) -> Mapping[str, Any]:
        """The client's JSON."""

    def schemas(self) -> Iterator[tuple[str, Any]]:
        """Yield the JSON schemas that the answer must match, each after its field.

        Raises:
            UnsupportedFeature: a member holds a grammar of another kind.
        """

    @property
    def picture_urls(self) -> tuple[str, ...]:
        """URLs of the pictures that the request does not contain itself."""

    def with_pictures(self, pictures: Mapping[str, Image]) -> ParsedRequest:
        """Return the request with ``pictures``, given by their URLs, embedded in it."""

    def to_domain(self, model: str) -> ChatRequest | EmbeddingRequest:
        """Translate the request for a back end of another API format.

        Raises:
            UnsupportedFeature: the domain has no place for a member; names that member.
        """

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        """Encode the request for a back end of the same API format.

        These are the client's own bytes if nothing changes. Changes are the model's name and the
        members that make the back end report the usage.

        Args:
            additions: members that are set where the client did not set them, one level deep.
            overrides: members that are set even where the client set them.
        """

    def stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        """Return a tap on the stream that answers ``to_upstream`` with these ``additions``.

        It removes what only the additions asked for.
        """

    def stream_writer(self) -> StreamWriter: ...

    def encode_response(self, response: ChatResponse | EmbeddingResponse) -> bytes: ...


class ProtocolCodec(Protocol):
    """Reads a protocol's requests and responses, and writes its responses and errors."""

    @property
    def api_format(self) -> ApiFormat: ...

    @property
    def path(self) -> str:
        """The path of the call, below a back end's base URL."""

    def parse(self, body: bytes) -> ParsedRequest:
        """Parse and validate a request.

        Raises:
            InvalidJson, InvalidRequest: the body is invalid; names the field.
        """

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """Select the client's headers (lower-case names) that belong to the protocol."""

    @property
    def stream_type(self) -> bytes:
        """The content type of a streamed response."""

    def cost_trailer(self, cost: bytes) -> bytes:
        """Encode the cost in US dollars that follows a stream; empty if clients can't skip it."""

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        """Read the usage from a whole response; all zero if the response states none."""

    def read_response(self, body: Mapping[str, Any]) -> ChatResponse:
        """Translate a whole chat response to the domain.

        Raises:
            MoyinError: it is malformed, or has parts that the domain does not know.
        """

    def output_bytes(self, body: Mapping[str, Any]) -> int:
        """Return the bytes that the model wrote in a whole response."""

    def check_response(self, body: Mapping[str, Any]) -> None:
        """Check that a back end's whole response has the member that holds the answer.

        Raises:
            BackendUnavailable: it has not.
        """

    def complete_response(self, raw: bytes, body: dict[str, Any], estimate: Usage | None) -> bytes:
        """Return a back end's whole response with every member that the vendor's document requires.

        Clients that check the response look for all of them.

        Args:
            raw: the back end's own bytes, returned unchanged where no member is missing.
            body: the same as JSON; missing members are added to it.
            estimate: the usage to state where the back end states none.
        """

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody: ...

    def error_event(self, error: MoyinError, request_id: str) -> bytes: ...


class UnstreamedRequest:
    """Implements `ParsedRequest` for embeddings, which have no turns, pictures or streams."""

    __slots__ = ()
    streams = False
    picture_urls = ()

    def constraints(self) -> ResponseConstraints:
        return ResponseConstraints()

    def recent_turns(self) -> tuple[Turn, ...]:
        return ()

    def with_pictures(self, pictures: Mapping[str, Image]) -> Self:
        return self

    def stream_tap(self, additions: Mapping[str, Any]) -> NoReturn:
        raise AssertionError("embeddings are not streamed")

    def stream_writer(self) -> NoReturn:
        raise AssertionError("embeddings are not streamed")


def merge_turns(parts: Iterable[tuple[Role, Iterable[Part]]]) -> tuple[Message, ...]:
    """Merge the parts of messages into turns that alternate between user and assistant.

    Several tool messages and the user's text after them become one turn.
    """
    turns: list[tuple[Role, list[Part]]] = []
    for role, content in parts:
        if not turns or turns[-1][0] is not role:
            turns.append((role, []))
        turns[-1][1].extend(content)
    return tuple(Message(role=role, parts=tuple(content)) for role, content in turns)


def newest_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Return the newest turns, oldest first. Texts are not copied, however long they are.

    Args:
        turns: newest first; empty texts are skipped. Turns that are not kept are not read.
    """
    kept: list[Turn] = []
    for turn in turns:
        if turn[1]:
            kept.append(turn)
            if len(kept) == MAX_TURNS:
                break
    kept.reverse()
    return tuple(kept)


def replace_members(
    raw: bytes,
    data: Mapping[str, Any],
    model: str,
    additions: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> bytes:
    """Encode a request as `ParsedRequest.to_upstream` does, from the client's bytes and JSON."""
    if model == data["model"] and not additions and not overrides:
        return raw
    return to_json({**merge_defaults(data, additions), **overrides, "model": model})
