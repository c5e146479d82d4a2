"""What the apps with a door have in common: FastAPI with our errors."""

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
    """A FastAPI app that answers every error in the shape of ``errors``."""
    # FastAPI's own pages need the Internet.
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
            told = RouteNotFound(f"there is no {request.method} {request.url.path}")
            return render(request, told)
        return render(request, InvalidRequest(str(error.detail)))

    app.add_middleware(_Answered, errors=errors)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(_WithoutNul, errors=errors)
    app.add_exception_handler(MoyinError, on_moyin_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.include_router(docs_routes(title))
    return app


class _Answered:
    """Answers what nobody foresaw in the app's own shape: FastAPI would in one of its own."""

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if started:
                raise
            request_id = context(scope).request_id
            rendered = self._errors(_told(error, request_id), request_id, scope["path"])
            answer = Response(rendered.body, rendered.status, dict(rendered.headers))
            await answer(scope, receive, send)


def _told(error: Exception, request_id: str) -> MoyinError:
    if _is_away(error):
        # Without the statement and its values. SQLite says no such column in this way, too.
        cause = getattr(error, "orig", None) or error
        _log.warning("the database is away: %r; request %s", cause, request_id)
        return ServiceUnavailable("the database does not answer at the moment", retry_after=1)
    _log.error("unhandled error; request %s", request_id, exc_info=error)
    return MoyinError("an internal error occurred")


def _is_away(error: Exception) -> bool:
    """Whether the database is what failed. Its driver lets through what the network says: refused,
    no such host, or for a host of several addresses a plain OSError without a number."""
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return True
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    if isinstance(error, ConnectionError | gaierror):
        return True
    return type(error) is OSError and error.errno is None


class _WithoutNul:
    """Refuses what no database could look for: PostgreSQL has no character NUL."""

    def __init__(self, app: ASGIApp, errors: ErrorRenderer) -> None:
        self._app = app
        self._errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error: MoyinError | None = None
        if "\0" in scope.get("path", ""):
            error = RouteNotFound("there is no path with a NUL")
        elif b"%00" in scope.get("query_string", b""):
            error = InvalidRequest("a query must not hold a NUL")
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(WS_1008_POLICY_VIOLATION, error.message)(scope, receive, send)
        else:
            rendered = self._errors(error, context(scope).request_id, scope["path"])
            answer = Response(rendered.body, rendered.status, dict(rendered.headers))
            await answer(scope, receive, send)


def _invalid(error: RequestValidationError) -> MoyinError:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return InvalidJson(f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    # The first part only says where it was found: body, query, path.
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{field}: {message}", field=field)
