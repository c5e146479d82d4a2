"""Tracks the state of an app's response, to decide how the gatekeeper may end the request."""

from __future__ import annotations

from moyin.access.gatekeeper.asgi import Message, RawHeaders

# Media types of event streams, and the bytes that end an event.
_BOUNDARIES = {
    "text/event-stream": (b"\n\n", b"\r\n\r\n", b"\r\r"),
    "application/x-ndjson": (b"\n",),
}


class ResponseProgress:
    """Tracks the ASGI messages that an app sends for one request or WebSocket.

    Attributes:
        has_started: True if the status was sent or the WebSocket was accepted.
    """

    def __init__(self, kind: str) -> None:
        self._is_socket = kind == "websocket"
        self.has_started = False
        self._is_finished = False
        self._headers: RawHeaders = ()
        self._last_body = b""

    def record(self, message: Message) -> None:
        """Record a message that the app sends; called for every message, so it must be fast."""
        message_type = message["type"]
        if message_type == "http.response.body":
            if message.get("more_body", False):
                self._last_body = message.get("body") or self._last_body
            else:
                self._is_finished = True
        elif message_type == "http.response.start":
            self.has_started = True
            self._headers = message.get("headers", ())
        elif message_type == "websocket.accept":
            self.has_started = True
        elif message_type == "websocket.close":
            self._is_finished = True

    @property
    def is_under_way(self) -> bool:
        """True if this is a WebSocket or a stream that has started and not finished.

        Responses with a Content-Length are not streams, because they end soon anyway.
        """
        if self._is_finished:
            return False
        return self._is_socket or (self.has_started and self._get_header(b"content-length") is None)

    @property
    def appendable_media_type(self) -> str | None:
        """The media type of the stream if an event can be appended to it now, else None."""
        if self._get_header(b"content-encoding") is not None:
            return None
        content_type = (self._get_header(b"content-type") or b"").partition(b";")[0].strip().lower()
        media_type = content_type.decode("latin-1")
        boundaries = _BOUNDARIES.get(media_type, ())
        is_complete = not self._last_body or self._last_body.endswith(boundaries)
        return media_type if boundaries and is_complete else None

    def _get_header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self._headers if key.lower() == name), None)
