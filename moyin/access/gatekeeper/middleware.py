"""`Gatekeeper`, the middleware itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from moyin.access.gatekeeper.asgi import ASGIApp, Message, Receive, Scope, Send
from moyin.access.gatekeeper.body import limit_body
from moyin.access.gatekeeper.credentials import Credentials, Where
from moyin.access.gatekeeper.identity import Authenticator
from moyin.access.gatekeeper.monitor import CredentialMonitor
from moyin.access.gatekeeper.observation import Observation, Observer
from moyin.access.gatekeeper.request import Request
from moyin.errors import MissingKey, MoyinError
from moyin.http.problems import (
    SECURITY_HEADERS,
    ErrorRenderer,
    StreamErrorRenderer,
    error_event,
)

__all__ = ["Gatekeeper"]


class Gatekeeper:
    """Wraps an ASGI app; the app finds a `RequestContext` through `context(scope)`.

    Args:
        service: name of the app in logs and metrics.
        errors: renders every MoyinError that the app lets through, and our own.
        errors_of: renders one request's errors, where that depends on more than its path; None:
            ``errors`` does.
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
        errors_of: Callable[[Scope], ErrorRenderer] | None = None,
    ) -> None:
        self._app = app
        self._service = service
        self._authenticator = authenticator
        self._errors_of = errors_of or (lambda scope: errors)
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
            request = Request(scope, send, self.names_requests)
            await request.run(self, scope, receive)

    async def admit(self, request: Request, scope: Scope, receive: Receive) -> None:
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

    def note(self, scope: Scope, request: Request) -> None:
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

    def render(self, error: MoyinError, request_id: str, scope: Scope) -> tuple[Message, bytes]:
        """The start message and the body of an error."""
        rendered = self._errors_of(scope)(error, request_id, scope["path"])
        headers = [
            (b"content-length", str(len(rendered.body)).encode()),
            *((k.encode(), v.encode("latin-1")) for k, v in rendered.headers.items()),
            *SECURITY_HEADERS,
        ]
        return (
            {"type": "http.response.start", "status": rendered.status, "headers": headers},
            rendered.body,
        )

    def render_end(self, error: MoyinError, request: Request, path: str) -> bytes | None:
        """What ends a stream with an error of its protocol; None: it can only be cut."""
        media_type = request.progress.appendable_as
        if media_type is None:
            return None
        return self._stream_errors(error, request.request_id, path, media_type)
