"""Forwards one HTTP request to an upstream, and streams the response to the client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, Send
from moyin.access.gatekeeper.context import context
from moyin.errors import BackendTimeout, BackendUnavailable, MoyinError, StreamInterrupted
from moyin.http.breaker import BreakerState
from moyin.proxy.headers import build_response_headers
from moyin.proxy.paths import to_public_location
from moyin.proxy.pool import RETRY_AFTER_SECONDS, RETRYABLE_STATUSES, PoolMember, UpstreamPool

_log = logging.getLogger(__name__)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# A response up to this size is read completely before the client receives its first byte. So a
# safe request can still be retried if the upstream fails in the middle of its response.
_BUFFERED_BYTES = 64 * 1024
# Headers that aiohttp would otherwise add to requests.
_SKIPPED_HEADERS = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})


class ClientDisconnected(Exception):
    """Raised if the client disconnects before it has sent the whole request."""


class _AttemptFailed(Exception):
    """Raised if an upstream fails before the client has received a part of the response.

    Attributes:
        error: the error for the client if the request is not retried.
        retryable: True if the request may be sent to another upstream.
    """

    def __init__(self, error: MoyinError, *, retryable: bool) -> None:
        super().__init__(error)
        self.error = error
        self.retryable = retryable


@dataclass(eq=False)
class HttpExchange:
    """Forwards a single HTTP request, with retries, and sends the response to the client.

    Args:
        upstream_path: the path and query that are appended to the upstream's URL.
        sticky_value: the header value that ties the client to one upstream, if any.
    """

    session: aiohttp.ClientSession
    pool: UpstreamPool
    scope: Scope
    receive: Receive
    send: Send
    upstream_path: str
    headers: list[tuple[str, str]]
    sticky_value: str | None

    def __post_init__(self) -> None:
        self._method: str = self.scope["method"]
        timeouts = self.pool.route.timeouts
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=timeouts.connect, sock_read=timeouts.first_byte
        )
        self._body: bytes | None = None
        self._has_more_body = False  # True while the client has not sent the whole body
        self._body_streamed = False  # True once an upstream may have received a part of the body
        self._response_started = False  # True once the client has received the response headers
        self._probe_succeeded = False  # True once the response headers have closed the breaker
        self._client_error: Exception | None = None

    async def forward(self) -> None:
        """Forward the request, and send the response to the client.

        Raises:
            ServiceUnavailable: the route has no healthy upstream.
            BackendUnavailable, BackendTimeout: the upstream failed before the response started.
            StreamInterrupted: the upstream failed in the middle of its response.
            ClientDisconnected: the client disconnected before it had sent the whole body.
            BodyTooLarge: the body exceeds the gateway's limit.
        """
        context(self.scope).keeps_body = False
        message = await _receive_part(self.receive)
        self._body = message.get("body") or None
        self._has_more_body = message.get("more_body", False)
        tried_members: list[PoolMember] = []
        failure: MoyinError | None = None
        while len(tried_members) <= self.pool.route.retries:
            member = self.pool.pick_member(self.sticky_value, tried_members)
            if member is None:
                break
            tried_members.append(member)
            try:
                await self._send_request(member, tried_members)
            except _AttemptFailed as attempt_error:
                failure = attempt_error.error
                if not attempt_error.retryable:
                    break
            else:
                return
        raise failure or self.pool.new_unavailable_error()

    async def _send_request(self, member: PoolMember, tried_members: Sequence[PoolMember]) -> None:
        with self._track_attempt(member):
            async with self.session.request(
                self._method,
                URL(member.upstream.url + self.upstream_path, encoded=True),
                data=self._stream_body() if self._has_more_body else self._body,
                headers=self.headers,
                timeout=self._timeout,
                allow_redirects=False,
                skip_auto_headers=_SKIPPED_HEADERS,
            ) as response:
                await self._send_response(member, response, tried_members)

    @contextmanager
    def _track_attempt(self, member: PoolMember) -> Iterator[None]:
        """Count an attempt as open during the block, then report its outcome to the breaker.

        Raises:
            _AttemptFailed: the upstream failed before its response started.
            StreamInterrupted: the upstream failed in the middle of its response.
        """
        breaker, name = member.breaker, self.pool.route.name
        member.active += 1
        self._probe_succeeded = is_reported = False
        try:
            yield
            if not self._probe_succeeded:
                breaker.succeed()
            is_reported = True
        except _AttemptFailed:
            breaker.fail()
            is_reported = True
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._client_error is not None:
                raise self._client_error from error
            breaker.fail()
            is_reported = True
            _log.warning(
                "route %s: the upstream %s failed: %s",
                name, member.upstream.url, type(error).__name__,
            )  # fmt: skip
            if self._response_started:
                raise StreamInterrupted(
                    f"the service {name!r} failed during its response, which is incomplete; try again"
                ) from error
            retryable = self._is_retryable(error)
            raise _AttemptFailed(_to_backend_error(error, name), retryable=retryable) from error
        finally:
            member.active -= 1
            if not is_reported and not self._probe_succeeded:
                breaker.abandon()

    def _is_retryable(self, error: Exception) -> bool:
        """Return True if the request can be sent again without taking effect twice."""
        if self._body_streamed:
            return False
        # Without a connection the upstream has received nothing, so every method is safe to retry.
        was_not_sent = isinstance(
            error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
        )
        return was_not_sent or self._method in _SAFE_METHODS

    async def _send_response(
        self,
        member: PoolMember,
        response: aiohttp.ClientResponse,
        tried_members: Sequence[PoolMember],
    ) -> None:
        retryable = self._method in _SAFE_METHODS and not self._body_streamed
        if (
            response.status in RETRYABLE_STATUSES
            and retryable
            and self.pool.can_retry(tried_members)
        ):
            name = self.pool.route.name
            message = f"the service {name!r} responded with status {response.status}; try again"
            error = BackendUnavailable(message, retry_after=RETRY_AFTER_SECONDS)
            raise _AttemptFailed(error, retryable=True)
        if member.breaker.state is not BreakerState.CLOSED:
            # The headers prove that the upstream works again. Until the end of a long stream, the
            # breaker would stay half open and reject other requests.
            member.breaker.succeed()
            self._probe_succeeded = True
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self.pool.route.timeouts.idle
        content_length = response.content_length
        if content_length is not None and content_length <= _BUFFERED_BYTES:
            content = await response.content.read()
            await self._send_headers(member, response)
            await self.send({"type": "http.response.body", "body": content})
            return
        await self._send_headers(member, response)
        async for chunk in response.content.iter_any():
            await self.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self.send({"type": "http.response.body", "body": b""})

    async def _send_headers(self, member: PoolMember, response: aiohttp.ClientResponse) -> None:
        route, location = self.pool.route, response.headers.get("location")
        if location is not None:
            location = to_public_location(route, member.upstream.url, location)
        headers = build_response_headers(
            response.raw_headers, from_own_app=route.pass_credentials, location=location
        )
        self._response_started = True
        await self.send(
            {"type": "http.response.start", "status": response.status, "headers": headers}
        )

    async def _stream_body(self) -> AsyncIterator[bytes]:
        """Yield the request's body; read a part from the client when the upstream can take it."""
        self._body_streamed = True
        if self._body:
            yield self._body
        while self._has_more_body:
            message = await self._receive_next_part()
            self._has_more_body = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def _receive_next_part(self) -> Message:
        """Receive the next part of the request's body.

        An error on the client's side is also stored in the exchange, because aiohttp, which calls
        this method, would raise another error in its place.
        """
        try:
            return await _receive_part(self.receive)
        except (ClientDisconnected, MoyinError) as error:
            self._client_error = error
            raise


async def _receive_part(receive: Receive) -> Message:
    """Receive the next part of the request's body.

    Raises:
        ClientDisconnected: the client disconnected before the end of the body.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message


async def receive_body(receive: Receive) -> bytes:
    """Receive the whole body of a request; the gatekeeper has limited its size.

    Raises:
        ClientDisconnected: the client disconnected before the end of the body.
    """
    chunks = []
    while True:
        message = await _receive_part(receive)
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def _to_backend_error(error: Exception, name: str) -> MoyinError:
    """Return the error for the client after a request to the service ``name`` failed."""
    if isinstance(error, TimeoutError):
        return BackendTimeout(
            f"the service {name!r} did not respond in time; try again",
            retry_after=RETRY_AFTER_SECONDS,
        )
    return BackendUnavailable(
        f"the service {name!r} could not be reached; try again", retry_after=RETRY_AFTER_SECONDS
    )
