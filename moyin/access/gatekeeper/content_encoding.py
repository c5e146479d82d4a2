"""Decodes request bodies with the header ``Content-Encoding``, piece by piece and within a limit."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from moyin.access.gatekeeper.asgi import Message, Receive, Scope
from moyin.access.gatekeeper.body import has_body, new_too_large_error
from moyin.errors import InvalidContentEncoding, UnsupportedContentEncoding

ACCEPTED_ENCODINGS = ("gzip", "deflate")
# zlib's `wbits` for each encoding. RFC 9110 calls zlib's own format "deflate".
_WINDOW_BITS: Mapping[str, int] = {
    "gzip": zlib.MAX_WBITS + 16,
    "x-gzip": zlib.MAX_WBITS + 16,
    "deflate": zlib.MAX_WBITS,
}
# Maximum bytes decoded without a pause, which takes less than a millisecond.
_PIECE_BYTES = 256 * 1024
# A gzip body may consist of several members (RFC 1952); bgzip writes one per 64 KiB. Even an empty
# member costs some microseconds. So a body may have twice as many members as bgzip writes for the
# largest body, and at least some thousand.
_BYTES_PER_MEMBER = 32 * 1024
_ALWAYS_ALLOWED_MEMBERS = 4_096
_FIELD = "Content-Encoding"


def decode_body(
    scope: Scope, receive: Receive, max_bytes: int, encodings: list[bytes]
) -> tuple[Scope, Receive]:
    """Return the scope and the ASGI ``receive`` with which an app reads the decoded body.

    The new scope lacks the headers that describe the encoded body, such as Content-Length.

    Args:
        max_bytes: the maximum size of the decoded body in bytes.
        encodings: the values of the headers ``Content-Encoding`` of the request.

    Raises:
        UnsupportedContentEncoding: the body has an encoding that is not supported, or several.
    """
    encoding = b",".join(encodings).decode("latin-1").strip().lower()
    if encoding in ("", "identity") or not has_body(scope):
        return scope, receive
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise UnsupportedContentEncoding(
            f"{_FIELD} must be one of {', '.join(ACCEPTED_ENCODINGS)}, or be omitted",
            field=_FIELD,
            details={"accepted": list(ACCEPTED_ENCODINGS)},
        )
    removed_names = (b"content-encoding", b"content-length")
    headers = [(name, value) for name, value in scope["headers"] if name not in removed_names]
    decoder = _BodyDecoder(receive, window_bits, max_bytes)
    return {**scope, "headers": headers}, decoder.receive


class _BodyDecoder:
    """Decodes one body; buffers at most one ASGI message and one decoded piece."""

    def __init__(self, receive: Receive, window_bits: int, limit: int) -> None:
        self._receive = receive
        self._window_bits = window_bits
        self._decompressor = zlib.decompressobj(window_bits)
        self._members = 1
        self._max_members = max(_ALWAYS_ALLOWED_MEMBERS, limit // _BYTES_PER_MEMBER)
        self._limit = limit
        self._encoded = b""
        self._has_more_output = False
        self._is_whole = False  # whether the server has sent the last byte
        self._is_finished = False  # whether the app has received the last byte
        self._encoded_bytes = 0
        self._decoded_bytes = 0

    async def receive(self) -> Message:
        """Return the next ASGI message, with a piece of the decoded body.

        Raises:
            BodyTooLarge: the body decoded so far exceeds the limit.
            InvalidContentEncoding: the body does not match its encoding, or ends too early.
        """
        if self._is_finished:
            return await self._receive()
        while True:
            if self._has_more_output:
                # Yields to other requests, however large the body is.
                await asyncio.sleep(0)
            elif not self._is_whole:
                message = await self._receive()
                if message["type"] != "http.request":
                    return message
                self._encoded = message.get("body", b"")
                self._encoded_bytes += len(self._encoded)
                self._is_whole = not message.get("more_body", False)
            piece = self._decode_piece()
            self._is_finished = self._is_whole and not self._has_more_output
            # A piece from the server may be too short to produce output.
            if piece or self._is_finished:
                return {"type": "http.request", "body": piece, "more_body": not self._is_finished}

    def _decode_piece(self) -> bytes:
        if self._decompressor.eof and self._encoded:
            self._start_next_member()
        decompressor = self._decompressor
        try:
            piece = decompressor.decompress(self._encoded, _PIECE_BYTES)
        except zlib.error:
            raise _new_invalid_error("does not match this encoding") from None
        self._encoded = decompressor.unused_data or decompressor.unconsumed_tail
        is_full = len(piece) == _PIECE_BYTES and not decompressor.eof
        self._has_more_output = is_full or bool(decompressor.unused_data)
        self._decoded_bytes += len(piece)
        if self._decoded_bytes > self._limit:
            raise new_too_large_error(self._limit)
        is_truncated = self._is_whole and not self._has_more_output and not decompressor.eof
        if is_truncated and self._encoded_bytes:
            raise _new_invalid_error("ends too early")
        return piece

    def _start_next_member(self) -> None:
        if self._window_bits == zlib.MAX_WBITS:
            raise _new_invalid_error("continues after the end of the compressed data")
        if self._members == self._max_members:
            raise _new_invalid_error(f"has more than {self._max_members} gzip members")
        self._members += 1
        self._decompressor = zlib.decompressobj(self._window_bits)


def _new_invalid_error(problem: str) -> InvalidContentEncoding:
    return InvalidContentEncoding(
        f"{_FIELD}: the request body {problem}; send it whole, as one compressed stream",
        field=_FIELD,
    )
