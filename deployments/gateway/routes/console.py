"""Defines the routes of the web console at ``/console/``, whose page and files are public."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from moyin.comfy_api.pages import render_plain_page
from moyin.console import CONSOLE_PATH, ConsoleFile, ConsoleFiles, build_security_policy
from moyin.errors import RouteNotFound

_CACHE_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"


def new_console_routes(console: ConsoleFiles) -> APIRouter:
    """Return the routes of the console's page, its files, and the paths of its views."""
    router = APIRouter(tags=["console"])

    @router.get(CONSOLE_PATH.rstrip("/"), include_in_schema=False)
    async def redirect_to_console() -> Response:
        return RedirectResponse(CONSOLE_PATH, 307)

    @router.api_route(
        CONSOLE_PATH + "{path:path}", methods=["GET", "HEAD"], include_in_schema=False
    )
    async def get_console(request: Request, path: str) -> Response:
        """Return a file of the console, or the page if the path is one of its views."""
        file = await console.find(path)
        if file is not None:
            return _build_file_response(file, request)
        # An address of a page may contain a dot, too, such as that of a job with a wrong id.
        first_segment, _, remaining_path = path.partition("/")
        if path != "index.html" and (
            "." in first_segment or (first_segment == "assets" and remaining_path)
        ):
            raise RouteNotFound(f"the console has no file {path}; its page is at {CONSOLE_PATH}")
        return await _build_page_response(console)

    return router


async def _build_page_response(console: ConsoleFiles) -> Response:
    nonce = secrets.token_urlsafe(16)
    page = await console.render_page(nonce)
    if page is None:
        missing_page = render_plain_page(
            "The console is not built",
            "This installation has no built files of the console; install a released package.",
        )
        return HTMLResponse(missing_page.html, 503, missing_page.headers)
    headers = {"content-security-policy": build_security_policy(nonce), "cache-control": "no-store"}
    return HTMLResponse(page, headers=headers)


def _build_file_response(file: ConsoleFile, request: Request) -> Response:
    headers = {
        "etag": file.etag,
        "cache-control": _CACHE_FOREVER if file.is_immutable else _REVALIDATE,
        "cross-origin-resource-policy": "same-origin",
    }
    if file.gzipped is not None:
        headers["vary"] = "accept-encoding"
    known_tags = {tag.strip() for tag in request.headers.get("if-none-match", "").split(",")}
    if file.etag in known_tags:
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.gzipped is not None and _accepts_gzip(request):
        content, headers["content-encoding"] = file.gzipped, "gzip"
    return Response(content, headers=headers, media_type=file.media_type)


def _accepts_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")
