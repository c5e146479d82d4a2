"""`Progress`: how far an answer is, from the messages that the app sends."""

from __future__ import annotations

from moyin.access.gatekeeper.asgi import Message, RawHeaders

__all__ = ["Progress"]

# Media types of streams, and what stands between two of their events.
_BOUNDARIES = {
    "text/event-stream": (b"\n\n", b"\r\n\r\n", b"\r\r"),
    "application/x-ndjson": (b"\n",),
}


class Progress:
    """Notes what was sent of one answer, or of one WebSocket.

    Attributes:
        started: the status was sent, or the WebSocket was accepted.
    """

    def __init__(self, kind: str) -> None:
        self._is_socket = kind == "websocket"
        self.started = False
        self._finished = False
        self._headers: RawHeaders = ()
        self._last = b""

    def note(self, message: Message) -> None:
        """Take notice of a message; on the path of every answer, so nothing is worked out here."""
        kind = message["type"]
        if kind == "http.response.body":
            if message.get("more_body", False):
                self._last = message.get("body") or self._last
            else:
                self._finished = True
        elif kind == "http.response.start":
            self.started = True
            self._headers = message.get("headers", ())
        elif kind == "websocket.accept":
            self.started = True
        elif kind == "websocket.close":
            self._finished = True

    @property
    def is_under_way(self) -> bool:
        """Whether it may go on without an end of its own: a WebSocket, or a stream. An answer of a
        known length, and one that has not begun, are let come to their end."""
        if self._finished:
            return False
        return self._is_socket or (self.started and self._header(b"content-length") is None)

    @property
    def appendable_as(self) -> str | None:
        """The media type, if another event can follow what was sent so far."""
        if self._header(b"content-encoding") is not None:
            return None
        found = (self._header(b"content-type") or b"").partition(b";")[0].strip().lower()
        media_type = found.decode("latin-1")
        boundaries = _BOUNDARIES.get(media_type, ())
        whole = not self._last or self._last.endswith(boundaries)
        return media_type if boundaries and whole else None

    def _header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self._headers if key.lower() == name), None)
