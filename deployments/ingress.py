"""Builds the FastAPI app that every HTTP deployment uses, with our errors."""

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

from deployments.headers import SecurityHeaders
from deployments.swagger import docs_routes
from moyin.access.gatekeeper import ErrorRenderer, context
from moyin.errors import (
    InvalidJson,
    InvalidRequest,
    MoyinError,
    RouteNotFound,
    ServiceUnavailable,
)

__all__ = ["new_fastapi"]

_log = logging.getLogger(__name__)


def new_fastapi(title: str, *, errors: ErrorRenderer, description: str, **options: Any) -> FastAPI:
    """Return a FastAPI app that renders every error with ``errors``."""
    # FastAPI's own documentation pages need the Internet.
    app = FastAPI(
        title=title, description=description, version="1", docs_url=None, redoc_url=None, **options
    )

    def render(request: Request, error: MoyinError) -> Response:
        rendered = errors(error, context(request.scope).request_id, request.url.path)
        return Response(rendered.body, rendered.status, dict(rendered.headers))

    async def on_moyin_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, MoyinError)
        return render(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return render(request, _invalid(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code in (404, 405):
            missing = f"there is no route {request.method} {request.url.path}"
            return render(request, RouteNotFound(missing))
        return render(request, InvalidRequest(str(error.detail)))

    app.add_middleware(_UnhandledErrors, errors=errors)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(_RejectNul, errors=errors)
    app.add_exception_handler(MoyinError, on_moyin_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.include_router(docs_routes(title))
    return app


class _UnhandledErrors:
    """Renders unexpected exceptions in the app's error shape instead of FastAPI's."""

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def track_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, track_start)
        except Exception as error:
            if started:
                raise
            request_id = context(scope).request_id
            rendered = self._errors(_public_error(error, request_id), request_id, scope["path"])
            response = Response(rendered.body, rendered.status, dict(rendered.headers))
            await response(scope, receive, send)


def _public_error(error: Exception, request_id: str) -> MoyinError:
    if _is_database_down(error):
        # The cause alone, without the statement and its values. For SQLite it may also be a missing column.
        cause = getattr(error, "orig", None) or error
        _log.warning("the database is unavailable: %r; request %s", cause, request_id)
        return ServiceUnavailable("the database is unavailable; try again", retry_after=1)
    _log.error("unhandled error; request %s", request_id, exc_info=error)
    return MoyinError("an internal error occurred")


def _is_database_down(error: Exception) -> bool:
    """Tell whether ``error`` means that the database cannot be reached.

    The driver passes network errors through: refused connections, unknown hosts, and for a host with
    several addresses a plain OSError without a number.
    """
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    if isinstance(error, ConnectionError | gaierror):
        return True
    return type(error) is OSError and error.errno is None


class _RejectNul:
    """Rejects NUL characters in paths and queries: PostgreSQL cannot store or compare them."""

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: MoyinError | None = None
        if "\0" in scope.get("path", ""):
            error = RouteNotFound("a path must not contain a NUL character")
        elif b"%00" in scope.get("query_string", b""):
            error = InvalidRequest("a query must not contain a NUL character")
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(WS_1008_POLICY_VIOLATION, error.message)(scope, receive, send)
        else:
            rendered = self._errors(error, context(scope).request_id, scope["path"])
            response = Response(rendered.body, rendered.status, dict(rendered.headers))
            await response(scope, receive, send)


def _invalid(error: RequestValidationError) -> MoyinError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return InvalidJson(f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # The first part is the location: body, query or path.
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}", field=field)
