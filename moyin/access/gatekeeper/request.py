"""`Request`: one request on its way through the gatekeeper."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, Send, header
from moyin.access.gatekeeper.body import drain, has_body, expects_continue
from moyin.access.gatekeeper.context import RequestContext
from moyin.access.gatekeeper.disconnect import DisconnectWatcher
from moyin.access.gatekeeper.monitor import CredentialMonitor
from moyin.access.gatekeeper.streams import Progress
from moyin.domain.identity import Identity
from moyin.errors import BodyTooSlow, MoyinError, RateLimited

if TYPE_CHECKING:
    from moyin.access.gatekeeper.middleware import Gatekeeper

__all__ = ["REQUEST_ID", "Request"]

_log = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# RFC 6455: policy violation; what a WebSocket without a key, or whose key has ended, is closed with.
_WS_POLICY_VIOLATION = 1008


class Request:
    """One request on its way: what has been sent and what is known of it."""

    def __init__(self, scope: Scope, send: Send, named: bool) -> None:
        self._scope = scope
        self._kind: str = scope["type"]
        self.request_id = _request_id(scope)
        self._send = send
        self._named = named
        self._context: RequestContext | None = None
        self.began = time.perf_counter()
        self.progress = Progress(self._kind)
        self._start: Message | None = None  # held back while the rest of the body may come
        self._closes = False  # the connection ends with the answer
        self.status = 499  # the client left before there was a status
        self.code: str | None = None
        self._departure: DisconnectWatcher | None = None
        self._presented = ""
        self.identity: Identity | None = None
        self._monitor: CredentialMonitor | None = None
        self._task: asyncio.Task[object] | None = None
        self._ended: MoyinError | None = None

    @property
    def context(self) -> RequestContext:
        if self._context is None:
            self._context = RequestContext(request_id=self.request_id, identity=self.identity)
        return self._context

    def authenticate(self, presented: str, identity: Identity) -> None:
        """Take over what the credential proved."""
        self._presented = presented
        self.identity = identity

    async def run(self, gatekeeper: Gatekeeper, scope: Scope, receive: Receive) -> None:
        try:
            try:
                await gatekeeper.admit(self, scope, receive)
            finally:
                if self._monitor is not None:
                    self._monitor.discard(self._presented, self)
        except asyncio.CancelledError:
            if not self._take_back():
                raise
            if self._ended is not None:
                await self._finish(gatekeeper, scope, receive, self._ended)
            elif self._departure is not None and self._departure.too_slow:
                await self._fail(gatekeeper, scope, receive, _too_slow())
        except MoyinError as error:
            await self._fail(gatekeeper, scope, receive, error)
        except Exception:
            _log.exception("unhandled error; request %s", self.request_id)
            await self._fail(gatekeeper, scope, receive, MoyinError("an internal error occurred"))
        finally:
            if self._departure is not None:
                self._departure.close()
            gatekeeper.observe(scope, self)

    def watch(self, receive: Receive, monitor: CredentialMonitor) -> Receive:
        """``receive`` for the app; from now on the request ends when its client leaves, and if it
        lasts, when its caller loses the right to it."""
        self._departure = DisconnectWatcher(receive, lambda: self.monitor(monitor))
        self._task = self._departure.task
        return self._departure.receive

    def monitor(self, monitor: CredentialMonitor) -> None:
        """Have the caller's credential proven again for as long as the request lasts."""
        if self.identity is None:
            return
        self._task = self._task or asyncio.current_task()
        self._monitor = monitor
        monitor.add(self._presented, self.identity, self)

    @property
    def can_end(self) -> bool:
        return self._ended is None and self.progress.is_under_way

    def refusal(self, identity: Identity) -> MoyinError | None:
        for limit in identity.limits:
            if 0 in (limit.requests_per_minute, limit.concurrent_requests):
                return RateLimited("your limits allow no requests any more")
        try:
            for needed in self.context.needs:
                RequestContext(request_id=self.request_id, identity=identity).require(needed)
        except MoyinError as error:
            return error
        return None

    def end(self, error: MoyinError) -> None:
        """Cancel the app; the client then gets ``error`` in the protocol of the connection."""
        if self._task is not None:
            self._ended = error
            self._task.cancel()

    def _take_back(self) -> bool:
        """Whether the cancellation came from here; if so, the request ends normally now."""
        ours = self._departure is not None and self._departure.noticed
        if ours and self._departure is not None:
            self._departure.absorb()
        if self._ended is not None and self._task is not None:
            self._task.uncancel()
            ours = True
        return ours

    # Not a coroutine: it would cost every message of every response one more.
    def send(self, message: Message) -> Awaitable[None]:
        """Take notice of a message and pass it on; a start is held back while the client owes a part
        of its body."""
        self.progress.note(message)
        if self._start is not None:
            return self._send_held(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._named:
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", self.request_id.encode()),
                ]
            departure = self._departure
            if self._closes:
                message = self._closing(message)
            elif departure is not None and not departure.complete and has_body(self._scope):
                # The app answers before the client has sent the whole of its body.
                self._start = message
                return _held()
        elif message["type"] == "websocket.accept":
            self.status = 101
        return self._send(message)

    async def _send_held(self, message: Message) -> None:
        start, self._start = self._start, None
        assert start is not None, "a start is held back"
        if not message.get("more_body", False):
            await self._see_body_off(self._departure)
        await self._send(self._closing(start))
        await self._send(message)

    async def _see_body_off(self, receive: Receive | DisconnectWatcher | None) -> None:
        """Read what is left of an unwanted body. If it does not come, the connection ends with the
        answer: it would be held for as long as the client takes."""
        if isinstance(receive, DisconnectWatcher):
            receive = None if receive.is_receiving else receive.receive
        if receive is None or expects_continue(self._scope) or not await drain(receive):
            self._closes = True

    def _closing(self, start: Message) -> Message:
        if self._closes:
            start["headers"] = [*start.get("headers", ()), (b"connection", b"close")]
        return start

    async def _finish(
        self, gatekeeper: Gatekeeper, scope: Scope, receive: Receive, error: MoyinError
    ) -> None:
        """End a connection that was under way, as its protocol has it."""
        last = gatekeeper.render_end(error, self, scope["path"])
        if self._kind == "http" and last is not None:
            self.code = error.code
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        else:
            await self._fail(gatekeeper, scope, receive, error)

    async def _fail(
        self, gatekeeper: Gatekeeper, scope: Scope, receive: Receive, error: MoyinError
    ) -> None:
        self.code = error.code
        if self._kind == "websocket":
            await self._close_socket(receive, error)
        elif self.progress.started and self._start is None:
            # Too late for a status: cutting the connection is the only honest end. Apps that
            # stream end with an error of their protocol and never get here.
            _log.error("request %s failed after its start: %s", self.request_id, error)
            raise error
        else:
            start, body = gatekeeper.render(error, self.request_id, scope)
            self._start = None
            if isinstance(error, BodyTooSlow):
                self._closes = True
            elif self._departure is None and has_body(scope):
                # Refused by its head: the body is not waited for any longer than others are.
                await self._see_body_off(receive)
            await self.send(start)
            await self.send({"type": "http.response.body", "body": body})

    async def _close_socket(self, receive: Receive, error: MoyinError) -> None:
        if not self.progress.started:
            # Accept first: browsers show a close code and a reason, but not a refused handshake.
            await receive()
            await self.send({"type": "websocket.accept"})
        self.status = _WS_POLICY_VIOLATION
        reason = f"{error.code}: {error.message}".encode()[:123].decode(errors="ignore")
        await self._send(
            {"type": "websocket.close", "code": _WS_POLICY_VIOLATION, "reason": reason}
        )


async def _held() -> None:
    """Send nothing yet."""


def _too_slow() -> BodyTooSlow:
    return BodyTooSlow("the body did not come in time")


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return secrets.token_hex(16)
