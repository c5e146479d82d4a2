"""Runs one request through the gatekeeper."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable
from typing import Protocol

from moyin.access.gatekeeper.asgi import Message, Receive, Scope, Send, header
from moyin.access.gatekeeper.body import drain, expects_continue, has_body
from moyin.access.gatekeeper.context import RequestContext
from moyin.access.gatekeeper.disconnect import DisconnectWatcher
from moyin.access.gatekeeper.monitor import CredentialMonitor
from moyin.access.gatekeeper.streams import Progress
from moyin.domain.identity import Identity
from moyin.errors import BodyTooSlow, MoyinError, RateLimited

__all__ = ["REQUEST_ID", "Request", "RequestHandler"]

_log = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# RFC 6455: policy violation; closes a WebSocket without a key, or whose key has ended.
_WS_POLICY_VIOLATION = 1008


class RequestHandler(Protocol):
    """Authenticates requests, calls the app and renders errors; the gatekeeper implements it."""

    async def admit(self, request: Request, scope: Scope, receive: Receive) -> None:
        """Authenticate the request and call the app."""

    def observe(self, scope: Scope, request: Request) -> None:
        """Report a request that has ended."""

    def render(self, error: MoyinError, request_id: str, scope: Scope) -> tuple[Message, bytes]:
        """Return the start message and the body of an error response."""

    def render_end(self, error: MoyinError, request: Request, path: str) -> bytes | None:
        """Return the event that ends a stream with an error; None: it can only be disconnected."""


class Request:
    """Holds the state of one request: its caller, and what of the response was sent."""

    def __init__(self, scope: Scope, send: Send, adds_request_id: bool) -> None:
        self._scope = scope
        self._kind: str = scope["type"]
        self.request_id = _request_id(scope)
        self._send = send
        self._adds_request_id = adds_request_id
        self._context: RequestContext | None = None
        self.began = time.perf_counter()
        self.progress = Progress(self._kind)
        self._start: Message | None = None  # held while the client may send the rest of the body
        self._closes = False  # whether the connection closes after the response
        self.status = 499  # stays if the client disconnects before the status is sent
        self.code: str | None = None
        self._watcher: DisconnectWatcher | None = None
        self._credential = ""
        self.identity: Identity | None = None
        self._monitor: CredentialMonitor | None = None
        self._task: asyncio.Task[object] | None = None
        self._ended: MoyinError | None = None

    @property
    def context(self) -> RequestContext:
        """The context for the app."""
        if self._context is None:
            self._context = RequestContext(request_id=self.request_id, identity=self.identity)
        return self._context

    def authenticate(self, credential: str, identity: Identity) -> None:
        """Set the caller."""
        self._credential = credential
        self.identity = identity

    async def run(self, handler: RequestHandler, scope: Scope, receive: Receive) -> None:
        """Handle the request, and send an error response if that fails."""
        try:
            try:
                await handler.admit(self, scope, receive)
            finally:
                if self._monitor is not None:
                    self._monitor.discard(self._credential, self)
        except asyncio.CancelledError:
            if not self._uncancel():
                raise
            if self._ended is not None:
                await self._finish(handler, scope, receive, self._ended)
            elif self._watcher is not None and self._watcher.too_slow:
                await self._fail(handler, scope, receive, _too_slow())
        except MoyinError as error:
            await self._fail(handler, scope, receive, error)
        except Exception:
            _log.exception("unhandled error; request %s", self.request_id)
            await self._fail(handler, scope, receive, MoyinError("an internal error occurred"))
        finally:
            if self._watcher is not None:
                self._watcher.close()
            handler.observe(scope, self)

    def watch(self, receive: Receive, monitor: CredentialMonitor) -> Receive:
        """Return ``receive`` for the app.

        From now on the request ends when its client disconnects and, if it is long-lived, when its
        credential or scope ends.
        """
        self._watcher = DisconnectWatcher(receive, lambda: self.monitor(monitor))
        self._task = self._watcher.task
        return self._watcher.receive

    def monitor(self, monitor: CredentialMonitor) -> None:
        """Have the caller's credential verified again while the request lasts."""
        if self.identity is None:
            return
        self._task = self._task or asyncio.current_task()
        self._monitor = monitor
        monitor.add(self._credential, self.identity, self)

    @property
    def can_end(self) -> bool:
        """True for a WebSocket or a stream that can be ended with an error."""
        return self._ended is None and self.progress.is_under_way

    def refusal(self, identity: Identity) -> MoyinError | None:
        """Return the error with which to end the request; None: ``identity`` may continue it."""
        for limit in identity.limits:
            if 0 in (limit.requests_per_minute, limit.concurrent_requests):
                return RateLimited("your limits no longer allow requests")
        try:
            for required in self.context.required_scopes:
                RequestContext(request_id=self.request_id, identity=identity).require(required)
        except MoyinError as error:
            return error
        return None

    def end(self, error: MoyinError) -> None:
        """Cancel the app and send ``error`` to the client in the connection's protocol."""
        if self._task is not None:
            self._ended = error
            self._task.cancel()

    def _uncancel(self) -> bool:
        """Revoke a cancellation by the gatekeeper; return False if it was not the gatekeeper's."""
        is_own = self._watcher is not None and self._watcher.has_cancelled
        if is_own and self._watcher is not None:
            self._watcher.uncancel()
        if self._ended is not None and self._task is not None:
            self._task.uncancel()
            is_own = True
        return is_own

    # Not a coroutine function, which would create a second coroutine per message.
    def send(self, message: Message) -> Awaitable[None]:
        """Send a message; hold the response's start while the client has not sent its whole body."""
        self.progress.note(message)
        if self._start is not None:
            return self._send_held(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._adds_request_id:
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", self.request_id.encode()),
                ]
            watcher = self._watcher
            if self._closes:
                message = self._closing(message)
            elif watcher is not None and not watcher.complete and has_body(self._scope):
                # The app responds before the client has sent the whole body.
                self._start = message
                return _send_nothing()
        elif message["type"] == "websocket.accept":
            self.status = 101
        return self._send(message)

    async def _send_held(self, message: Message) -> None:
        """Send the held start and then ``message``."""
        start, self._start = self._start, None
        assert start is not None
        if not message.get("more_body", False):
            await self._drain_body(self._watcher)
        await self._send(self._closing(start))
        await self._send(message)

    async def _drain_body(self, receive: Receive | DisconnectWatcher | None) -> None:
        """Discard the rest of the body; if it does not end in time, close the connection later.

        The connection would otherwise stay open for as long as the client sends.
        """
        if isinstance(receive, DisconnectWatcher):
            receive = None if receive.is_receiving else receive.receive
        if receive is None or expects_continue(self._scope) or not await drain(receive):
            self._closes = True

    def _closing(self, start: Message) -> Message:
        if self._closes:
            start["headers"] = [*start.get("headers", ()), (b"connection", b"close")]
        return start

    async def _finish(
        self, handler: RequestHandler, scope: Scope, receive: Receive, error: MoyinError
    ) -> None:
        """End a stream or WebSocket that has begun with an error of its protocol."""
        last = handler.render_end(error, self, scope["path"])
        if self._kind == "http" and last is not None:
            self.code = error.code
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
        else:
            await self._fail(handler, scope, receive, error)

    async def _fail(
        self, handler: RequestHandler, scope: Scope, receive: Receive, error: MoyinError
    ) -> None:
        self.code = error.code
        if self._kind == "websocket":
            await self._close_socket(receive, error)
        elif self.progress.started and self._start is None:
            # The status was sent, so the connection is closed to show the error. Apps that stream
            # send an error event of their protocol instead.
            _log.error("request %s failed after its start: %s", self.request_id, error)
            raise error
        else:
            start, body = handler.render(error, self.request_id, scope)
            self._start = None
            if isinstance(error, BodyTooSlow):
                self._closes = True
            elif self._watcher is None and has_body(scope):
                # The request was refused before its body was read.
                await self._drain_body(receive)
            await self.send(start)
            await self.send({"type": "http.response.body", "body": body})

    async def _close_socket(self, receive: Receive, error: MoyinError) -> None:
        if not self.progress.started:
            # Accepted first: browsers show a close code and reason, but no refused handshake.
            await receive()
            await self.send({"type": "websocket.accept"})
        self.status = _WS_POLICY_VIOLATION
        reason = f"{error.code}: {error.message}".encode()[:123].decode(errors="ignore")
        await self._send(
            {"type": "websocket.close", "code": _WS_POLICY_VIOLATION, "reason": reason}
        )


async def _send_nothing() -> None:
    """Send nothing, since the message is held."""


def _too_slow() -> BodyTooSlow:
    return BodyTooSlow("the body was not received in time; send it faster")


def _request_id(scope: Scope) -> str:
    """Return the id that the client has chosen, or a new one."""
    requested = header(scope, b"x-request-id")
    if requested is not None and REQUEST_ID.fullmatch(requested):
        return requested
    return secrets.token_hex(16)
