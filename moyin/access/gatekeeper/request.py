"""Processes one request in the gatekeeper, from authentication to the last message."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable
from typing import Protocol

from moyin.access.gatekeeper.asgi import (
    REQUEST_ID_PATTERN,
    Message,
    Receive,
    Scope,
    Send,
    get_header,
)
from moyin.access.gatekeeper.body import drain_body, expects_continue, has_body
from moyin.access.gatekeeper.context import RequestContext
from moyin.access.gatekeeper.disconnect import DisconnectWatcher
from moyin.access.gatekeeper.monitor import CredentialMonitor
from moyin.access.gatekeeper.response_progress import ResponseProgress
from moyin.domain.identity import Identity
from moyin.errors import BodyTooSlow, MoyinError, RateLimited

_log = logging.getLogger(__name__)
# Close code of RFC 6455 ("policy violation") for WebSockets whose key is missing or has ended.
_WS_POLICY_VIOLATION = 1008


class RequestHandler(Protocol):
    """The methods of `Gatekeeper` that a `Request` calls."""

    async def admit(self, request: Request, scope: Scope, receive: Receive) -> None:
        """Authenticate the request and call the app.

        Raises:
            MoyinError: the request is refused, or the app raised this error.
        """

    def observe(self, scope: Scope, request: Request) -> None:
        """Report an ended request, for the access log and metrics."""

    def render_error(
        self, error: MoyinError, request_id: str, scope: Scope
    ) -> tuple[Message, bytes]:
        """Return the ASGI start message and the body of an error response."""

    def render_stream_end(self, error: MoyinError, request: Request, path: str) -> bytes | None:
        """Return the event that ends a stream with an error, or None if it cannot be appended."""


class Request:
    """One request: calls the app, sends its response or an error, and can be ended early.

    Implements `moyin.access.gatekeeper.monitor.Connection`, so that the monitor can end it.
    """

    def __init__(self, scope: Scope, send: Send, adds_request_id: bool) -> None:
        self._scope = scope
        self._kind: str = scope["type"]
        self.request_id = _choose_request_id(scope)
        self._send = send
        self._adds_request_id = adds_request_id
        self._context: RequestContext | None = None
        self.started_at = time.perf_counter()
        self.progress = ResponseProgress(self._kind)
        self._held_start: Message | None = None  # held until the rest of the request body is read
        self._closes_connection = False  # whether the connection closes after the response
        self.status = 499  # 499 remains if the client disconnects before a status is sent
        self.code: str | None = None
        self._watcher: DisconnectWatcher | None = None
        self._credential = ""
        self.identity: Identity | None = None
        self._monitor: CredentialMonitor | None = None
        self._task: asyncio.Task[object] | None = None
        self._end_error: MoyinError | None = None

    @property
    def context(self) -> RequestContext:
        """The context of the request for the app."""
        if self._context is None:
            self._context = RequestContext(request_id=self.request_id, identity=self.identity)
        return self._context

    def set_caller(self, credential: str, identity: Identity) -> None:
        """Set the authenticated caller of the request."""
        self._credential = credential
        self.identity = identity

    async def run(self, handler: RequestHandler, scope: Scope, receive: Receive) -> None:
        """Call ``handler.admit``, and send an error response if it fails."""
        try:
            try:
                await handler.admit(self, scope, receive)
            finally:
                if self._monitor is not None:
                    self._monitor.discard(self._credential, self)
        except asyncio.CancelledError:
            if not self._revoke_cancellation():
                raise
            if self._end_error is not None:
                await self._end_stream(handler, scope, receive, self._end_error)
            elif self._watcher is not None and self._watcher.was_too_slow:
                await self._send_error(handler, scope, receive, _new_too_slow_error())
        except MoyinError as error:
            await self._send_error(handler, scope, receive, error)
        except Exception:
            _log.exception("request %s raised an unexpected error", self.request_id)
            internal_error = MoyinError(
                f"an internal error occurred in request {self.request_id}; report this id to the "
                "operator"
            )
            await self._send_error(handler, scope, receive, internal_error)
        finally:
            if self._watcher is not None:
                self._watcher.close()
            handler.observe(scope, self)

    def watch_disconnect(self, receive: Receive, monitor: CredentialMonitor) -> Receive:
        """Watch for the end of the client's connection; return the ASGI ``receive`` for the app.

        From now on, the request ends when its client disconnects. A long-lived request also ends
        when its credential ends or loses a required scope.
        """
        self._watcher = DisconnectWatcher(receive, lambda: self.monitor_credential(monitor))
        self._task = self._watcher.task
        return self._watcher.receive

    def monitor_credential(self, monitor: CredentialMonitor) -> None:
        """Let ``monitor`` verify the caller's credential again while the request lasts."""
        if self.identity is None:
            return
        self._task = self._task or asyncio.current_task()
        self._monitor = monitor
        monitor.add(self._credential, self.identity, self)

    @property
    def can_end(self) -> bool:
        """True if this is a WebSocket or a started stream, and `end` was not called yet."""
        return self._end_error is None and self.progress.is_under_way

    def find_refusal(self, identity: Identity) -> MoyinError | None:
        """Return the error with which to end the request; None if ``identity`` may continue it."""
        for limit in identity.limits:
            if 0 in (limit.requests_per_minute, limit.concurrent_requests):
                return RateLimited(
                    f"the limit of {limit.subject} no longer allows requests; ask an administrator"
                )
        try:
            for required_scope in self.context.required_scopes:
                RequestContext(request_id=self.request_id, identity=identity).require(
                    required_scope
                )
        except MoyinError as error:
            return error
        return None

    def end(self, error: MoyinError) -> None:
        """Cancel the app; `run` then sends ``error`` to the client in the connection's protocol."""
        if self._task is not None:
            self._end_error = error
            self._task.cancel()

    def _revoke_cancellation(self) -> bool:
        """Revoke a cancellation by the gatekeeper; return False if the server cancelled the request."""
        is_by_gatekeeper = self._watcher is not None and self._watcher.has_cancelled
        if is_by_gatekeeper and self._watcher is not None:
            self._watcher.uncancel()
        if self._end_error is not None and self._task is not None:
            self._task.uncancel()
            is_by_gatekeeper = True
        return is_by_gatekeeper

    # This is not a coroutine function, because that would create a second coroutine per message.
    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the app to the client, and record it.

        If the app responds before it has read the whole request body, the start message is held
        back until the next message. Only then is it known if ``Connection: close`` must be added.
        """
        self.progress.record(message)
        if self._held_start is not None:
            return self._send_held_start(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._adds_request_id:
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", self.request_id.encode()),
                ]
            watcher = self._watcher
            if self._closes_connection:
                message = self._add_close_header(message)
            elif watcher is not None and not watcher.is_complete and has_body(self._scope):
                self._held_start = message
                return _do_nothing()
        elif message["type"] == "websocket.accept":
            self.status = 101
        return self._send(message)

    async def _send_held_start(self, message: Message) -> None:
        """Send the start message that was held back, and then ``message``."""
        start_message, self._held_start = self._held_start, None
        assert start_message is not None
        if not message.get("more_body", False):
            await self._drain_body(self._watcher)
        await self._send(self._add_close_header(start_message))
        await self._send(message)

    async def _drain_body(self, receive: Receive | DisconnectWatcher | None) -> None:
        """Discard the rest of the request body.

        If it arrives too slowly, close the connection after the response; otherwise the connection
        would stay open for as long as the client sends.
        """
        if isinstance(receive, DisconnectWatcher):
            receive = None if receive.is_receiving else receive.receive
        if receive is None or expects_continue(self._scope) or not await drain_body(receive):
            self._closes_connection = True

    def _add_close_header(self, start_message: Message) -> Message:
        if self._closes_connection:
            start_message["headers"] = [
                *start_message.get("headers", ()),
                (b"connection", b"close"),
            ]
        return start_message

    async def _end_stream(
        self, handler: RequestHandler, scope: Scope, receive: Receive, error: MoyinError
    ) -> None:
        """End a started stream or WebSocket with an error in its own protocol."""
        last_event = handler.render_stream_end(error, self, scope["path"])
        if self._kind == "http" and last_event is not None:
            self.code = error.code
            await self._send({"type": "http.response.body", "body": last_event, "more_body": False})
        else:
            await self._send_error(handler, scope, receive, error)

    async def _send_error(
        self, handler: RequestHandler, scope: Scope, receive: Receive, error: MoyinError
    ) -> None:
        self.code = error.code
        if self._kind == "websocket":
            await self._close_socket(receive, error)
        elif self.progress.has_started and self._held_start is None:
            # The status was already sent, so the server closes the connection on this exception.
            _log.error("request %s failed after its response began: %s", self.request_id, error)
            raise error
        else:
            start_message, body = handler.render_error(error, self.request_id, scope)
            self._held_start = None
            if isinstance(error, BodyTooSlow):
                self._closes_connection = True
            elif self._watcher is None and has_body(scope):
                # The request was rejected before its body was read.
                await self._drain_body(receive)
            await self.send(start_message)
            await self.send({"type": "http.response.body", "body": body})

    async def _close_socket(self, receive: Receive, error: MoyinError) -> None:
        if not self.progress.has_started:
            # The WebSocket is accepted first, because browsers give scripts the close reason but no
            # details of a rejected handshake.
            await receive()
            await self.send({"type": "websocket.accept"})
        self.status = _WS_POLICY_VIOLATION
        reason = f"{error.code}: {error.message}".encode()[:123].decode(errors="ignore")
        await self._send(
            {"type": "websocket.close", "code": _WS_POLICY_VIOLATION, "reason": reason}
        )


async def _do_nothing() -> None:
    """Do nothing; `send` returns this awaitable for a message that it holds back."""


def _new_too_slow_error() -> BodyTooSlow:
    return BodyTooSlow("the request body paused for too long or arrived too slowly; send it faster")


def _choose_request_id(scope: Scope) -> str:
    """Return the client's ``x-request-id`` if it is valid, or a new id."""
    requested_id = get_header(scope, b"x-request-id")
    if requested_id is not None and REQUEST_ID_PATTERN.fullmatch(requested_id):
        return requested_id
    return secrets.token_hex(16)
