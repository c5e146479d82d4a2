"""Tracks the progress of a response from the messages that the app sends."""

from __future__ import annotations

from moyin.access.gatekeeper.asgi import Message, RawHeaders

__all__ = ["Progress"]

# Media types of streams, and the bytes between two events.
_BOUNDARIES = {
    "text/event-stream": (b"\n\n", b"\r\n\r\n", b"\r\r"),
    "application/x-ndjson": (b"\n",),
}


class Progress:
    """Tracks the messages of one response or WebSocket.

    Attributes:
        started: whether the status was sent or the WebSocket accepted.
    """

    def __init__(self, kind: str) -> None:
        self._is_socket = kind == "websocket"
        self.started = False
        self._finished = False
        self._headers: RawHeaders = ()
        self._last = b""

    def note(self, message: Message) -> None:
        """Record a message. It is called for every message, so it computes nothing."""
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
        """True for a WebSocket, or a stream that has begun, and has not finished.

        A response of a known length, or one that has not begun, ends by itself.
        """
        if self._finished:
            return False
        return self._is_socket or (self.started and self._header(b"content-length") is None)

    @property
    def appendable_as(self) -> str | None:
        """The media type, if an event can be appended to the response now; otherwise None."""
        if self._header(b"content-encoding") is not None:
            return None
        content_type = (self._header(b"content-type") or b"").partition(b";")[0].strip().lower()
        media_type = content_type.decode("latin-1")
        boundaries = _BOUNDARIES.get(media_type, ())
        is_complete = not self._last or self._last.endswith(boundaries)
        return media_type if boundaries and is_complete else None

    def _header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self._headers if key.lower() == name), None)
