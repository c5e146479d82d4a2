"""Answers of other servers, read whole but never without end."""

from __future__ import annotations

import aiohttp

__all__ = ["BodyTooLong", "read_up_to"]


class BodyTooLong(Exception):
    """The body has more bytes than may be read."""


async def read_up_to(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, of ``limit`` bytes at most.

    Raises:
        BodyTooLong: it has more; ``limit`` + 1 bytes of it are held by then.
    """
    pieces: list[bytes] = []
    size = 0
    # One read gives what has arrived, which is seldom all.
    while piece := await response.content.read(limit + 1 - size):
        size += len(piece)
        if size > limit:
            raise BodyTooLong
        pieces.append(piece)
    return b"".join(pieces)
