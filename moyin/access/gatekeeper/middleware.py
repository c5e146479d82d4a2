"""Implements the ASGI middleware that wraps every app and authenticates each request."""

from __future__ import annotations

import time
from collections.abc import Callable

from moyin.access.gatekeeper.asgi import ASGIApp, Message, Receive, Scope, Send, get_header
from moyin.access.gatekeeper.body import limit_body
from moyin.access.gatekeeper.content_encoding import decode_body
from moyin.access.gatekeeper.credential_finder import CredentialFinder, RequestPredicate
from moyin.access.gatekeeper.identity import Authenticator
from moyin.access.gatekeeper.monitor import CredentialMonitor
from moyin.access.gatekeeper.observation import Observation, Observer
from moyin.access.gatekeeper.replica_memory import (
    MAX_IN_PROGRESS,
    BodyMemory,
    CountedBody,
    OpenConnections,
)
from moyin.access.gatekeeper.request import Request
from moyin.domain.identity import Identity
from moyin.errors import MissingKey, MoyinError
from moyin.http.problems import (
    SECURITY_HEADERS,
    ErrorRenderer,
    StreamErrorRenderer,
    render_error_event,
)


class Gatekeeper:
    """Authenticates requests, limits their bodies, renders errors and reports ended requests.

    The wrapped app gets the `RequestContext` of a request by calling `context(scope)`.

    Args:
        service: the name of the app in logs and metrics.
        error_renderer: renders a `MoyinError` of the app or the gatekeeper as a response body.
        error_renderer_of: selects a renderer per request; if None, ``error_renderer`` renders all
            errors.
        stream_error_renderer: renders the last event of a stream whose credential has ended.
        keeps_encoding: selects requests whose bodies the app gets as the client encoded them;
            if None, the app gets all bodies decoded.
        body_limit_of: returns the maximum size of a request's body in bytes, or None for any size.
            Without it, ``max_body_bytes`` applies to all requests.
        max_in_progress: the most requests, and the most WebSockets, that a tenant may have at a time.
        public_paths: the paths that need no key, or a function that returns True for such requests.
        credential_finder: finds the key of a request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        service: str,
        authenticator: Authenticator,
        error_renderer: ErrorRenderer,
        max_body_bytes: int,
        observer: Observer,
        public_paths: frozenset[str] | RequestPredicate = frozenset(),
        credential_finder: CredentialFinder | None = None,
        stream_error_renderer: StreamErrorRenderer = render_error_event,
        error_renderer_of: Callable[[Scope], ErrorRenderer] | None = None,
        keeps_encoding: RequestPredicate | None = None,
        body_limit_of: Callable[[Scope], int | None] | None = None,
        max_in_progress: int = MAX_IN_PROGRESS,
    ) -> None:
        self._app = app
        self._service = service
        self._authenticator = authenticator
        self._errors_of = error_renderer_of or (lambda scope: error_renderer)
        self._body_limit_of = body_limit_of or (lambda scope: max_body_bytes)
        self._observer = observer
        self._is_public: RequestPredicate = (
            public_paths if callable(public_paths) else lambda scope: scope["path"] in public_paths
        )
        self._credentials = credential_finder or CredentialFinder()
        self._stream_error_renderer = stream_error_renderer
        self._keeps_encoding = keeps_encoding or (lambda scope: False)
        self.monitor = CredentialMonitor(authenticator)
        self._body_memory = BodyMemory(max_body_bytes)
        self._open_requests = OpenConnections("requests in progress", max_in_progress)
        self._open_sockets = OpenConnections("WebSockets open", max_in_progress)
        self._adds_request_id = True

    def disable_request_id(self) -> Gatekeeper:
        """Stop adding ``x-request-id`` headers, because Ray Serve adds them, and return self."""
        self._adds_request_id = False
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            request = Request(scope, send, self._adds_request_id)
            await request.run(self, scope, receive)

    async def admit(self, request: Request, scope: Scope, receive: Receive) -> None:
        """Authenticate the request and call the app.

        Raises:
            MoyinError: the request is refused, or the app raised this error.
        """
        if not self._is_public(scope):
            request.set_caller(*await self._authenticate(scope))
        scope["moyin"] = request.context
        if scope["type"] == "http":
            max_bytes = self._body_limit_of(scope)
            if max_bytes is not None:
                receive = limit_body(scope, receive, max_bytes)
            receive = request.watch_disconnect(receive, self.monitor)
            encodings = [value for name, value in scope["headers"] if name == b"content-encoding"]
            if encodings and max_bytes is not None and not self._keeps_encoding(scope):
                scope, receive = decode_body(scope, receive, max_bytes, encodings)
            counted_body = CountedBody(
                receive,
                self._body_memory,
                request.context,
                _read_content_length(scope),
            )
            try:
                with self._open_requests.count(request.identity):
                    await self._app(scope, counted_body.receive, request.send)
            finally:
                counted_body.release()
        else:
            request.monitor_credential(self.monitor)
            with self._open_sockets.count(request.identity):
                await self._app(scope, receive, request.send)

    async def _authenticate(self, scope: Scope) -> tuple[str, Identity]:
        """Return the credential of a request and its identity.

        A key takes precedence over an event token, and the token over a cookie. A page may follow
        another tenant's job with a token while the browser, which is signed in, sends its cookie.
        """
        token = self._credentials.extract_event_token(scope)
        credential = self._credentials.extract(scope, reads_cookie=token is None)
        if credential is not None:
            return credential, await self._authenticator.authenticate(credential)
        if token is not None:
            return token, await self._authenticator.authenticate_event_token(token)
        raise MissingKey(
            "the request has no API key; send one in the header Authorization, as "
            "'Bearer <key>', or in the header x-api-key"
        )

    def observe(self, scope: Scope, request: Request) -> None:
        """Report an ended request to the observer, for the access log and metrics."""
        identity = request.identity
        self._observer.observe(
            Observation(
                service=self._service,
                request_id=request.request_id,
                method=scope.get("method", "WEBSOCKET"),
                path=scope["path"],
                status=request.status,
                seconds=time.perf_counter() - request.started_at,
                owner=identity.owner if identity else None,
                key_id=identity.key_id if identity else None,
                code=request.code,
            )
        )

    def render_error(
        self, error: MoyinError, request_id: str, scope: Scope
    ) -> tuple[Message, bytes]:
        """Return the ASGI start message and the body of an error response."""
        error_body = self._errors_of(scope)(error, request_id, scope["path"])
        headers = [
            (b"content-length", str(len(error_body.body)).encode()),
            *((k.encode(), v.encode("latin-1")) for k, v in error_body.headers.items()),
            *SECURITY_HEADERS,
        ]
        return (
            {"type": "http.response.start", "status": error_body.status, "headers": headers},
            error_body.body,
        )

    def render_stream_end(self, error: MoyinError, request: Request, path: str) -> bytes | None:
        """Return the event that ends a stream with an error, or None if it cannot be appended."""
        media_type = request.progress.appendable_media_type
        if media_type is None:
            return None
        return self._stream_error_renderer(error, request.request_id, path, media_type)


def _read_content_length(scope: Scope) -> int:
    """Return the declared size of a body in bytes, or 0 if there is none or it is not a number."""
    value = get_header(scope, b"content-length") or ""
    return int(value) if value.isdecimal() else 0
