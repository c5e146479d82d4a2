"""Replaces Ray Serve's own error responses by ours.

Serve answers by itself when a replica gets a path of another app, when its proxy has no route or no
replica, and when it drops a request or its time runs out. It answers in plain text, or not at all, and
then uvicorn sends a page of its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import render_error
from moyin.access.gatekeeper import SECURITY_HEADERS
from moyin.errors import BackendTimeout, MoyinError, ServiceUnavailable, WorkerLost

__all__ = ["OutageErrors"]

# Serve's own endpoints: load balancers and HAProxy's health checks read their status.
_SERVE_PATHS = "/-/"
# Serve's own errors have no other headers. Errors of apps have a length, or are no plain text.
_SERVE_HEADERS = frozenset({b"content-type", b"retry-after", b"x-request-id"})
_PLAIN = b"text/plain"
_RETRY_SECONDS = 5


class OutageErrors:
    """Replaces errors that Serve writes itself; those of the apps pass unchanged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVE_PATHS):
            await self._app(scope, receive, send)
            return
        response = _Response(scope, send)
        try:
            await self._app(scope, receive, response.send)
        except Exception:
            # uvicorn logs it.
            if not response.begun:
                await response.replace(MoyinError("an internal error occurred"))
            raise
        if not response.begun:
            # Serve's proxy sends nothing when the replica died or failed during the request.
            await response.replace(
                WorkerLost(
                    "the replica ended before it answered; the request may have been carried out",
                    retry_after=1,
                )
            )


class _Response:
    """Sends one response, or an error in its place.

    Attributes:
        begun: a status was sent.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.begun = False
        self._replaced = False

    # Not a coroutine function: that would cost every message of every response one more coroutine.
    def send(self, message: Message) -> Awaitable[None]:
        """Forward a message, unless the response was replaced."""
        if self._replaced:
            return _dropped()
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and (error := _error(message)) is not None:
                return self.replace(error, message["headers"])
            self.begun = True
        return self._send(message)

    async def replace(self, error: MoyinError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Send ``error`` instead of a response with these ``headers``."""
        self.begun = self._replaced = True
        request_id = _request_id(headers) or _request_id(self._scope["headers"]) or uuid.uuid4().hex
        rendered = render_error(error, request_id, self._scope["path"])
        start = [
            (b"content-length", str(len(rendered.body)).encode()),
            (b"x-request-id", request_id.encode("latin-1")),
            *((name.encode(), value.encode("latin-1")) for name, value in rendered.headers.items()),
            *SECURITY_HEADERS,
        ]
        await self._send(
            {"type": "http.response.start", "status": rendered.status, "headers": start}
        )
        await self._send({"type": "http.response.body", "body": rendered.body})


async def _dropped() -> None:
    """Do nothing: the rest of a replaced response is dropped."""


def _error(start: Message) -> MoyinError | None:
    """Return the error to send instead of Serve's own response; None for a response of the app."""
    status: int = start["status"]
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    if not headers.get(b"content-type", b"").startswith(_PLAIN) or headers.keys() - _SERVE_HEADERS:
        return None
    match status:
        case 404:
            # The proxy's routes are not up to date: the app is starting or was removed.
            return ServiceUnavailable(
                "the service is starting or restarting; try again", retry_after=_RETRY_SECONDS
            )
        case 408:
            return BackendTimeout("the replica did not answer in time", retry_after=_RETRY_SECONDS)
        case 429 | 503:
            return ServiceUnavailable(
                "the service takes no more requests at the moment; try again",
                retry_after=_RETRY_SECONDS,
            )
        case 500:
            return MoyinError("an internal error occurred")
        case _:
            return None


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    return next((v.decode("latin-1") for n, v in headers if n.lower() == b"x-request-id"), None)
