"""Sends HTTP requests to back ends, with pooled connections, deadlines and translated errors.

A back end's address is an `Endpoint`. It may change when an actor restarts the server, so the
client gets it from an `EndpointFinder`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import aiohttp
from pydantic_core import from_json

from moyin.errors import BackendTimeout, BackendUnavailable, StreamInterrupted
from moyin.http.client import BodyTooLong, LazySession, read_up_to
from moyin.text.backends.response_errors import error_from_status

_CONNECT_SECONDS = 5.0
# Shorter than the keep-alive of servers (uvicorn and llama.cpp: 5 s), so that a request seldom uses
# a connection that is being closed.
_KEEP_ALIVE_SECONDS = 4.0
# Embeddings as JSON numbers are the longest responses.
_MAX_RESPONSE_BYTES = 256 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_ERROR_SECONDS = 2.0
_UNREACHABLE = "cannot connect to the back end; check that its server is running. Request:"
_JSON_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Base URL of a back end without a trailing slash, and its API key; an empty key is not sent."""

    url: str
    key: str = field(default="", repr=False)


class EndpointFinder(Protocol):
    """Finds the current address of a back end's server."""

    @property
    def known_endpoint(self) -> Endpoint | None:
        """The endpoint that `find` returned last; None before the first and after `forget`."""

    async def find(self) -> Endpoint:
        """Return the server's current endpoint.

        Raises:
            BackendUnavailable: no server is running.
        """

    def forget(self) -> None:
        """Drop the known endpoint after a failed call, so that the next call finds it again."""


class FixedEndpoint:
    """Endpoint finder for a server whose address never changes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.known_endpoint: Endpoint = endpoint

    async def find(self) -> Endpoint:
        return self.known_endpoint

    def forget(self) -> None:
        return None


class HttpClient:
    """HTTP client for one back end.

    Args:
        endpoints: finds the server's address.
        credentials: returns the authentication headers for an API key.
        connections: maximum number of concurrent connections. Further requests wait for a free
            connection for up to five seconds.
    """

    def __init__(
        self,
        endpoints: EndpointFinder,
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
        """Send a POST request and return the body of the response, whose status is 200.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the request failed, or
                the response has another status.
        """
        response = await self._post(path, body, deadline, headers)
        try:
            return await read_up_to(response, _MAX_RESPONSE_BYTES)
        except BodyTooLong:
            raise BackendUnavailable(
                f"the back end's response to {path} exceeds 256 MiB", may_be_billed=True
            ) from None
        except TimeoutError:
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            raise BackendUnavailable(
                f"the back end closed the connection during its response to {path}",
                may_be_billed=True,
            ) from None
        finally:
            # Closing an unread response makes the server stop generating.
            response.close()

    async def stream(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send a POST request and stream the body of the response, whose status is 200.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the call failed before
                the first byte.
            StreamInterrupted: the call failed after the first byte.
        """
        response = await self._post(path, body, deadline, headers)
        try:
            async for piece in response.content.iter_any():
                yield piece
        except TimeoutError:
            raise StreamInterrupted(
                f"the back end's response to {path} exceeded the timeout and was cut off"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            raise StreamInterrupted(
                f"the back end closed the connection during its response to {path}"
            ) from None
        finally:
            response.close()

    async def get(self, path: str, seconds: float) -> bytes:
        """Send a GET request and return the body of the response; the errors are those of `post`."""
        endpoint = self._endpoints.known_endpoint or await self._endpoints.find()
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.get().get(
                endpoint.url + path, headers=self._build_headers(endpoint, None), timeout=timeout
            ) as response:
                body = await read_up_to(response, _MAX_RESPONSE_BYTES)
                if response.status != 200:
                    raise _build_error(response, body)
                return body
        except BodyTooLong:
            raise BackendUnavailable(f"the back end's response to {path} exceeds 256 MiB") from None
        except TimeoutError:
            self._endpoints.forget()
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            self._endpoints.forget()
            raise BackendUnavailable(f"{_UNREACHABLE} {path}") from None

    async def close(self) -> None:
        await self._session.close()

    async def _post(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        """Send a POST request and return a response with status 200; the caller must close it."""
        response = await self._send(path, body, deadline, headers)
        if response.status == 200:
            return response
        try:
            if response.status == 401:
                # After a restart another process may own the port.
                self._endpoints.forget()
            raise _build_error(response, await _read_error_body(response))
        finally:
            response.close()

    async def _send(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        endpoint = self._endpoints.known_endpoint or await self._endpoints.find()
        remaining = deadline - asyncio.get_running_loop().time()
        timeout = aiohttp.ClientTimeout(
            total=max(remaining, 0.001), connect=_CONNECT_SECONDS, sock_connect=_CONNECT_SECONDS
        )
        try:
            return await self._session.get().post(
                endpoint.url + path,
                data=body,
                headers=self._build_headers(endpoint, headers),
                timeout=timeout,
                allow_redirects=False,
            )
        except aiohttp.ConnectionTimeoutError:
            self._endpoints.forget()
            raise BackendUnavailable(f"{_UNREACHABLE} {path}") from None
        except TimeoutError:
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            self._endpoints.forget()
            raise BackendUnavailable(f"{_UNREACHABLE} {path}") from None

    def _build_headers(
        self, endpoint: Endpoint, headers: Mapping[str, str] | None
    ) -> dict[str, str]:
        credentials = self._credentials(endpoint.key) if endpoint.key else {}
        return {**_JSON_HEADERS, **(headers or {}), **credentials}

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections, keepalive_timeout=_KEEP_ALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept"),
        )


async def _read_error_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an error response; empty if it cannot be read completely."""
    with suppress(BodyTooLong, TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(_ERROR_SECONDS):
            return await read_up_to(response, _MAX_ERROR_BYTES)
    return b""


def _build_error(response: aiohttp.ClientResponse, body: bytes) -> Exception:
    return error_from_status(
        response.status, _read_error_message(body), response.headers.get("retry-after")
    )


def _read_error_message(body: bytes) -> str:
    """Return the message in the body of an error of any API format; empty if it has none."""
    try:
        error = from_json(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return ""


_Item = TypeVar("_Item")


async def iterate_until_deadline(
    deadline: float, items: AsyncIterator[_Item]
) -> AsyncGenerator[_Item, None]:
    """Yield ``items``, and raise TimeoutError if the next one misses the deadline.

    The timeout covers only the wait for an item, so that it never cancels the consumer.

    Args:
        deadline: the ``loop.time()`` by which all items must arrive.
    """
    while True:
        async with asyncio.timeout_at(deadline):
            try:
                item = await anext(items)
            except StopAsyncIteration:
                return
        yield item
