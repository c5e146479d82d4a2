"""Server-sent events as bytes: splitting what comes, writing what goes."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from moyin.errors import StreamInterrupted

__all__ = ["EVENT_STREAM", "Frame", "FrameSplitter", "cost_comment", "event", "parse_event"]

EVENT_STREAM = b"text/event-stream; charset=utf-8"

# An upstream that never ends a frame must not fill our memory.
_LARGEST_FRAME = 16 * 1024 * 1024


# A tuple, since there is one for every token: a frozen dataclass takes three times as long to make.
class Frame(NamedTuple):
    """One event. ``raw`` are its bytes with the blank line; ``data`` its joined data lines, or
    None for a comment."""

    raw: bytes
    data: bytes | None


class FrameSplitter:
    """Cuts a byte stream into whole frames, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Frame]:
        """The frames that ``piece`` completes.

        Raises:
            StreamInterrupted: a frame exceeds 16 MiB.
        """
        buffer = self._rest + piece if self._rest else piece
        if b"\r" in buffer:
            buffer = _normalised(buffer)
        *whole, self._rest = buffer.split(b"\n\n")
        if len(self._rest) > _LARGEST_FRAME:
            raise StreamInterrupted("the back end sent an event of more than 16 MiB")
        return [Frame(raw + b"\n\n", _data(raw)) for raw in whole if raw]

    def end(self) -> list[Frame]:
        """Return the event that the end of the stream completes, if there is one. What is left
        otherwise, such as the start of a page of HTML, is no event."""
        left = self.feed(b"\n\n") if self.pending else []
        return [frame for frame in left if frame.data is not None]

    @property
    def pending(self) -> bool:
        """Whether the stream stands in the middle of a frame."""
        return bool(self._rest.strip())


def _normalised(buffer: bytes) -> bytes:
    # A trailing CR may be half of a CRLF: it waits for the next piece.
    tail = b"\r" if buffer.endswith(b"\r") else b""
    body = buffer[:-1] if tail else buffer
    return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail


def _data(raw: bytes) -> bytes | None:
    if raw.startswith(b"data:") and b"\n" not in raw:
        return raw[5:].strip()
    lines = [line[5:].strip() for line in raw.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def parse_event(frame: Frame) -> dict[str, Any]:
    """The JSON object in ``frame``.

    Raises:
        StreamInterrupted: there is none.
    """
    try:
        value = from_json(frame.data or b"")
    except ValueError:
        raise StreamInterrupted("the back end sent an event that is not JSON") from None
    if not isinstance(value, dict):
        raise StreamInterrupted("the back end sent an event that is not a JSON object")
    return value


def cost_comment(cost: bytes) -> bytes:
    """What a finished stream cost, in US dollars: a comment, which clients skip."""
    return b": x-moyin-cost-usd=" + cost + b"\n\n"


def event(data: Any, *, name: str | None = None) -> bytes:
    """One event with JSON ``data``."""
    head = f"event: {name}\ndata: ".encode() if name else b"data: "
    return head + to_json(data) + b"\n\n"
