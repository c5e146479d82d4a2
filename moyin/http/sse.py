"""Splits byte streams into server-sent events, parses their JSON, and encodes events."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from moyin.errors import StreamInterrupted

EVENT_STREAM = b"text/event-stream; charset=utf-8"

# Limits the memory for a back end that never ends an event.
_MAX_FRAME_BYTES = 16 * 1024 * 1024


# A named tuple, because every token makes one, and a frozen dataclass takes three times as long.
class Frame(NamedTuple):
    """One server-sent event.

    Attributes:
        raw: the bytes of the event, with the blank line at its end.
        data: the content of the field ``data``, or None if the event has none, such as a comment.
    """

    raw: bytes
    data: bytes | None


class FrameSplitter:
    """Splits a byte stream, which arrives in arbitrary pieces, into whole server-sent events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Frame]:
        """Add a piece of the stream and return the events that the piece completes."""
        buffer = self._rest + piece if self._rest else piece
        if b"\r" in buffer:
            buffer = _normalise_line_ends(buffer)
        *raw_events, self._rest = buffer.split(b"\n\n")
        if len(self._rest) > _MAX_FRAME_BYTES:
            raise StreamInterrupted(
                "the back end sent an event of more than 16 MiB in its stream; try again"
            )
        return [
            Frame(raw_event + b"\n\n", _extract_data(raw_event))
            for raw_event in raw_events
            if raw_event
        ]

    def end(self) -> list[Frame]:
        """Return the event that remains at the end of the stream, in a list of at most one.

        Some servers omit the blank line after their last event. A remaining comment is dropped.
        """
        frames = self.feed(b"\n\n") if self.is_within_event else []
        return [frame for frame in frames if frame.data is not None]

    @property
    def is_within_event(self) -> bool:
        """True if the stream is in the middle of an event."""
        return bool(self._rest.strip())


def _normalise_line_ends(buffer: bytes) -> bytes:
    # A trailing CR may be half of a CRLF, so it is left for the next piece.
    trailing_cr = b"\r" if buffer.endswith(b"\r") else b""
    body = buffer[:-1] if trailing_cr else buffer
    return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + trailing_cr


def _extract_data(raw: bytes) -> bytes | None:
    if raw.startswith(b"data:") and b"\n" not in raw:
        return raw[5:].strip()
    lines = [line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def parse_event(frame: Frame) -> dict[str, Any]:
    """Parse an event's data as a JSON object; raise StreamInterrupted if the data is not one."""
    try:
        value = from_json(frame.data or b"")
    except ValueError:
        raise StreamInterrupted(
            "the back end's stream has an event that is not JSON; try again"
        ) from None
    if not isinstance(value, dict):
        raise StreamInterrupted(
            "the back end's stream has an event that is not a JSON object; try again"
        )
    return value


def encode_cost_comment(cost: bytes) -> bytes:
    """Encode the cost of a stream as a comment of server-sent events, which clients skip.

    Args:
        cost: the cost in US dollars as ASCII text.
    """
    return b": x-moyin-cost-usd=" + cost + b"\n\n"


def encode_event(data: Any, *, name: str | None = None) -> bytes:
    """Encode a server-sent event with JSON data."""
    prefix = f"event: {name}\ndata: ".encode() if name else b"data: "
    return prefix + to_json(data) + b"\n\n"
