"""Answers of other servers, read whole but never without end."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

__all__ = ["BodyTooLong", "LazySession", "read_up_to"]


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


class LazySession:
    """One aiohttp session: it belongs to the loop that uses it, which constructors do not know.

    Args:
        new: opens it.
    """

    def __init__(self, new: Callable[[], aiohttp.ClientSession]) -> None:
        self._new = new
        self._session: aiohttp.ClientSession | None = None

    def get(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._new()
        return self._session

    async def close(self) -> None:
        """Cut its connections; it may be used again afterwards."""
        if self._session is not None:
            await self._session.close()
            self._session = None
