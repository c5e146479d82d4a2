"""Pictures that prompts name by URL, fetched for back ends that must not or can not do it.

A server inside our network would call any address that a client names; so it gets the bytes, and
this is the one place that fetches them: from public addresses only, each checked when connected
to, within bounds of size and time.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping

import aiohttp
from yarl import URL

from moyin.domain.artifact import SNIFF_BYTES, detect_media_type
from moyin.domain.chat import Image
from moyin.errors import AddressNotAllowed, InvalidRequest, UnsupportedFeature
from moyin.http.client import LazySession
from moyin.http.public_addresses import AllowedNetworks, PublicConnector, check_url

__all__ = ["Pictures"]

_MOST = 20
_LARGEST_BYTES = 10 * 1024 * 1024
_LARGEST_TOGETHER = 32 * 1024 * 1024
_SECONDS = 10.0
_REDIRECTS = 3
_CONNECTIONS = 50
_PIECE = 64 * 1024
# What all models with eyes read.
_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_FIELD = "messages"


class Pictures:
    """Fetches pictures. Used from one event loop.

    Args:
        networks: the addresses that may be called.
    """

    def __init__(self, networks: AllowedNetworks) -> None:
        self._networks = networks
        self._session = LazySession(self._new_session)

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Image]:
        """The pictures at ``urls``, whole and in base64.

        Raises:
            InvalidRequest: a URL is none, gives no picture in time, or too large a one.
            AddressNotAllowed: it leads into a network that is not public.
            UnsupportedFeature: there are more than 20.
        """
        wanted = tuple(dict.fromkeys(urls))
        if len(wanted) > _MOST:
            raise UnsupportedFeature(
                f"a request may name {_MOST} pictures by URL; send others as base64", field=_FIELD
            )
        budget = _Budget(_LARGEST_TOGETHER)
        try:
            async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(url, budget)) for url in wanted]
        except TimeoutError:
            raise InvalidRequest(
                f"the pictures did not come within {_SECONDS:.0f} seconds", field=_FIELD
            ) from None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return dict(zip(wanted, (task.result() for task in tasks), strict=True))

    async def close(self) -> None:
        await self._session.close()

    async def _one(self, url: str, budget: _Budget) -> Image:
        try:
            content = await self._bytes(url, budget)
        except aiohttp.ClientError:
            raise _unusable(url, "can't be fetched") from None
        except AddressNotAllowed:
            # In a picture's words: the connector speaks of webhooks.
            raise AddressNotAllowed("a picture's address is not public", field=_FIELD) from None
        kind = detect_media_type(None, content[:SNIFF_BYTES])
        if kind not in _TYPES:
            raise _unusable(url, "is no PNG, JPEG, GIF or WebP")
        return Image(media_type=kind, data=base64.b64encode(content).decode())

    async def _bytes(self, url: str, budget: _Budget) -> bytes:
        place = url
        for _ in range(_REDIRECTS + 1):
            self._check(place)
            async with self._session.get().get(place, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    place = _next(url, response)
                elif response.status == 200:
                    return await _read(url, response, budget)
                else:
                    raise _unusable(url, f"answers with status {response.status}")
        raise _unusable(url, "redirects too often")

    def _check(self, place: str) -> None:
        try:
            check_url(place, field=_FIELD)
        except InvalidRequest:
            raise _unusable(place, "must be an absolute http or https URL") from None
        self._networks.check_literal_address(place)

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=PublicConnector(self._networks, limit=_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "Moyin-Pictures/1", "accept": "image/*"},
            auto_decompress=False,
        )


class _Budget:
    """Bytes that the pictures of one request may have together."""

    def __init__(self, left: int) -> None:
        self.left = left


async def _read(url: str, response: aiohttp.ClientResponse, budget: _Budget) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_chunked(_PIECE):
        size += len(piece)
        budget.left -= len(piece)
        if size > _LARGEST_BYTES or budget.left < 0:
            raise _unusable(url, f"is too large: {_LARGEST_BYTES} bytes each may come by URL")
        pieces.append(piece)
    return b"".join(pieces)


def _next(url: str, response: aiohttp.ClientResponse) -> str:
    try:
        return str(response.url.join(URL(response.headers["location"])))
    except (KeyError, ValueError):
        raise _unusable(url, "redirects to nowhere") from None


def _unusable(url: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the picture {url[:200]!r} {why}", field=_FIELD)
