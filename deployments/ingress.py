"""Creates the FastAPI app of an HTTP deployment, with security headers and our error responses."""

from __future__ import annotations

import logging
from socket import gaierror
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.status import WS_1008_POLICY_VIOLATION
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from deployments.swagger import new_docs_routes
from moyin.access.gatekeeper import SECURITY_HEADERS, ErrorBody, ErrorRenderer, context
from moyin.errors import InvalidJson, InvalidRequest, MoyinError, RouteNotFound, ServiceUnavailable

_log = logging.getLogger(__name__)


def new_fastapi(title: str, *, errors: ErrorRenderer, description: str, **options: Any) -> FastAPI:
    """Create a FastAPI app that renders every error with ``errors``."""
    # `new_docs_routes` replaces FastAPI's documentation pages, which need the Internet.
    app = FastAPI(
        title=title, description=description, version="1", docs_url=None, redoc_url=None, **options
    )

    async def render_exception(request: Request, error: Exception) -> Response:
        error_body = errors(
            _to_moyin_error(error, request), context(request.scope).request_id, request.url.path
        )
        return to_response(error_body)

    app.add_middleware(_UnhandledErrorMiddleware, errors=errors)
    app.add_middleware(_NulCharacterMiddleware, errors=errors)
    # The outermost, so that refusals have the headers, too.
    app.add_middleware(SecurityHeadersMiddleware)
    for exception_class in (MoyinError, RequestValidationError, HTTPException):
        app.add_exception_handler(exception_class, render_exception)
    app.include_router(new_docs_routes(title))
    return app


def to_response(error: ErrorBody) -> Response:
    """Return a rendered error as a Starlette response."""
    return Response(error.body, error.status, dict(error.headers))


class SecurityHeadersMiddleware:
    """Adds headers against content sniffing, framing and referrers to responses that lack them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"] = list(message.get("headers", ()))
                present_names = {name.lower() for name, _ in headers}
                headers += [pair for pair in SECURITY_HEADERS if pair[0] not in present_names]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _UnhandledErrorMiddleware:
    """Renders unexpected exceptions in the app's error format instead of FastAPI's."""

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def track_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, track_start)
        except Exception as error:
            if has_started:
                raise
            request_id = context(scope).request_id
            error_body = self._errors(
                _to_public_error(error, request_id), request_id, scope["path"]
            )
            await to_response(error_body)(scope, receive, send)


def _to_public_error(error: Exception, request_id: str) -> MoyinError:
    if _is_database_down(error):
        # Only the cause is logged, because it omits the SQL statement and its values. The error may
        # also mean a missing column of SQLite.
        cause = getattr(error, "orig", None) or error
        _log.warning("request %s failed because the database is unavailable: %r", request_id, cause)
        return ServiceUnavailable("the database is unavailable; try again", retry_after=1)
    _log.error("request %s failed with an unexpected error", request_id, exc_info=error)
    return MoyinError(
        "an internal error occurred; the server's log has the cause for this request id"
    )


def _is_database_down(error: Exception) -> bool:
    """Return True if ``error`` means that the database cannot be reached.

    SQLAlchemy does not wrap the driver's network errors: a ConnectionError if the connection is
    refused, a gaierror if the host is unknown, and an OSError without an error number if a host has
    several addresses and all fail.
    """
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    if isinstance(error, ConnectionError | gaierror):
        return True
    return type(error) is OSError and error.errno is None


class _NulCharacterMiddleware:
    """Rejects NUL characters in paths and queries, because PostgreSQL cannot store them."""

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: MoyinError | None = None
        if "\0" in scope.get("path", ""):
            error = RouteNotFound("the path must not contain a NUL character (%00)")
        elif b"%00" in scope.get("query_string", b""):
            error = InvalidRequest("the query string must not contain a NUL character (%00)")
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(WS_1008_POLICY_VIOLATION, error.message)(scope, receive, send)
        else:
            error_body = self._errors(error, context(scope).request_id, scope["path"])
            await to_response(error_body)(scope, receive, send)


def _new_route_error(method: str, path: str) -> RouteNotFound:
    message = f"there is no route {method} {path}; the OpenAPI document lists all"
    if path.startswith("/api/"):
        # Clients such as Krita AI Diffusion call routes that a node package adds to one ComfyUI.
        message += (
            ". Routes that node packages add to ComfyUI are not passed on, because a farm has many "
            "processes: send files with POST /upload/image, and use the package's nodes in a graph"
        )
    return RouteNotFound(message)


def _to_moyin_error(error: Exception, request: Request) -> MoyinError:
    if isinstance(error, MoyinError):
        return error
    if isinstance(error, HTTPException):
        # FastAPI raises this error while it reads a body that the gatekeeper rejects.
        if isinstance(error.__cause__, MoyinError):
            return error.__cause__
        if error.status_code in (404, 405):
            return _new_route_error(request.method, request.url.path)
        return InvalidRequest(str(error.detail))
    assert isinstance(error, RequestValidationError)
    first_error = error.errors()[0]
    if first_error["type"] == "json_invalid":
        return InvalidJson(f"the body is not JSON: {first_error.get('ctx', {}).get('error', '')}")
    # The first part of the location is "body", "query" or "path".
    field = ".".join(str(part) for part in first_error["loc"][1:]) or str(first_error["loc"][0])
    message = first_error["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}", field=field)
