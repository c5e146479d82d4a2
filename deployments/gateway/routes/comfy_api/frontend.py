"""``/comfy/``: ComfyUI's frontend for who is signed in, and the way in and out."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from pydantic import ValidationError

from deployments.gateway.frontend import FrontendFiles
from moyin.access.gatekeeper import status_of
from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.pages import Page, sign_in_page, signed_in_page, waiting_page
from moyin.comfy_api.protocol.page import SessionBody, SignIn
from moyin.comfy_api.protocol.paths import PAGE
from moyin.errors import BodyTooLarge, InvalidKey, InvalidRequest, ServiceUnavailable

__all__ = ["page_routes", "session_routes"]

_ALIVE = "Ollama is running"
_MAX_BODY = 16 * 1024
_FORM = "application/x-www-form-urlencoded"
_HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}
_SIGN_IN: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            media_type: {
                "schema": {
                    "type": "object",
                    "required": ["key"],
                    "properties": {"key": {"type": "string"}},
                }
            }
            for media_type in ("application/json", _FORM)
        },
    }
}


def session_routes(sessions: BrowserSessions) -> APIRouter:
    """The way in and out."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/comfy/session", response_model=SessionBody, responses={200: _HTML, 401: _HTML})
    async def session(request: Request) -> Response | SessionBody:
        """Who this browser's cookie is. Browsers get a page with a button to sign out."""
        identity = await sessions.identity(request.scope)
        as_page = "text/html" in request.headers.get("accept", "")
        if identity is not None:
            if as_page:
                return _html(signed_in_page(identity.user or identity.owner))
            return SessionBody(owner=identity.owner, user=identity.user)
        if as_page:
            return _html(sign_in_page(), 401)
        raise InvalidKey("this browser is not signed in")

    @router.post(
        "/comfy/session",
        response_model=SessionBody,
        responses={200: {}, 303: {}, 400: _HTML, 401: _HTML},
        openapi_extra=_SIGN_IN,
    )
    async def sign_in(request: Request, response: Response) -> Response | SessionBody:
        """Put an API key or an access token into a cookie that only `/comfy/` gets.

        A form is answered with a page, JSON with who it is."""
        form = request.headers.get("content-type", "").startswith(_FORM)
        try:
            identity, cookie = await sessions.begin(request.scope, await _key(request, form))
        except (InvalidKey, InvalidRequest) as error:
            if form:
                return _html(sign_in_page(_sentence(error.message)), status_of(error))
            raise
        if form:
            return RedirectResponse(PAGE, 303, {"set-cookie": cookie, "cache-control": "no-store"})
        response.headers.update({"set-cookie": cookie, "cache-control": "no-store"})
        return SessionBody(owner=identity.owner, user=identity.user)

    @router.post("/comfy/session/end", status_code=303, response_class=RedirectResponse)
    async def sign_out(request: Request) -> Response:
        """Take the cookie back, and show the page that asks for a key."""
        return RedirectResponse(PAGE, 303, {"set-cookie": sessions.end(request.scope)})

    return router


def page_routes(
    sessions: BrowserSessions, frontend: FrontendFiles, facts: NodeInfoCache
) -> APIRouter:
    """The routes of the page. Its files need no key, and are no secret."""
    router = APIRouter(tags=["comfyui"])

    # The first: where version 1.32 believes to be, and is asked for again.
    @router.head("/", include_in_schema=False)
    async def alive() -> PlainTextResponse:
        """What Ollama's program asks before anything else."""
        return PlainTextResponse(_ALIVE)

    @router.get("/", include_in_schema=False)
    @router.get(PAGE.rstrip("/"), include_in_schema=False)
    async def folder(request: Request) -> Response:
        if request.url.path == "/" and _is_ollamas(request):
            return PlainTextResponse(_ALIVE)
        query = request.url.query
        return RedirectResponse(f"{PAGE}?{query}" if query else PAGE, 307)

    @router.get(PAGE, include_in_schema=False)
    async def page(request: Request) -> Response:
        if await sessions.identity(request.scope) is None:
            return _html(sign_in_page(), 401)
        try:
            # Without nodes the page can show no graph, and does not ask for them again.
            await facts.nodes()
        except ServiceUnavailable:
            return _html(waiting_page(), 503)
        return await frontend.page()

    @router.api_route("/comfy/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        return await frontend.file(path, request.scope)

    return router


def _is_ollamas(request: Request) -> bool:
    """Whether the client is one of Ollama's. Browsers and ComfyUI's clients look for the page here."""
    return request.headers.get("user-agent", "").lower().startswith("ollama")


async def _key(request: Request, form: bool) -> str:
    """
    Raises:
        BodyTooLarge: nobody has such a key.
        InvalidRequest: there is none.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise BodyTooLarge(f"the body is larger than {_MAX_BODY} bytes")
    try:
        if form:
            given = parse_qs(body.decode())
            return SignIn.model_validate({name: one[0] for name, one in given.items()}).key
        return SignIn.model_validate_json(body).key
    except (ValidationError, ValueError):
        raise InvalidRequest("send an API key or an access token as `key`", field="key") from None


def _html(page: Page, status: int = 200) -> Response:
    return HTMLResponse(page.html, status, page.headers)


def _sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."
