"""One HTTP exchange: the client's request to an upstream, the answer back, as both flow."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import aiohttp
from yarl import URL

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, Send
from moyin.errors import BackendTimeout, BackendUnavailable, MoyinError, StreamInterrupted
from moyin.http.breaker import BreakerState
from moyin.proxy.body import ClientLeft, next_part
from moyin.proxy.headers import response_headers
from moyin.proxy.paths import public_location
from moyin.proxy.pool import RETRY_AFTER_SECONDS, TRY_ELSEWHERE, Member, Pool

__all__ = ["Exchange"]

_log = logging.getLogger(__name__)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# Short answers are read to their end before the first byte is passed on: then a safe request can
# still be repeated when the upstream dies over it.
_WHOLE_BYTES = 64 * 1024
_SKIPPED = frozenset({"User-Agent", "Accept", "Accept-Encoding", "Content-Type"})


class _Failed(Exception):
    """An attempt came to nothing, and the client has seen nothing of it.

    Attributes:
        repeatable: another upstream may be asked.
    """

    def __init__(self, error: MoyinError, *, repeatable: bool) -> None:
        super().__init__(error)
        self.error = error
        self.repeatable = repeatable


class Exchange:
    """A request on its way; used once.

    Args:
        target: path and query as the upstream sees them, after its URL.
        headers: for the upstream.
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
        target: str,
        headers: list[tuple[str, str]],
        sticky: str | None,
    ) -> None:
        self._session = session
        self._pool = pool
        self._method: str = scope["method"]
        self._receive = receive
        self._send = send
        self._target = target
        self._headers = headers
        self._sticky = sticky
        times = pool.route.timeouts
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=times.connect, sock_read=times.first_byte
        )
        self._body: bytes | None = None
        self._more = False  # of the body, still at the client
        self._touched = False  # a part of the body is on its way to an upstream
        self._started = False  # the client has the head of an answer
        self._proven = False  # the member that is asked is there again
        self._client_failed: Exception | None = None

    async def run(self) -> None:
        """Answer the client.

        Raises:
            ServiceUnavailable: no upstream may be asked.
            BackendUnavailable, BackendTimeout: the upstream failed before it answered.
            StreamInterrupted: … after it had begun to.
            ClientLeft: nobody is there to be answered.
            BodyTooLarge: of the body, as it came.
        """
        await self._first_part()
        tried: list[Member] = []
        failure: MoyinError | None = None
        while len(tried) <= self._pool.route.retries:
            member = self._pool.pick(self._sticky, tried)
            if member is None:
                break
            tried.append(member)
            try:
                await self._attempt(member, tried)
            except _Failed as failed:
                failure = failed.error
                if not failed.repeatable:
                    break
            else:
                return
        raise failure or self._pool.nobody()

    async def _first_part(self) -> None:
        """Most bodies are there at once, or not at all; the rest is fetched as it is sent on."""
        message = await next_part(self._receive)
        self._body = message.get("body") or None
        self._more = message.get("more_body", False)

    async def _attempt(self, member: Member, tried: Sequence[Member]) -> None:
        with self._watched(member):
            async with self._session.request(
                self._method,
                URL(member.upstream.url + self._target, encoded=True),
                data=self._rest() if self._more else self._body,
                headers=self._headers,
                timeout=self._timeout,
                allow_redirects=False,
                skip_auto_headers=_SKIPPED,
            ) as response:
                await self._answer(member, response, tried)

    @contextmanager
    def _watched(self, member: Member) -> Iterator[None]:
        """Count the attempt, judge the member by it, and turn its end into our errors."""
        breaker, name = member.breaker, self._pool.route.name
        member.active += 1
        self._proven = judged = False
        try:
            yield
            if not self._proven:
                breaker.succeed()
            judged = True
        except _Failed:
            breaker.fail()
            judged = True
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._client_failed is not None:
                raise self._client_failed from error
            breaker.fail()
            judged = True
            _log.warning(
                "route %s: upstream %s: %s", name, member.upstream.url, type(error).__name__
            )
            if self._started:
                raise StreamInterrupted(f"the service {name!r} broke off its answer") from error
            raise _Failed(_classified(error, name), repeatable=self._repeatable(error)) from error
        finally:
            member.active -= 1
            if not judged and not self._proven:
                breaker.abandon()

    def _repeatable(self, error: Exception) -> bool:
        if self._touched:
            return False
        # Without a connection the upstream has seen nothing, whatever the method.
        unseen = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return unseen or self._method in _SAFE

    async def _answer(
        self, member: Member, response: aiohttp.ClientResponse, tried: Sequence[Member]
    ) -> None:
        safe = self._method in _SAFE and not self._touched
        if response.status in TRY_ELSEWHERE and safe and self._pool.has_another(tried):
            name = self._pool.route.name
            error = BackendUnavailable(
                f"the service {name!r} answered {response.status}", retry_after=RETRY_AFTER_SECONDS
            )
            raise _Failed(error, repeatable=True)
        if member.breaker.state is not BreakerState.CLOSED:
            # The head is what a probe asks for. The body may take for ever, and until it ends nobody
            # else would be let through; one that breaks off counts as a failure like any other.
            member.breaker.succeed()
            self._proven = True
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._pool.route.timeouts.idle
        length = response.content_length
        if length is not None and length <= _WHOLE_BYTES:
            content = await response.content.read()
            await self._start(member, response)
            await self._send({"type": "http.response.body", "body": content})
            return
        await self._start(member, response)
        async for chunk in response.content.iter_any():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, member: Member, response: aiohttp.ClientResponse) -> None:
        route, location = self._pool.route, response.headers.get("location")
        if location is not None:
            location = public_location(route, member.upstream.url, location)
        headers = response_headers(
            response.raw_headers, ours=route.pass_credentials, location=location
        )
        self._started = True
        await self._send(
            {"type": "http.response.start", "status": response.status, "headers": headers}
        )

    async def _rest(self) -> AsyncIterator[bytes]:
        """The body, from the client to the upstream, at the pace of the slower one."""
        self._touched = True
        if self._body:
            yield self._body
        while self._more:
            message = await self._next_part()
            self._more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def _next_part(self) -> Message:
        """aiohttp would hide what is raised here behind an error of the connection."""
        try:
            return await next_part(self._receive)
        except (ClientLeft, MoyinError) as error:
            self._client_failed = error
            raise


def _classified(error: Exception, name: str) -> MoyinError:
    if isinstance(error, TimeoutError):
        return BackendTimeout(
            f"the service {name!r} took too long", retry_after=RETRY_AFTER_SECONDS
        )
    return BackendUnavailable(
        f"the service {name!r} could not be reached", retry_after=RETRY_AFTER_SECONDS
    )
