"""Serves Swagger UI for an app's OpenAPI document at ``/docs``, from files of an installed package.

FastAPI's own page loads Swagger UI from a CDN and stays blank without access to the Internet.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse

_MEDIA_TYPES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
# Paths, relative to the app's prefix, that need no key.
DOCS_PATHS = ("docs", *(f"docs/{name}" for name in _MEDIA_TYPES))
_SWAGGER_UI_FOLDER = Path(str(files("fastapi_offline"))) / "static"
# The URLs are relative to the page, so that every path prefix works.
_SCRIPT = """
SwaggerUIBundle({
  url: new URL("openapi.json", location.href).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  showExtensions: true,
  showCommonExtensions: true,
  validatorUrl: null,
});
"""
_PAGE_TEMPLATE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>$script</script>
</body>
</html>
""")
_SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    f"connect-src 'self'; script-src 'self' 'sha256-{_SCRIPT_DIGEST}'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_CACHE_HEADERS = {"cache-control": "public, max-age=3600"}


def new_docs_routes(title: str) -> APIRouter:
    """Return the routes of the page and its files; the page loads the URL path ``openapi.json``."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE_TEMPLATE.substitute(title=escape(title), script=_SCRIPT)

    @router.get("/docs")
    async def show_docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _CONTENT_SECURITY_POLICY})

    for name, media_type in _MEDIA_TYPES.items():
        router.add_api_route(
            f"/docs/{name}", _new_file_handler(_SWAGGER_UI_FOLDER / name, media_type)
        )
    return router


def _new_file_handler(path: Path, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def send_file() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers=_CACHE_HEADERS)

    return send_file
