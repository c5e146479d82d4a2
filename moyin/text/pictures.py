"""Fetches the pictures that prompts reference by URL, for back ends that do not fetch them.

A model server inside our network would fetch any URL that a client sends, including internal ones.
So it receives the bytes instead. This module fetches them from public addresses only, checks each
address when it connects, and limits size and time.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from yarl import URL

from moyin.domain.artifact import SNIFF_BYTES, detect_media_type
from moyin.domain.chat import Image
from moyin.errors import AddressNotAllowed, InvalidRequest, UnsupportedFeature
from moyin.http.client import LazySession
from moyin.http.public_addresses import AllowedNetworks, PublicConnector, check_url

_MAX_PICTURES = 20
_MAX_BYTES_EACH = 10 * 1024 * 1024
_MAX_BYTES_TOTAL = 32 * 1024 * 1024
_TIMEOUT_SECONDS = 10.0
_MAX_REDIRECTS = 3
_MAX_CONNECTIONS = 50
_CHUNK_BYTES = 64 * 1024
# The formats that all vision models accept.
_MEDIA_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_FIELD = "messages"


class PictureFetcher:
    """HTTP client that downloads pictures from public addresses; it belongs to one event loop.

    Args:
        networks: private networks from which pictures may be fetched as well.
    """

    def __init__(self, networks: AllowedNetworks) -> None:
        self._networks = networks
        self._session = LazySession(self._new_session)

    async def fetch(self, urls: Iterable[str]) -> Mapping[str, Image]:
        """Download the pictures and return them base64-encoded, by URL.

        Raises:
            InvalidRequest: a URL is malformed, or its picture is missing, late or too large.
            AddressNotAllowed: a URL resolves to an address that is not public.
            UnsupportedFeature: the request has more than 20 picture URLs.
        """
        distinct_urls = tuple(dict.fromkeys(urls))
        if len(distinct_urls) > _MAX_PICTURES:
            raise UnsupportedFeature(
                f"a request may have at most {_MAX_PICTURES} picture URLs; send further pictures as base64",
                field=_FIELD,
            )
        budget = _ByteBudget(_MAX_BYTES_TOTAL)
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._fetch_picture(url, budget)) for url in distinct_urls
                ]
        except TimeoutError:
            raise InvalidRequest(
                f"the pictures could not be fetched within {_TIMEOUT_SECONDS:.0f} seconds; send them as base64",
                field=_FIELD,
            ) from None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return dict(zip(distinct_urls, (task.result() for task in tasks), strict=True))

    async def close(self) -> None:
        await self._session.close()

    async def _fetch_picture(self, url: str, budget: _ByteBudget) -> Image:
        try:
            content = await self._download(url, budget)
        except aiohttp.ClientError:
            raise _build_picture_error(
                url, "cannot be fetched, because the connection failed: send it as base64"
            ) from None
        except AddressNotAllowed:
            # The connector's own message is about webhooks.
            raise AddressNotAllowed(
                f"the picture URL {url[:200]!r} must resolve to a public address", field=_FIELD
            ) from None
        media_type = detect_media_type(None, content[:SNIFF_BYTES])
        if media_type not in _MEDIA_TYPES:
            raise _build_picture_error(url, "must be a PNG, JPEG, GIF or WebP")
        return Image(media_type=media_type, data=base64.b64encode(content).decode())

    async def _download(self, url: str, budget: _ByteBudget) -> bytes:
        current_url = url
        for _ in range(_MAX_REDIRECTS + 1):
            self._check_url(current_url)
            async with self._session.get().get(current_url, allow_redirects=False) as response:
                if response.status in (301, 302, 303, 307, 308):
                    current_url = _find_redirect_target(url, response)
                elif response.status == 200:
                    return await _read_body(url, response, budget)
                else:
                    raise _build_picture_error(
                        url,
                        f"cannot be fetched, because its server responded {response.status}: "
                        "correct the URL or send the picture as base64",
                    )
        raise _build_picture_error(
            url, f"redirects more than {_MAX_REDIRECTS} times: send its final URL"
        )

    def _check_url(self, current_url: str) -> None:
        try:
            check_url(current_url, field=_FIELD)
        except InvalidRequest:
            raise _build_picture_error(
                current_url, "must be an absolute http or https URL"
            ) from None
        self._networks.check_literal_address(current_url)

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=PublicConnector(self._networks, limit=_MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "Moyin-Pictures/1", "accept": "image/*"},
            auto_decompress=False,
        )


@dataclass(slots=True)
class _ByteBudget:
    """Counts the bytes that are left for the pictures of one request."""

    left: int


async def _read_body(url: str, response: aiohttp.ClientResponse, budget: _ByteBudget) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_chunked(_CHUNK_BYTES):
        size += len(piece)
        budget.left -= len(piece)
        if size > _MAX_BYTES_EACH or budget.left < 0:
            raise _build_picture_error(
                url,
                f"is too large: the limits are {_MAX_BYTES_EACH} bytes for one picture by URL and "
                f"{_MAX_BYTES_TOTAL} for all",
            )
        pieces.append(piece)
    return b"".join(pieces)


def _find_redirect_target(url: str, response: aiohttp.ClientResponse) -> str:
    try:
        return str(response.url.join(URL(response.headers["location"])))
    except (KeyError, ValueError):
        raise _build_picture_error(
            url, "redirects without a valid Location header: send it as base64"
        ) from None


def _build_picture_error(url: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"the picture {url[:200]!r} {problem}", field=_FIELD)
