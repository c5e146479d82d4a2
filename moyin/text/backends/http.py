"""The one HTTP client for bytes: pooled, bounded by a deadline, errors sorted by status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import aiohttp
from pydantic_core import from_json

from moyin.errors import BackendTimeout, BackendUnavailable, StreamInterrupted
from moyin.http.client import BodyTooLong, LazySession, read_up_to
from moyin.text.backends.endpoint import Endpoint, Endpoints
from moyin.text.backends.responses import error_from_status

__all__ = ["HttpClient", "iterate_until"]

_CONNECT_SECONDS = 5.0
# Shorter than servers keep idle connections (uvicorn and llama.cpp: 5 s), so that a request
# seldom meets one that is just being closed.
_KEEP_ALIVE_SECONDS = 4.0
# Vectors as numbers in JSON: the longest that anybody answers with.
_LARGEST_ANSWER = 256 * 1024 * 1024
_LARGEST_ERROR = 64 * 1024
_ERROR_SECONDS = 2.0
_JSON = {"content-type": "application/json", "accept-encoding": "identity"}


class HttpClient:
    """Posts to one server.

    Args:
        endpoints: where the server is.
        credentials: headers that carry the endpoint's key.
        connections: at most so many at a time; more requests wait up to five seconds for one.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        credentials: Callable[[str], Mapping[str, str]],
        connections: int,
    ) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._connections = connections
        self._session = LazySession(self._new_session)

    async def post(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """The body of a 200.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected
        """
        response = await self._open(path, body, deadline, headers)
        try:
            return await read_up_to(response, _LARGEST_ANSWER)
        except BodyTooLong:
            raise BackendUnavailable("the back end's answer is too long") from None
        except TimeoutError:
            raise BackendTimeout("the back end did not answer in time") from None
        except (aiohttp.ClientError, ConnectionError):
            raise BackendUnavailable("the back end cut its answer") from None
        finally:
            # Cuts what was not read to its end, which tells the server to stop generating.
            response.close()

    async def stream(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The body of a 200 in the pieces in which it comes.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: before the first.
            StreamInterrupted: after it.
        """
        response = await self._open(path, body, deadline, headers)
        try:
            async for piece in response.content.iter_any():
                yield piece
        except TimeoutError:
            raise StreamInterrupted("the answer took longer than its deadline") from None
        except (aiohttp.ClientError, ConnectionError):
            raise StreamInterrupted("the back end cut its answer") from None
        finally:
            response.close()

    async def get(self, path: str, seconds: float) -> bytes:
        """The body of a 200.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected
        """
        endpoint = self._endpoints.known or await self._endpoints.find()
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get().get(
                endpoint.url + path, headers=self._headers(endpoint, None), timeout=timeout
            ) as response:
                body = await read_up_to(response, _LARGEST_ANSWER)
                if response.status != 200:
                    raise _error(response, body)
                return body
        except BodyTooLong:
            raise BackendUnavailable("the back end's answer is too long") from None
        except TimeoutError:
            self._endpoints.forget()
            raise BackendTimeout("the back end did not answer in time") from None
        except (aiohttp.ClientError, ConnectionError):
            self._endpoints.forget()
            raise BackendUnavailable("the back end can't be reached") from None

    async def close(self) -> None:
        await self._session.close()

    async def _open(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        """A response with status 200, which the caller must close."""
        response = await self._send(path, body, deadline, headers)
        if response.status == 200:
            return response
        try:
            if response.status == 401:
                # After a restart another process may own the port.
                self._endpoints.forget()
            raise _error(response, await _complaint(response))
        finally:
            response.close()

    async def _send(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        endpoint = self._endpoints.known or await self._endpoints.find()
        remaining = deadline - asyncio.get_running_loop().time()
        timeout = aiohttp.ClientTimeout(
            total=max(remaining, 0.001), connect=_CONNECT_SECONDS, sock_connect=_CONNECT_SECONDS
        )
        try:
            return await self._session.get().post(
                endpoint.url + path,
                data=body,
                headers=self._headers(endpoint, headers),
                timeout=timeout,
                allow_redirects=False,
            )
        except aiohttp.ConnectionTimeoutError:
            self._endpoints.forget()
            raise BackendUnavailable("the back end can't be reached") from None
        except TimeoutError:
            raise BackendTimeout("the back end did not answer in time") from None
        except (aiohttp.ClientError, ConnectionError):
            self._endpoints.forget()
            raise BackendUnavailable("the back end can't be reached") from None

    def _headers(self, endpoint: Endpoint, headers: Mapping[str, str] | None) -> dict[str, str]:
        credentials = self._credentials(endpoint.key) if endpoint.key else {}
        return {**_JSON, **(headers or {}), **credentials}

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=_KEEP_ALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept"),
        )


async def _complaint(response: aiohttp.ClientResponse) -> bytes:
    """An error's body; without its end it is no JSON, and its status says enough."""
    with suppress(BodyTooLong, TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(_ERROR_SECONDS):
            return await read_up_to(response, _LARGEST_ERROR)
    return b""


def _error(response: aiohttp.ClientResponse, body: bytes) -> Exception:
    return error_from_status(response.status, _message(body), response.headers.get("retry-after"))


def _message(body: bytes) -> str:
    """What the server says is wrong, in any of the protocols' shapes."""
    try:
        found = from_json(body)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError):
        return ""


T = TypeVar("T")


async def iterate_until(deadline: float, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """``items`` while ``loop.time()`` is before ``deadline``.

    The clock watches the source only: were it to run while the consumer works, its cancellation
    would strike there.

    Raises:
        TimeoutError: at the deadline.
    """
    while True:
        async with asyncio.timeout_at(deadline):
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
        yield item
