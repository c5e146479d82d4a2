"""Defines the routes of ComfyUI's frontend at ``/comfy/``, and the sign-in of browsers."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from deployments.gateway.frontend import FrontendFiles
from deployments.gateway.openapi import describe_body
from moyin.access.gatekeeper import get_http_status
from moyin.access.gatekeeper.browser import BrowserSessions
from moyin.comfy_api import pages
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.frontend import RENEWAL_PATH
from moyin.comfy_api.protocol.paths import PAGE_PATH
from moyin.errors import BodyTooLarge, InvalidKey, InvalidRequest, ServiceUnavailable

# Ollama's clients expect this text at the root.
_OLLAMA_GREETING = "Ollama is running"
_MAX_BODY_BYTES = 16 * 1024
_FORM = "application/x-www-form-urlencoded"
_HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}
_SIGN_IN_SCHEMA = {
    "type": "object", "required": ["key"], "properties": {"key": {"type": "string"}}
}  # fmt: skip


class SignIn(BaseModel):
    """The body of a sign-in; ``key`` is an API key or an access token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4096)]


class SessionBody(BaseModel):
    """The tenant that a browser is signed in as, and the user if the key belongs to a user."""

    model_config = ConfigDict(frozen=True)

    owner: str
    user: str | None


def new_session_routes(sessions: BrowserSessions) -> APIRouter:
    """Return the routes that sign a browser in and out."""
    router = APIRouter(tags=["comfyui"])

    @router.get(
        "/comfy/session",
        response_model=SessionBody,
        responses={200: _HTML, 401: _HTML},
        name="session",
    )
    async def get_session(request: Request) -> Response | SessionBody:
        """Return this browser's tenant and user, as a page if the client accepts HTML."""
        identity = await sessions.find_identity(request.scope)
        wants_html = _accepts_html(request)
        if identity is not None:
            if wants_html:
                return _build_html_response(
                    pages.render_signed_in_page(identity.user or identity.owner)
                )
            return SessionBody(owner=identity.owner, user=identity.user)
        if wants_html:
            return _build_html_response(pages.render_sign_in_page(), 401)
        raise InvalidKey("this browser is not signed in: send a key with POST /comfy/session")

    @router.post(
        "/comfy/session",
        response_model=SessionBody,
        responses={200: {}, 303: {}, 400: _HTML, 401: _HTML},
        openapi_extra=describe_body(_SIGN_IN_SCHEMA, "application/json", _FORM),
    )
    async def sign_in(request: Request, response: Response) -> Response | SessionBody:
        """Sign a browser in by storing an API key or access token in a cookie."""
        is_form = request.headers.get("content-type", "").startswith(_FORM)
        try:
            identity, cookies = await sessions.sign_in(
                request.scope, await _read_key(request, is_form)
            )
        except (InvalidKey, InvalidRequest) as error:
            if is_form:
                return _build_html_response(
                    pages.render_sign_in_page(_to_sentence(error.message)), get_http_status(error)
                )
            raise
        if is_form:
            return _add_cookies(RedirectResponse(PAGE_PATH, 303), cookies)
        _add_cookies(response, cookies)
        return SessionBody(owner=identity.owner, user=identity.user)

    @router.post("/comfy/session/end", status_code=303, response_class=RedirectResponse)
    async def sign_out(request: Request) -> Response:
        """End the browser's session, delete its cookies and redirect to the sign-in page."""
        cookies = await sessions.sign_out(request.scope)
        return _add_cookies(RedirectResponse(PAGE_PATH, 303), cookies)

    return router


def new_frontend_routes(
    sessions: BrowserSessions, frontend: FrontendFiles, admission: GraphAdmission
) -> APIRouter:
    """Return the routes of the frontend's page and of its files, which are public."""
    router = APIRouter(tags=["comfyui"])

    @router.head("/", include_in_schema=False)
    async def respond_to_ollama_probe() -> PlainTextResponse:
        """Respond with Ollama's greeting to the first request of its command-line client."""
        return PlainTextResponse(_OLLAMA_GREETING)

    @router.get("/", include_in_schema=False)
    async def get_root(request: Request) -> Response:
        if _is_ollama_client(request):
            return PlainTextResponse(_OLLAMA_GREETING)
        # Version 1.32 of the frontend reloads itself at `/`.
        if _accepts_html(request):
            return await redirect_to_page(request)
        # Clients such as comfy-api-client check that `/` has a page, but do not follow redirects.
        return _build_html_response(pages.render_start_page())

    @router.get(PAGE_PATH.rstrip("/"), include_in_schema=False)
    async def redirect_to_page(request: Request) -> Response:
        query = request.url.query
        return RedirectResponse(f"{PAGE_PATH}?{query}" if query else PAGE_PATH, 307)

    @router.get(PAGE_PATH, include_in_schema=False)
    async def get_page(request: Request) -> Response:
        identity = await sessions.find_identity(request.scope)
        if identity is None:
            return _build_html_response(pages.render_sign_in_page(), 401)
        try:
            # The page requests the node classes only once, and cannot show a graph without them.
            await (await admission.find_pools(identity)).fetch_nodes()
        except ServiceUnavailable:
            return _build_html_response(pages.render_waiting_page(), 503)
        return await frontend.get_page(renews_session=identity.is_session)

    @router.get(RENEWAL_PATH, include_in_schema=False)
    async def get_renewal_script() -> Response:
        headers = {"cache-control": "no-cache", "cross-origin-resource-policy": "same-origin"}
        return Response(pages.RENEWAL_SCRIPT, headers=headers, media_type="text/javascript")

    @router.api_route("/comfy/{path:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def get_file(request: Request, path: str) -> Response:
        return await frontend.get_file(path, request.scope)

    return router


def _accepts_html(request: Request) -> bool:
    """Return True if the client names HTML in its header Accept, as browsers do for pages."""
    return "text/html" in request.headers.get("accept", "")


def _is_ollama_client(request: Request) -> bool:
    """Return True if an Ollama client sent the request, and not a browser."""
    return request.headers.get("user-agent", "").lower().startswith("ollama")


async def _read_key(request: Request, is_form: bool) -> str:
    """Read the member ``key`` of the body, which is a form or a JSON object.

    Raises:
        BodyTooLarge: the body is larger than a key can be.
        InvalidRequest: the body has no member ``key``.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise BodyTooLarge(
                f"the body is larger than {_MAX_BODY_BYTES} bytes: send only a key or token"
            )
    try:
        if is_form:
            fields = parse_qs(body.decode())
            return SignIn.model_validate({name: values[0] for name, values in fields.items()}).key
        return SignIn.model_validate_json(body).key
    except (ValidationError, ValueError):
        raise InvalidRequest(
            "the body's member key must be an API key or access token", field="key"
        ) from None


def _add_cookies(response: Response, cookies: list[str]) -> Response:
    response.headers["cache-control"] = "no-store"
    for cookie in cookies:
        response.headers.append("set-cookie", cookie)
    return response


def _build_html_response(page: pages.HtmlPage, status: int = 200) -> Response:
    return HTMLResponse(page.html, status, page.headers)


def _to_sentence(message: str) -> str:
    return f"{message[:1].upper()}{message[1:]}."
