"""Forwards one HTTP request to an upstream and streams the response back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
from yarl import URL

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, Send
from moyin.errors import BackendTimeout, BackendUnavailable, MoyinError, StreamInterrupted
from moyin.http.breaker import BreakerState
from moyin.proxy.headers import response_headers
from moyin.proxy.paths import public_location
from moyin.proxy.pool import RETRY_AFTER_SECONDS, RETRYABLE_STATUSES, Pool, PoolMember

__all__ = ["ClientDisconnected", "Exchange", "receive_body"]

_log = logging.getLogger(__name__)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Responses up to this size are read to the end before their first byte is sent, so that a safe
# request can still be retried when the upstream fails in the middle of its response.
_BUFFERED_BYTES = 64 * 1024
# Headers that aiohttp would add by itself.
_SKIPPED_HEADERS = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})


class ClientDisconnected(Exception):
    """Raised when the client disconnects before its request is complete."""


class _AttemptFailed(Exception):
    """Raised when an attempt fails before the client has received any of the response.

    Attributes:
        retryable: True if the request may be sent to another upstream.
    """

    def __init__(self, error: MoyinError, *, retryable: bool) -> None:
        super().__init__(error)
        self.error = error
        self.retryable = retryable


class Exchange:
    """Forwards one request, with retries; used once.

    Args:
        upstream_path: path and query as the upstream sees them, appended to its URL.
        headers: the headers for the upstream.
        sticky: see `Pool.pick`.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        pool: Pool,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        upstream_path: str,
        headers: list[tuple[str, str]],
        sticky: str | None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._target = upstream_path
        self._headers = headers
        self._sticky = sticky
        times = pool.route.timeouts
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=times.connect, sock_read=times.first_byte
        )
        self._body: bytes | None = None
        self._has_more_body = False  # the client has not sent the whole body yet
        self._body_streamed = False  # an upstream has received parts of a streamed body
        self._response_started = False  # the client has received the response headers
        self._probe_succeeded = False  # the response headers have closed the member's breaker
        self._client_error: Exception | None = None

    async def run(self) -> None:
        """Forward the request and send the response to the client.

        Raises:
            ServiceUnavailable: no upstream is available.
            BackendUnavailable, BackendTimeout: the upstream failed before the response started.
            StreamInterrupted: the upstream failed in the middle of its response.
            ClientDisconnected: the client disconnected before it had sent the whole body.
            BodyTooLarge: the body exceeds the gateway's limit.
        """
        await self._receive_first_part()
        tried: list[PoolMember] = []
        failure: MoyinError | None = None
        while len(tried) <= self._pool.route.retries:
            member = self._pool.pick(self._sticky, tried)
            if member is None:
                break
            tried.append(member)
            try:
                await self._attempt(member, tried)
            except _AttemptFailed as failed:
                failure = failed.error
                if not failed.retryable:
                    break
            else:
                return
        raise failure or self._pool.unavailable_error()

    async def _receive_first_part(self) -> None:
        """Receive the first part of the body, which is usually all of it."""
        message = await _receive_part(self._receive)
        self._body = message.get("body") or None
        self._has_more_body = message.get("more_body", False)

    async def _attempt(self, member: PoolMember, tried: Sequence[PoolMember]) -> None:
        with self._tracked(member):
            async with self._session.request(
                self._method,
                URL(member.upstream.url + self._target, encoded=True),
                data=self._stream_body() if self._has_more_body else self._body,
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
                skip_auto_headers=_SKIPPED_HEADERS,
            ) as response:
                await self._send_response(member, response, tried)

    @contextmanager
    def _tracked(self, member: PoolMember) -> Iterator[None]:
        """Count the attempt, report its outcome to the member's breaker, and translate errors."""
        breaker, name = member.breaker, self._pool.route.name
        member.active += 1
        self._probe_succeeded = reported = False
        try:
            yield
            if not self._probe_succeeded:
                breaker.succeed()
            reported = True
        except _AttemptFailed:
            breaker.fail()
            reported = True
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._client_error is not None:
                raise self._client_error from error
            breaker.fail()
            reported = True
            _log.warning(
                "route %s: upstream %s: %s", name, member.upstream.url, type(error).__name__
            )
            if self._response_started:
                raise StreamInterrupted(f"the service {name!r} failed mid-response") from error
            retryable = self._is_retryable(error)
            raise _AttemptFailed(_upstream_error(error, name), retryable=retryable) from error
        finally:
            member.active -= 1
            if not reported and not self._probe_succeeded:
                breaker.abandon()

    def _is_retryable(self, error: Exception) -> bool:
        if self._body_streamed:
            return False
        # Without a connection the upstream has received nothing, so every method may be retried.
        not_sent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return not_sent or self._method in _SAFE_METHODS

    async def _send_response(
        self, member: PoolMember, response: aiohttp.ClientResponse, tried: Sequence[PoolMember]
    ) -> None:
        retryable = self._method in _SAFE_METHODS and not self._body_streamed
        if response.status in RETRYABLE_STATUSES and retryable and self._pool.has_another(tried):
            name = self._pool.route.name
            message = f"the service {name!r} responded with status {response.status}"
            error = BackendUnavailable(message, retry_after=RETRY_AFTER_SECONDS)
            raise _AttemptFailed(error, retryable=True)
        if member.breaker.state is not BreakerState.CLOSED:
            # The headers prove that the upstream is back. Waiting for the end of the body would
            # keep the breaker half open for as long as a stream runs.
            member.breaker.succeed()
            self._probe_succeeded = True
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._pool.route.timeouts.idle
        length = response.content_length
        if length is not None and length <= _BUFFERED_BYTES:
            content = await response.content.read()
            await self._send_headers(member, response)
            await self._send({"type": "http.response.body", "body": content})
            return
        await self._send_headers(member, response)
        async for chunk in response.content.iter_any():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _send_headers(self, member: PoolMember, response: aiohttp.ClientResponse) -> None:
        route, location = self._pool.route, response.headers.get("location")
        if location is not None:
            location = public_location(route, member.upstream.url, location)
        headers = response_headers(
            response.raw_headers, from_own_app=route.pass_credentials, location=location
        )
        self._response_started = True
        await self._send(
            {"type": "http.response.start", "status": response.status, "headers": headers}
        )

    async def _stream_body(self) -> AsyncIterator[bytes]:
        """Yield the body as the client sends it; the slower side sets the pace."""
        self._body_streamed = True
        if self._body:
            yield self._body
        while self._has_more_body:
            message = await self._receive_next_part()
            self._has_more_body = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def _receive_next_part(self) -> Message:
        """Receive a part of the body, and keep an error that aiohttp would hide behind its own."""
        try:
            return await _receive_part(self._receive)
        except (ClientDisconnected, MoyinError) as error:
            self._client_error = error
            raise


async def _receive_part(receive: Receive) -> Message:
    """Receive the next part of the body.

    Raises:
        ClientDisconnected: the client disconnected instead.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message


async def receive_body(receive: Receive) -> bytes:
    """Receive the whole body; the gatekeeper limits its size.

    Raises:
        ClientDisconnected: the client disconnected before the end of the body.
    """
    parts = []
    while True:
        message = await _receive_part(receive)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _upstream_error(error: Exception, name: str) -> MoyinError:
    if isinstance(error, TimeoutError):
        return BackendTimeout(
            f"the service {name!r} did not respond in time", retry_after=RETRY_AFTER_SECONDS
        )
    return BackendUnavailable(
        f"the service {name!r} could not be reached", retry_after=RETRY_AFTER_SECONDS
    )
