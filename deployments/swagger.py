"""Serves an app's OpenAPI document at ``/docs`` in Swagger UI, from files of an installed package.

FastAPI's own page loads Swagger UI from a CDN and stays blank in a network without Internet.
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

__all__ = ["DOCS", "docs_routes"]

_FILES = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
# Paths below the app's own that need no key.
DOCS = ("docs", *(f"docs/{name}" for name in _FILES))
# Only the package's files, which are Swagger UI's, are used; its FastAPI class is not.
_FOLDER = Path(str(files("fastapi_offline"))) / "static"
# URLs are relative to the page's, so that any path prefix works.
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
_PAGE = Template("""<!doctype html>
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
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    f"connect-src 'self'; script-src 'self' 'sha256-{_DIGEST}'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_CACHED = {"cache-control": "public, max-age=3600"}


def docs_routes(title: str) -> APIRouter:
    """Return the routes of the page; the OpenAPI document is at ``openapi.json`` beside it."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE.substitute(title=escape(title), script=_SCRIPT)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    for name, media_type in _FILES.items():
        router.add_api_route(f"/docs/{name}", _file_route(_FOLDER / name, media_type))
    return router


def _file_route(path: Path, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def served() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers=_CACHED)

    return served
