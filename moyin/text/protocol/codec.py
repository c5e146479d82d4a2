"""Defines the interface of a protocol codec, so that the router can serve any protocol.

The clients' protocols are the API formats of OpenAI, Anthropic and Ollama.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, Protocol, Self

from pydantic_core import to_json

from moyin.domain import chat
from moyin.domain.backend import ApiFormat
from moyin.domain.money import Usage
from moyin.domain.needs import Needs, ResponseConstraints
from moyin.domain.transcript import Transcript
from moyin.errors import MoyinError
from moyin.http.problems import ErrorBody
from moyin.http.validation import NO_MEMBERS, merge_defaults

Turn = tuple[str, str]  # A turn: role and text of one message.
MAX_TURNS = 6  # The user's last three messages with the answers between them.


class StreamWriter(Protocol):
    """Encodes the deltas of an answer as the bytes of a stream in the client's protocol."""

    def write(self, delta: chat.Delta) -> bytes: ...


class StreamTap(Protocol):
    """Forwards the bytes of a back end's stream and reads the usage from them.

    Used if client and back end use the same API format.

    Attributes:
        usage: the latest usage that the back end reported.
        is_finished: True once the protocol's last event was forwarded.
        tokens: the number of output tokens forwarded so far, estimated from the events.
        transcript: if set, it records what the model writes.
        prompt_tokens: the estimated tokens of the prompt, for clients that request the usage from a
            back end that does not report it.
    """

    usage: Usage | None
    prompt_tokens: int
    is_finished: bool
    transcript: Transcript | None

    @property
    def tokens(self) -> int: ...

    def feed(self, piece: bytes) -> bytes: ...

    def flush(self) -> bytes:
        """Return the last bytes for the client, after the back end closed its stream.

        Sets ``is_finished`` if these bytes complete the answer.

        Raises:
            StreamInterrupted: the back end stopped within an event.
        """


class ParsedRequest(Protocol):
    """A validated request in the client's protocol."""

    @property
    def model(self) -> str: ...

    @property
    def is_streamed(self) -> bool: ...

    def derive_needs(self) -> Needs:
        """Return the abilities that a model needs to answer the request."""

    def derive_constraints(self) -> ResponseConstraints:
        """Return the constraints, such as a JSON schema, that the answer must meet."""

    def select_recent_turns(self) -> tuple[Turn, ...]:
        """Return the newest turns of the conversation, oldest first; empty for embeddings."""

    @property
    def raw(self) -> bytes:
        """The request body as the client sent it."""

    @property
    def data(self) -> Mapping[str, Any]:
        """The request body, parsed as JSON."""

    def iterate_schemas(self) -> Iterator[tuple[str, Any]]:
        """Yield the path and content of each JSON schema that constrains the answer.

        Raises:
            UnsupportedFeature: the request contains a grammar that is not a JSON schema.
        """

    @property
    def picture_urls(self) -> tuple[str, ...]:
        """The URLs of pictures that the request refers to, but does not contain."""

    def with_pictures(self, pictures: Mapping[str, chat.Image]) -> ParsedRequest:
        """Return the request with the pictures' bytes embedded in place of their URLs.

        Args:
            pictures: the fetched pictures, by URL.
        """

    def to_domain(self, model: str) -> chat.ChatRequest | chat.EmbeddingRequest:
        """Translate the request to `moyin.domain.chat`, for a back end of another API format.

        Raises:
            UnsupportedFeature: the result cannot express a member; the error names it.
        """

    def to_upstream(
        self, model: str, additions: Mapping[str, Any], overrides: Mapping[str, Any] = NO_MEMBERS
    ) -> bytes:
        """Encode the request for a back end of the same API format.

        Returns the client's own bytes if neither the model's name nor a member changes.

        Args:
            additions: members to set unless the client set them, such as those that make the back
                end report the usage. Objects are merged one level deep.
            overrides: members to set even if the client set them.
        """

    def create_stream_tap(self, additions: Mapping[str, Any]) -> StreamTap:
        """Return a tap for the stream with which a back end answers this request.

        Args:
            additions: the members that `to_upstream` added to the request's body. The tap hides the
                events that only these members cause.
        """

    def create_stream_writer(self) -> StreamWriter: ...

    def encode_response(self, response: chat.ChatResponse | chat.EmbeddingResponse) -> bytes: ...


