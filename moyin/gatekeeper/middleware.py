"""`Gatekeeper`, the middleware itself."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from moyin.domain.identity import Identity
from moyin.errors import BodyTooSlow, MissingKey, MoyinError, RateLimited
from moyin.gatekeeper.asgi import ASGIApp, Message, Receive, Scope, Send, header
from moyin.gatekeeper.body import limit_body
from moyin.gatekeeper.context import RequestContext
from moyin.gatekeeper.credentials import Credentials, Where
from moyin.gatekeeper.departure import Departure
from moyin.gatekeeper.identity import Authenticator
from moyin.gatekeeper.monitor import CredentialMonitor
from moyin.gatekeeper.observation import Observation, Observer
from moyin.gatekeeper.problems import (
    SECURITY_HEADERS,
    ErrorRenderer,
    StreamErrorRenderer,
    error_event,
)
from moyin.gatekeeper.streams import Progress

__all__ = ["REQUEST_ID", "Gatekeeper"]

_log = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# RFC 6455: policy violation; what a WebSocket without a key is closed with.
_WS_POLICY_VIOLATION = 1008


class Gatekeeper:
    """Wraps an ASGI app; the app finds a `RequestContext` through `context(scope)`.

    Args:
        service: name of the app in logs and metrics.
        errors: renders every MoyinError that the app lets through, and our own.
        stream_errors: renders the end of a stream whose caller lost the right to it.
        public: paths that need no key, or which requests need none.
        credentials: where a key is looked for.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        authenticator: Authenticator,
        errors: ErrorRenderer,
        max_body_bytes: int,
        observer: Observer,
        public: frozenset[str] | Where = frozenset(),
        credentials: Credentials | None = None,
        stream_errors: StreamErrorRenderer = error_event,
    ) -> None:
        self._app = app
        self._service = service
        self._authenticator = authenticator
        self._errors = errors
        self._max_body_bytes = max_body_bytes
        self._observer = observer
        self._is_public: Where = (
            public if callable(public) else lambda scope: scope["path"] in public
        )
        self._credentials = credentials or Credentials()
        self._stream_errors = stream_errors
        self.monitor = CredentialMonitor(authenticator)
        self.names_requests = True

    def unnamed(self) -> Gatekeeper:
        """For servers that put ``x-request-id`` on every answer themselves, as Ray Serve does."""
        self.names_requests = False
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            request = _Request(scope["type"], _request_id(scope), send, self.names_requests)
            await request.run(self, scope, receive)

    async def admit(self, request: _Request, scope: Scope, receive: Receive) -> None:
        """Check the request at the door and let it through.

        Raises:
            MoyinError: of the door or of the app.
        """
        if not self._is_public(scope):
            presented = self._credentials.take(scope)
            if presented is None:
                raise MissingKey("send an API key as 'Authorization: Bearer …' or 'x-api-key'")
            request.prove(presented, await self._authenticator.authenticate(presented))
        scope["moyin"] = request.context
        if scope["type"] == "http":
            receive = limit_body(scope, receive, self._max_body_bytes)
            receive = request.watch(receive, self.monitor)
        else:
            request.monitor(self.monitor)
        await self._app(scope, receive, request.send)

    def note(self, scope: Scope, request: _Request) -> None:
        identity = request.identity
        self._observer.observe(
            Observation(
                service=self._service,
                request_id=request.request_id,
                method=scope.get("method", "WEBSOCKET"),
                path=scope["path"],
                status=request.status,
                seconds=time.perf_counter() - request.began,
                owner=identity.owner if identity else None,
                key_id=identity.key_id if identity else None,
                code=request.code,
            )
        )

    def render(self, error: MoyinError, request_id: str, path: str) -> tuple[Message, bytes]:
        """The start message and the body of an error."""
        rendered = self._errors(error, request_id, path)
        headers = [
            (b"content-length", str(len(rendered.body)).encode()),
            *((k.encode(), v.encode("latin-1")) for k, v in rendered.headers.items()),
            *SECURITY_HEADERS,
        ]
        return (
            {"type": "http.response.start", "status": rendered.status, "headers": headers},
            rendered.body,
        )

    def render_end(self, error: MoyinError, request: _Request, path: str) -> bytes | None:
        """What ends a stream with an error of its protocol; None: it can only be cut."""
        media_type = request.progress.appendable_as
        if media_type is None:
            return None
        return self._stream_errors(error, request.request_id, path, media_type)


class _Request:
    """One request on its way: what has been sent and what is known of it."""

    def __init__(self, kind: str, request_id: str, send: Send, named: bool) -> None:
        self._kind = kind
        self.request_id = request_id
        self._send = send
        self._named = named
        self.context = RequestContext(request_id=request_id, identity=None)
        self.began = time.perf_counter()
        self.progress = Progress(kind)
        self.status = 499  # the client left before there was a status
        self.code: str | None = None
        self._departure: Departure | None = None
        self._presented = ""
        self._monitor: CredentialMonitor | None = None
        self._task: asyncio.Task[object] | None = None
        self._ended: MoyinError | None = None

    @property
    def identity(self) -> Identity | None:
        return self.context.identity

    def prove(self, presented: str, identity: Identity) -> None:
        """Take over what the credential proved."""
        self._presented = presented
        self.context = RequestContext(request_id=self.request_id, identity=identity)

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
            gatekeeper.note(scope, self)

    def watch(self, receive: Receive, monitor: CredentialMonitor) -> Receive:
        """``receive`` for the app; from now on the request ends when its client leaves, and if it
        lasts, when its caller loses the right to it."""
        self._departure = Departure(receive, lambda: self.monitor(monitor))
        self._task = asyncio.current_task()
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

    async def send(self, message: Message) -> None:
        self.progress.note(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._named:
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", self.request_id.encode()),
                ]
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self._send(message)

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
        elif self.progress.started:
            # Too late for a status: cutting the connection is the only honest end. Apps that
            # stream end with an error of their protocol and never get here.
            _log.error("request %s failed after its start: %s", self.request_id, error)
            raise error
        else:
            start, body = gatekeeper.render(error, self.request_id, scope["path"])
            if isinstance(error, BodyTooSlow):
                # The rest of the body would be read, and the connection held, for as long as it takes.
                start["headers"].append((b"connection", b"close"))
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


def _too_slow() -> BodyTooSlow:
    return BodyTooSlow("the body did not come in time")


def _request_id(scope: Scope) -> str:
    given = header(scope, b"x-request-id")
    if given is not None and REQUEST_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex
