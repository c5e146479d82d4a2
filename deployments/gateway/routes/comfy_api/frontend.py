"""Serves ComfyUI's frontend at ``/comfy/``, and the sign-in of browsers."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from pydantic import ValidationError

from deployments.gateway.frontend import FrontendFiles
from moyin.access.gatekeeper import get_http_status
from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.comfy_api import pages
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.protocol.paths import PAGE
from moyin.comfy_api.protocol.session import SessionBody, SignIn
from moyin.errors import BodyTooLarge, InvalidKey, InvalidRequest, ServiceUnavailable

__all__ = ["frontend_routes", "session_routes"]

# Ollama's clients look for this text at the root.
_OLLAMA_GREETING = "Ollama is running"
_MAX_BODY_BYTES = 16 * 1024
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
    """Return the routes that sign a browser in and out."""
    router = APIRouter(tags=["comfyui"])

    @router.get("/comfy/session", response_model=SessionBody, responses={200: _HTML, 401: _HTML})
    async def session(request: Request) -> Response | SessionBody:
        """Return whom this browser is signed in as. Browsers get a page with a sign-out button."""
        identity = await sessions.find_identity(request.scope)
        wants_html = "text/html" in request.headers.get("accept", "")
        if identity is not None:
            if wants_html:
                return _html(pages.signed_in_page(identity.user or identity.owner))
            return SessionBody(owner=identity.owner, user=identity.user)
        if wants_html:
            return _html(pages.sign_in_page(), 401)
        raise InvalidKey("this browser is not signed in: post a key to /comfy/session")

    @router.post(
        "/comfy/session",
        response_model=SessionBody,
        responses={200: {}, 303: {}, 400: _HTML, 401: _HTML},
        openapi_extra=_SIGN_IN,
    )
    async def sign_in(request: Request, response: Response) -> Response | SessionBody:
        """Sign a browser in: store an API key or access token in a cookie for `/comfy/` only."""
        is_form = request.headers.get("content-type", "").startswith(_FORM)
        try:
            identity, cookie = await sessions.sign_in(
                request.scope, await _read_key(request, is_form)
            )
        except (InvalidKey, InvalidRequest) as error:
            if is_form:
                return _html(
                    pages.sign_in_page(_as_sentence(error.message)), get_http_status(error)
                )
            raise
        if is_form:
            return RedirectResponse(PAGE, 303, {"set-cookie": cookie, "cache-control": "no-store"})
        response.headers.update({"set-cookie": cookie, "cache-control": "no-store"})
        return SessionBody(owner=identity.owner, user=identity.user)

    @router.post("/comfy/session/end", status_code=303, response_class=RedirectResponse)
    async def sign_out(request: Request) -> Response:
        """Delete the cookie and redirect to the sign-in page."""
        return RedirectResponse(PAGE, 303, {"set-cookie": sessions.sign_out(request.scope)})

    return router


def frontend_routes(
    sessions: BrowserSessions, frontend: FrontendFiles, node_info: NodeInfoCache
) -> APIRouter:
    """Return the routes of the page; its files are public and need no key."""
    router = APIRouter(tags=["comfyui"])

    @router.head("/", include_in_schema=False)
    async def ollama_probe() -> PlainTextResponse:
        """Answer the first request of Ollama's command-line client."""
        return PlainTextResponse(_OLLAMA_GREETING)

    # Version 1.32 of the frontend reloads itself at `/`.
    @router.get("/", include_in_schema=False)
    @router.get(PAGE.rstrip("/"), include_in_schema=False)
    async def redirect_to_page(request: Request) -> Response:
        if request.url.path == "/" and _is_ollama_client(request):
            return PlainTextResponse(_OLLAMA_GREETING)
        query = request.url.query
        return RedirectResponse(f"{PAGE}?{query}" if query else PAGE, 307)

    @router.get(PAGE, include_in_schema=False)
    async def page(request: Request) -> Response:
        if await sessions.find_identity(request.scope) is None:
            return _html(pages.sign_in_page(), 401)
        try:
            # Without nodes the page cannot show a graph, and it does not request them again.
            await node_info.nodes()
        except ServiceUnavailable:
            return _html(pages.waiting_page(), 503)
        return await frontend.page()

    @router.api_route("/comfy/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        return await frontend.file(path, request.scope)

    return router


def _is_ollama_client(request: Request) -> bool:
    """Return whether an Ollama client sent the request; all others want the page."""
    return request.headers.get("user-agent", "").lower().startswith("ollama")


async def _read_key(request: Request, is_form: bool) -> str:
    """Return the key in a form or a JSON object.

    Raises:
        BodyTooLarge: the body is larger than any key.
        InvalidRequest: the body has no key.
    """
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is larger than {_MAX_BODY_BYTES} bytes")
    try:
        if is_form:
            fields = parse_qs(body.decode())
            return SignIn.model_validate({name: values[0] for name, values in fields.items()}).key
        return SignIn.model_validate_json(body).key
    except (ValidationError, ValueError):
        raise InvalidRequest("`key` must be an API key or access token", field="key") from None


def _html(page: pages.Page, status: int = 200) -> Response:
    return HTMLResponse(page.html, status, page.headers)


def _as_sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."