class ProtocolCodec(Protocol):
    """Parses and encodes the bodies and errors of one API call, such as ``POST /v1/messages``."""

    @property
    def api_format(self) -> ApiFormat: ...

    @property
    def path(self) -> str:
        """The path of the call relative to a back end's base URL."""

    def parse(self, body: bytes) -> ParsedRequest:
        """Parse and validate a request.

        Raises:
            InvalidJson, InvalidRequest: the body is invalid; the error names the field.
        """

    @property
    def request_fields_by_ability(self) -> Mapping[str, tuple[str, ...]]:
        """The request fields to remove if a model lacks an ability, by the name of the ability."""

    def replace_body(self, request: ParsedRequest, data: Mapping[str, Any]) -> ParsedRequest:
        """Return a copy of ``request`` whose body is ``data``, which must be valid."""

    def select_forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """Return those of the client's headers that the back end needs, with lower-case names."""

    @property
    def stream_content_type(self) -> bytes:
        """The content type of a streamed response."""

    def encode_cost_trailer(self, cost: bytes) -> bytes:
        """Encode the cost of a request as bytes that are appended to its stream.

        The result is empty if the protocol has no place for data that clients skip.

        Args:
            cost: the cost in US dollars as ASCII text.
        """

    def read_usage(self, body: Mapping[str, Any]) -> Usage:
        """Return the usage that a whole response reports, or zero counts if it reports none."""

    def read_response(self, body: Mapping[str, Any]) -> chat.ChatResponse:
        """Translate a whole chat response to a `ChatResponse`.

        Raises:
            MoyinError: the response is malformed, or `ChatResponse` cannot express a part.
        """

    def count_output_bytes(self, body: Mapping[str, Any]) -> int:
        """Return the size of the text that the model wrote in a whole response, in UTF-8 bytes."""

    def require_answer_member(self, body: Mapping[str, Any]) -> None:
        """Check that a back end's whole response has the member that contains the answer.

        Raises:
            BackendUnavailable: the member is missing or has the wrong type.
        """

    def add_missing_members(
        self, raw: bytes, body: dict[str, Any], estimated_usage: Usage | None
    ) -> bytes:
        """Add the members that the vendor's API reference requires and the back end omitted.

        Clients that validate a response expect all of them.

        Args:
            raw: the back end's whole response, returned unchanged if no member is missing.
            body: the same response parsed as JSON; missing members are added to it.
            estimated_usage: the usage to report; None if the back end reported it.
        """

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody: ...

    def render_error_event(self, error: MoyinError, request_id: str) -> bytes: ...


class BaseEmbeddingRequest:
    """Base of requests for embeddings, which have no conversation, no pictures and no stream."""

    __slots__ = ()
    is_streamed = False
    picture_urls = ()

    def derive_constraints(self) -> ResponseConstraints:
        return ResponseConstraints()

    def select_recent_turns(self) -> tuple[Turn, ...]:
        return ()

    def with_pictures(self, pictures: Mapping[str, chat.Image]) -> Self:
        return self

    def create_stream_tap(self, additions: Mapping[str, Any]) -> NoReturn:
        raise AssertionError(
            "create_stream_tap was called for embeddings, which are never streamed"
        )

    def create_stream_writer(self) -> NoReturn:
        raise AssertionError(
            "create_stream_writer was called for embeddings, which are never streamed"
        )


def merge_adjacent_messages(
    role_parts: Iterable[tuple[chat.Role, Iterable[chat.Part]]],
) -> tuple[chat.Message, ...]:
    """Merge neighbouring messages of the same role, because some models require alternating roles.

    Tool messages have the user's role, so they are merged with a user's message next to them.
    """
    turns: list[tuple[chat.Role, list[chat.Part]]] = []
    for role, content in role_parts:
        if not turns or turns[-1][0] is not role:
            turns.append((role, []))
        turns[-1][1].extend(content)
    return tuple(chat.Message(role=role, parts=tuple(content)) for role, content in turns)


def select_newest_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Return the `MAX_TURNS` newest turns that have text, oldest first.

    Args:
        turns: all turns, newest first. The iterator is not read further than necessary.
    """
    newest_turns: list[Turn] = []
    for turn in turns:
        if turn[1]:
            newest_turns.append(turn)
            if len(newest_turns) == MAX_TURNS:
                break
    newest_turns.reverse()
    return tuple(newest_turns)


def encode_with_changes(
    raw: bytes,
    data: Mapping[str, Any],
    model: str,
    additions: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> bytes:
    """Encode a request for a back end of the same API format; see `ParsedRequest.to_upstream`.

    Returns:
        ``raw`` unchanged if neither the model's name nor a member changes.
    """
    if model == data["model"] and not additions and not overrides:
        return raw
    return to_json({**merge_defaults(data, additions), **overrides, "model": model})
