"""An HTTP session that is opened when it is first needed."""

from __future__ import annotations

from collections.abc import Callable

import aiohttp

__all__ = ["LazySession"]


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
