"""Provides helpers for aiohttp clients: bounded bodies and lazily opened sessions."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp


class BodyTooLong(Exception):
    """Raised by `read_up_to` if the body of a response has more bytes than the limit."""


async def read_up_to(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """Return the body of a response; raise `BodyTooLong` if it has more than ``max_bytes``."""
    chunks: list[bytes] = []
    size = 0
    # A read returns the bytes that have arrived, which are seldom all.
    while chunk := await response.content.read(max_bytes + 1 - size):
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLong(f"the response body has more than {max_bytes} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


class LazySession:
    """Opens an aiohttp session on first use, because a session needs the running event loop."""

    def __init__(self, open_session: Callable[[], aiohttp.ClientSession]) -> None:
        self._open_session = open_session
        self._session: aiohttp.ClientSession | None = None

    def get(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = self._open_session()
        return self._session

    async def close(self) -> None:
        """Close the session and its connections; the next call of `get` opens a new session."""
        if self._session is not None:
            await self._session.close()
            self._session = None
