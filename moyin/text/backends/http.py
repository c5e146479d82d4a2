"""Sends HTTP requests to back ends, with pooled connections, deadlines and translated errors.

A back end's address is an `Endpoint`. It may change when an actor restarts the server, so the
client gets it from an `EndpointFinder`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import aiohttp
from pydantic_core import from_json

from moyin.domain.backend import OpenRequest
from moyin.errors import BackendTimeout, BackendUnavailable, StreamInterrupted
from moyin.http.client import BodyTooLong, LazySession, read_up_to
from moyin.text.backends.response_errors import error_from_status

AUTHORIZATION = "authorization"
_CONNECT_SECONDS = 5.0
# Shorter than the keep-alive of servers (uvicorn and llama.cpp: 5 s), so that a request seldom uses
# a connection that is being closed.
_KEEP_ALIVE_SECONDS = 4.0
# Embeddings as JSON numbers are the longest responses.
_MAX_RESPONSE_BYTES = 256 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_ERROR_SECONDS = 2.0
# Seconds that a server may be silent, for example while it checks or converts a large file.
_MAX_SILENCE_SECONDS = 3_600.0
_GOOGLE_KEY_REASONS = frozenset({"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED"})
_JSON_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Address of a back end's server, with its API key.

    Attributes:
        url: base URL without a trailing slash.
        key: API key; an empty key is not sent.
        headers: headers added to every request; they replace other headers of the same name.
        query: URL-encoded query parameters added to every URL; may be empty.
    """

    url: str
    key: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: str = ""


def build_credentials(header: str, key: str) -> dict[str, str]:
    """Return a header with an API key, which ``authorization`` contains as a bearer token.

    Args:
        header: the name of the header.
    """
    return {header: f"Bearer {key}" if header == AUTHORIZATION else key}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawResponse:
    """A response of any status, whose body arrives in ``pieces``."""

    status: int
    content_type: str | None
    pieces: AsyncIterator[bytes]


class EndpointFinder(Protocol):
    """Finds the current address of a back end's server."""

    @property
    def known_endpoint(self) -> Endpoint | None:
        """The endpoint that `find` returned last.

        It is None before the first call of `find` and after `invalidate_endpoint`.
        """

    async def find(self) -> Endpoint:
        """Return the server's current endpoint.

        Raises:
            BackendUnavailable: no server is running.
        """

    def invalidate_endpoint(self) -> None:
        """Drop the known endpoint after a failed request, so that `find` looks it up again."""


