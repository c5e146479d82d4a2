"""``/docs``: an app's description in Swagger UI, which comes with us and not from elsewhere.

FastAPI's own page loads it from a CDN, and stays blank in a network without Internet.
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
# Paths that need no key, below the app's own.
DOCS = ("docs", *(f"docs/{name}" for name in _FILES))
# The package is a FastAPI of its own; what we take is the files in it, which are Swagger UI's.
_FOLDER = Path(str(files("fastapi_offline"))) / "static"
# Addresses are relative to those of the page, whatever stands in front of them.
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
    """The page of an app whose description is at ``openapi.json`` beside it."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE.substitute(title=escape(title), script=_SCRIPT)

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})

    for name, media_type in _FILES.items():
        router.add_api_route(f"/docs/{name}", _served(_FOLDER / name, media_type))
    return router


def _served(path: Path, media_type: str) -> Callable[[], Awaitable[FileResponse]]:
    async def served() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers=_CACHED)

    return served
