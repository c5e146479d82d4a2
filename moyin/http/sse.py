"""Splits byte streams into server-sent events, and encodes events."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from moyin.errors import StreamInterrupted

__all__ = ["EVENT_STREAM", "Frame", "FrameSplitter", "cost_comment", "event", "parse_event"]

EVENT_STREAM = b"text/event-stream; charset=utf-8"

# Bounds the memory that a back end without event ends can take.
_MAX_FRAME_BYTES = 16 * 1024 * 1024


# A tuple, because there is one per token and a frozen dataclass takes three times as long to make.
class Frame(NamedTuple):
    """An event. ``raw`` is its bytes with the blank line; ``data`` is None for a comment."""

    raw: bytes
    data: bytes | None


class FrameSplitter:
    """Splits a byte stream into whole events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Frame]:
        """Return the frames that ``piece`` completes.

        Raises:
            StreamInterrupted: a frame exceeds 16 MiB.
        """
        buffer = self._rest + piece if self._rest else piece
        if b"\r" in buffer:
            buffer = _normalise_line_ends(buffer)
        *whole, self._rest = buffer.split(b"\n\n")
        if len(self._rest) > _MAX_FRAME_BYTES:
            raise StreamInterrupted("the back end sent an event of more than 16 MiB")
        return [Frame(raw + b"\n\n", _data(raw)) for raw in whole if raw]

    def end(self) -> list[Frame]:
        """Return the event that the end of the stream completes, if there is one.

        Other remains, such as the start of an HTML page, are dropped.
        """
        frames = self.feed(b"\n\n") if self.pending else []
        return [frame for frame in frames if frame.data is not None]

    @property
    def pending(self) -> bool:
        """True if the stream is in the middle of a frame."""
        return bool(self._rest.strip())


def _normalise_line_ends(buffer: bytes) -> bytes:
    # A trailing CR may be half of a CRLF, so it is kept for the next piece.
    tail = b"\r" if buffer.endswith(b"\r") else b""
    body = buffer[:-1] if tail else buffer
    return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail


def _data(raw: bytes) -> bytes | None:
    if raw.startswith(b"data:") and b"\n" not in raw:
        return raw[5:].strip()
    lines = [line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def parse_event(frame: Frame) -> dict[str, Any]:
    """Parse the JSON object in ``frame``.

    Raises:
        StreamInterrupted: the data is not a JSON object.
    """
    try:
        value = from_json(frame.data or b"")
    except ValueError:
        raise StreamInterrupted("the back end sent an event that is not JSON") from None
    if not isinstance(value, dict):
        raise StreamInterrupted("the back end sent an event that is not a JSON object")
    return value


def cost_comment(cost: bytes) -> bytes:
    """Encode the cost of a stream in US dollars as a comment, which clients skip."""
    return b": x-moyin-cost-usd=" + cost + b"\n\n"


def event(data: Any, *, name: str | None = None) -> bytes:
    """Encode an event with JSON ``data``."""
    head = f"event: {name}\ndata: ".encode() if name else b"data: "
    return head + to_json(data) + b"\n\n"