class FixedEndpoint:
    """Endpoint finder for a server whose address never changes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.known_endpoint: Endpoint = endpoint

    async def find(self) -> Endpoint:
        return self.known_endpoint

    def invalidate_endpoint(self) -> None:
        return None


class HttpResponse:
    """Implements `OpenResponse` for a response of aiohttp whose status is 200."""

    def __init__(self, response: aiohttp.ClientResponse, path: str) -> None:
        self._response = response
        self._path = path

    @property
    def content_type(self) -> str:
        return self._response.headers.get("content-type", "")

    @property
    def media_type(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        path = self._path
        try:
            return await read_up_to(self._response, _MAX_RESPONSE_BYTES)
        except BodyTooLong:
            raise BackendUnavailable(
                f"the back end's response to {path} exceeds 256 MiB", may_be_billed=True
            ) from None
        except TimeoutError:
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout; retry later"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            raise BackendUnavailable(
                f"the back end closed the connection during its response to {path}; retry later",
                may_be_billed=True,
            ) from None
        finally:
            # Closing an unread response makes the server stop generating.
            self._response.close()

    async def iterate_pieces(self) -> AsyncGenerator[bytes, None]:
        try:
            while piece := await self._response.content.readany():
                yield piece
        except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
            raise _new_stream_interrupted_error(error, self._path) from None
        finally:
            self._response.close()

    def close(self) -> None:
        self._response.close()


class HttpClient:
    """HTTP client for one back end.

    Every ``deadline`` of its methods is the ``loop.time()`` by which the whole call must end.

    Args:
        endpoints: finds the server's address.
        credentials: function that returns the authentication headers for an API key.
        max_connections: maximum number of concurrent connections. Further requests wait for a free
            connection for up to five seconds.
    """

    def __init__(
        self,
        endpoints: EndpointFinder,
        *,
        credentials: Callable[[str], Mapping[str, str]],
        max_connections: int,
    ) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._max_connections = max_connections
        self._session = LazySession(self._new_session)

    async def post(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send a POST request and return the body of the response, whose status is 200.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the request failed, or
                the response has another status.
        """
        response = await self._post(path, body, deadline, headers)
        return await HttpResponse(response, path).read()

    def stream(
        self, path: str, body: bytes, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send a POST request and stream the body of the response, whose status is 200.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the call failed before
                the first byte.
            StreamInterrupted: the call failed after the first byte.
        """
        return self._stream("POST", path, body, deadline, headers)

    def download(
        self, path: str, deadline: float, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send a GET request and stream the body of the response; the errors are those of `stream`.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
        """
        return self._stream("GET", path, b"", deadline, headers)

    async def upload(
        self, path: str, body: AsyncIterable[bytes], deadline: float, headers: Mapping[str, str]
    ) -> bytes:
        """Send a POST request with a streamed body, and return the body of the response.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
            headers: must include ``Content-Length`` and ``Content-Type``.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the request failed, or
                the response has another status than 200.
        """
        response = await self._check_status(await self._send("POST", path, body, deadline, headers))
        try:
            return await read_up_to(response, _MAX_RESPONSE_BYTES)
        except (BodyTooLong, aiohttp.ClientError, ConnectionError):
            raise BackendUnavailable(
                f"the back end's response to {path} broke off, or exceeds 256 MiB"
            ) from None
        except TimeoutError:
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout; retry later"
            ) from None
        finally:
            response.close()

    async def delete(
        self, path: str, deadline: float, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a DELETE request; the errors are those of `post`.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
        """
        response = await self._check_status(
            await self._send("DELETE", path, b"", deadline, headers)
        )
        response.close()

    async def open(self, request: OpenRequest) -> HttpResponse:
        """Send a POST request and return its response before the body is read; the status is 200.

        Raises:
            BackendUnavailable, BackendTimeout, Overloaded, BackendRejected: the request failed, or
                the response has another status.
        """
        headers = {"content-type": request.content_type, "content-length": str(request.length)}
        content = request.get_content()
        response = await self._post(request.path, content, request.deadline, headers)
        return HttpResponse(response, request.path)

    async def get(self, path: str, timeout_seconds: float) -> bytes:
        """Send a GET request and return the body of the response; the errors are those of `post`.

        Args:
            timeout_seconds: the maximum time for the whole call.
        """
        endpoint = self._endpoints.known_endpoint or await self._endpoints.find()
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        try:
            async with self._session.get().get(
                endpoint.url + _add_query(path, endpoint.query),
                headers=self._build_headers(endpoint, None),
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                body = await read_up_to(response, _MAX_RESPONSE_BYTES)
                if response.status != 200:
                    raise _build_error(response, body)
                return body
        except BodyTooLong:
            raise BackendUnavailable(f"the back end's response to {path} exceeds 256 MiB") from None
        except TimeoutError:
            self._endpoints.invalidate_endpoint()
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout; retry later"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            self._endpoints.invalidate_endpoint()
            raise _new_unreachable_error(path) from None

    @asynccontextmanager
    async def forward_request(
        self, method: str, path: str, data: bytes | AsyncIterable[bytes] | None
    ) -> AsyncGenerator[RawResponse, None]:
        """Send a request and yield its response, whatever its status.

        The whole call has no time limit, since it may move files of many gigabytes.

        Raises:
            BackendUnavailable: the server cannot be reached.
        """
        endpoint = self._endpoints.known_endpoint or await self._endpoints.find()
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_MAX_SILENCE_SECONDS
        )
        try:
            response = await self._session.get().request(
                method,
                endpoint.url + path,
                data=data,
                headers=self._build_headers(endpoint, None),
                timeout=timeout,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            self._endpoints.invalidate_endpoint()
            raise _new_unreachable_error(path) from None
        try:
            yield RawResponse(
                status=response.status,
                content_type=response.headers.get("content-type"),
                pieces=_iterate_pieces(response, path),
            )
        finally:
            response.close()

    async def close(self) -> None:
        await self._session.close()

    async def _stream(
        self,
        method: str,
        path: str,
        body: bytes,
        deadline: float,
        headers: Mapping[str, str] | None,
    ) -> AsyncGenerator[bytes, None]:
        response = await self._check_status(await self._send(method, path, body, deadline, headers))
        try:
            while piece := await response.content.readany():
                yield piece
        except TimeoutError:
            raise StreamInterrupted(
                f"the back end's response to {path} exceeded the timeout and was cut off"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            raise StreamInterrupted(
                f"the back end closed the connection during its response to {path}; retry later"
            ) from None
        finally:
            response.close()

    async def _post(
        self,
        path: str,
        body: bytes | AsyncIterable[bytes],
        deadline: float,
        headers: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        """Send a POST request and return a response with status 200; the caller must close it.

        Args:
            deadline: the ``loop.time()`` by which the whole call must end.
        """
        return await self._check_status(await self._send("POST", path, body, deadline, headers))

    async def _check_status(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        """Return the response if its status is 200; else close it and raise the matching error."""
        if response.status == 200:
            return response
        try:
            if response.status == 401:
                # After a restart another process may own the port.
                self._endpoints.invalidate_endpoint()
            raise _build_error(response, await _read_error_body(response))
        finally:
            response.close()

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterable[bytes],
        deadline: float,
        headers: Mapping[str, str] | None,
    ) -> aiohttp.ClientResponse:
        endpoint = self._endpoints.known_endpoint or await self._endpoints.find()
        remaining_seconds = deadline - asyncio.get_running_loop().time()
        timeout = aiohttp.ClientTimeout(
            total=max(remaining_seconds, 0.001),
            connect=_CONNECT_SECONDS,
            sock_connect=_CONNECT_SECONDS,
        )
        try:
            return await self._session.get().request(
                method,
                endpoint.url + _add_query(path, endpoint.query),
                data=body or None,
                headers=self._build_headers(endpoint, headers),
                timeout=timeout,
                allow_redirects=False,
            )
        except aiohttp.ConnectionTimeoutError:
            self._endpoints.invalidate_endpoint()
            raise _new_unreachable_error(path) from None
        except TimeoutError:
            raise BackendTimeout(
                f"the back end did not respond to {path} within the timeout; retry later"
            ) from None
        except (aiohttp.ClientError, ConnectionError):
            self._endpoints.invalidate_endpoint()
            raise _new_unreachable_error(path) from None

    def _build_headers(
        self, endpoint: Endpoint, headers: Mapping[str, str] | None
    ) -> dict[str, str]:
        credentials = self._credentials(endpoint.key) if endpoint.key else {}
        return {**_JSON_HEADERS, **(headers or {}), **endpoint.headers, **credentials}

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections, keepalive_timeout=_KEEP_ALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept"),
        )


async def _iterate_pieces(
    response: aiohttp.ClientResponse, path: str
) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    except (aiohttp.ClientError, ConnectionError, TimeoutError):
        raise StreamInterrupted(
            f"the back end closed the connection during its response to {path}; retry later"
        ) from None


def _new_stream_interrupted_error(error: Exception, path: str) -> StreamInterrupted:
    if isinstance(error, TimeoutError):
        return StreamInterrupted(
            f"the back end's response to {path} exceeded the timeout and was cut off; request a shorter answer"
        )
    return StreamInterrupted(
        f"the back end closed the connection during its response to {path}; retry later"
    )


def _new_unreachable_error(path: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"cannot connect to the back end for {path}; check that its server is running"
    )


def _add_query(path: str, query: str) -> str:
    """Append URL-encoded query parameters to a path, which may already have some."""
    return f"{path}{'&' if '?' in path else '?'}{query}" if query else path


async def _read_error_body(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an error response; empty if it cannot be read completely."""
    with suppress(BodyTooLong, TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(_ERROR_SECONDS):
            return await read_up_to(response, _MAX_ERROR_BYTES)
    return b""


def _build_error(response: aiohttp.ClientResponse, body: bytes) -> Exception:
    status = 401 if _rejects_key(_parse_error(body)) else response.status
    return error_from_status(status, _read_error_message(body), response.headers.get("retry-after"))


def _read_error_message(body: bytes) -> str:
    """Return the message of an error body in any API format; empty if the body has no message."""
    error = _parse_error(body)
    message = error.get("message", error.get("Message"))
    return message if isinstance(message, str) else ""


def _parse_error(body: bytes) -> Mapping[str, Any]:
    """Return the object that describes an error; empty if the body contains none.

    Most servers send the object in the member ``error``, Gemini within a list. AWS sends the object
    as the whole body. If ``error`` is a text, the result is an object with this ``message``.
    """
    try:
        parsed_body = from_json(body)
    except ValueError:
        return {}
    if isinstance(parsed_body, list) and parsed_body:
        parsed_body = parsed_body[0]
    if not isinstance(parsed_body, dict):
        return {}
    error = parsed_body.get("error", parsed_body)
    return error if isinstance(error, dict) else {"message": str(error)}


def _rejects_key(error: Mapping[str, Any]) -> bool:
    """Return True if the error means a wrong API key, which Google reports with status 400."""
    details = error.get("details")
    return isinstance(details, list) and any(
        isinstance(detail, dict) and detail.get("reason") in _GOOGLE_KEY_REASONS
        for detail in details
    )


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
