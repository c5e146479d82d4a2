"""Parses streams of server-sent events."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from moyin_client.errors import MoyinError

_MAX_EVENT = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSentEvent:
    """A server-sent event with its fields; ``id`` is empty if the event has no id."""

    type: str
    data: str
    id: str


class SseParser:
    """Parses a stream of bytes, which arrives in pieces of any size, into server-sent events.

    Attributes:
        retry: the seconds for which the server asks the client to wait before it connects again.
    """

    def __init__(self) -> None:
        self.retry: float | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line = ""
        self._ends_with_cr = False
        self._type, self._id, self._size = "", "", 0
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerSentEvent]:
        """Parse a piece of the stream, and yield the events that are complete now."""
        text = self._decoder.decode(piece)
        if self._ends_with_cr and text.startswith("\n"):
            text, self._ends_with_cr = text[1:], False
        if text:
            self._ends_with_cr = text.endswith("\r")
        self._size += len(text)
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            event = self._end_line(self._line + line)
            self._line = ""
            if event is not None:
                yield event
        self._line += rest
        if self._size > _MAX_EVENT:
            raise MoyinError("an event of the stream is too large", code="malformed_response")

    def _end_line(self, line: str) -> ServerSentEvent | None:
        if not line:
            event = None
            if self._data:
                event = ServerSentEvent(
                    type=self._type or "message", data="\n".join(self._data), id=self._id
                )
            self._type, self._id, self._data, self._size = "", "", [], 0
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value) / 1000
        return None
