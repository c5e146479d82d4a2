"""Serves the files of ComfyUI's frontend."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
from collections.abc import Callable
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from moyin.comfy_api.frontend import (
    Frontend,
    content_security_policy,
    rebase_picture_urls,
    with_base_path,
)
from moyin.comfy_api.pages import plain_page
from moyin.comfy_api.protocol.paths import PAGE
from moyin.errors import RouteNotFound, StackError

__all__ = ["FrontendFiles"]

_log = logging.getLogger(__name__)
# File names in these folders contain a digest of the content.
_HASHED_FOLDERS = ("assets/", "fonts/")
_CACHE_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"


class FrontendFiles:
    """Finds the frontend's files at the first request, and retries while it is not installed.

    Args:
        find: finds the frontend; blocks, and raises StackError if there is none.
    """

    def __init__(self, find: Callable[[], Frontend]) -> None:
        self._find = find
        self._served: dict[str, StaticFiles] | None = None
        self._rebased_files: dict[str, bytes] = {}
        self._page = ""
        self._policy = ""

    async def page(self) -> Response:
        """Return ComfyUI's page, or one that explains how to install it."""
        if await self._folders() is None:
            missing = plain_page(
                "ComfyUI's frontend is not installed",
                "Run `moyin comfyui install` on the gateway's machine, or set "
                "MOYIN_COMFYUI_FRONTEND to the frontend's folder.",
            )
            return HTMLResponse(missing.html, 503, missing.headers)
        headers = {"content-security-policy": self._policy, "cache-control": "no-store"}
        return HTMLResponse(self._page, headers=headers)

    async def file(self, path: str, scope: Scope) -> Response:
        """Return a file of the page.

        Raises:
            RouteNotFound: the file does not exist.
        """
        folders = await self._folders()
        first, _, rest = path.partition("/")
        if folders is not None and path != "index.html":
            files, name = (folders[first], rest) if first in folders else (folders[""], path)
            try:
                response = (
                    Response(self._rebased_files[path], media_type=mimetypes.guess_type(path)[0])
                    if path in self._rebased_files
                    else await files.get_response(name, scope)
                )
            except HTTPException:
                raise RouteNotFound(f"ComfyUI's frontend has no file {path}") from None
            cacheable = path.startswith(_HASHED_FOLDERS)
            response.headers["cache-control"] = _CACHE_FOREVER if cacheable else _REVALIDATE
            response.headers["cross-origin-resource-policy"] = "same-origin"
            return response
        raise RouteNotFound(f"ComfyUI's frontend has no file {path}")

    async def _folders(self) -> dict[str, StaticFiles] | None:
        if self._served is None:
            try:
                frontend = await asyncio.to_thread(self._find)
                index = await asyncio.to_thread((frontend.root / "index.html").read_text)
                self._rebased_files = await asyncio.to_thread(
                    rebase_picture_urls, frontend.root, PAGE
                )
            except (StackError, OSError) as error:
                _log.warning("cannot serve ComfyUI's frontend: %s", error)
                return None
            self._page = with_base_path(index, PAGE)
            self._policy = content_security_policy(self._page)
            self._served = {"": _static_files((frontend.root,))}
            if frontend.templates:
                self._served["templates"] = _static_files(frontend.templates)
            if frontend.docs:
                self._served["docs"] = _static_files(frontend.docs)
        return self._served


def _static_files(folders: tuple[Path, ...]) -> StaticFiles:
    """Serve several folders as one; the first folder that has a file counts."""
    files = StaticFiles(directory=folders[0], check_dir=False)
    files.all_directories = list(folders)
    return files
