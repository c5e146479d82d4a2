"""What the models app needs of a protocol, so that one path serves all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from moyin.domain.backend import Wire
from moyin.domain.chat import ChatAnswer, ChatRequest, Delta
from moyin.domain.money import Usage
from moyin.domain.needs import Needs
from moyin.errors import MoyinError
from moyin.gatekeeper.problems import ErrorBody

__all__ = ["Call", "Dialect", "StreamTap", "StreamWriter"]


class StreamWriter(Protocol):
    def write(self, delta: Delta) -> bytes: ...


class StreamTap(Protocol):
    """Lets a stream pass as bytes. ``usage`` is what upstream said so far, ``characters`` how
    much text went by, ``finished`` whether the protocol's last event was seen."""

    usage: Usage | None
    characters: int
    finished: bool

    def feed(self, piece: bytes) -> bytes: ...


class Call(Protocol):
    """One validated request of a protocol."""

    @property
    def model(self) -> str: ...

    @property
    def streams(self) -> bool: ...

    def needs(self) -> Needs:
        """What a model must be able to do to answer."""

    def to_domain(self, model: str) -> ChatRequest:
        """For a back end of another wire format.

        Raises:
            UnsupportedFeature: naming the member that can't be carried.
        """

    def to_bytes(self, model: str) -> bytes:
        """For a back end of the same wire format: the client's own bytes, but for the model's
        name and whatever makes upstream report usage."""

    def tap(self) -> StreamTap: ...

    def writer(self) -> StreamWriter: ...

    def render(self, answer: ChatAnswer) -> bytes: ...


class Dialect(Protocol):
    """A protocol: how its requests are read, and its errors written."""

    @property
    def wire(self) -> Wire: ...

    @property
    def path(self) -> str:
        """Of the call, below a back end's base URL."""

    def parse(self, body: bytes) -> Call:
        """A validated request.

        Raises:
            InvalidJson, InvalidRequest: naming the field.
        """

    def forwarded_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """Those of a client's headers (names in lower case) that belong to the protocol."""

    def usage_of(self, body: Mapping[str, Any]) -> Usage:
        """The usage in a whole answer."""

    def render_error(self, error: MoyinError, request_id: str, path: str) -> ErrorBody: ...

    def error_event(self, error: MoyinError, request_id: str) -> bytes: ...
