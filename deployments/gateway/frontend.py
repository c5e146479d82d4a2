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

from moyin.comfy_api.frontend import Frontend, at_home, content_policy, rebased
from moyin.comfy_api.pages import plain_page
from moyin.comfy_api.protocol.paths import PAGE
from moyin.errors import RouteNotFound, StackError

__all__ = ["FrontendFiles"]

_log = logging.getLogger(__name__)
# Names there hold a digest of the content.
_HASHED = ("assets/", "fonts/")
_FOREVER = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "no-cache"


class FrontendFiles:
    """Looks for the files when they are first asked for, and again as long as there are none.

    Args:
        find: blocks; raises StackError.
    """

    def __init__(self, find: Callable[[], Frontend]) -> None:
        self._find = find
        self._served: dict[str, StaticFiles] | None = None
        self._rebased: dict[str, bytes] = {}
        self._page = ""
        self._policy = ""

    async def page(self) -> Response:
        """The page itself, or one that says what to do where it is not installed."""
        if await self._folders() is None:
            missing = plain_page(
                "No frontend here",
                "ComfyUI's frontend is not installed where this gateway runs: run `moyin comfyui "
                "install` there, or name its folder in MOYIN_COMFYUI_FRONTEND.",
            )
            return HTMLResponse(missing.html, 503, missing.headers)
        headers = {"content-security-policy": self._policy, "cache-control": "no-store"}
        return HTMLResponse(self._page, headers=headers)

    async def file(self, path: str, scope: Scope) -> Response:
        """A file of the page.

        Raises:
            RouteNotFound: there is none.
        """
        folders = await self._folders()
        first, _, rest = path.partition("/")
        if folders is not None and path != "index.html":
            files, name = (folders[first], rest) if first in folders else (folders[""], path)
            try:
                response = (
                    Response(self._rebased[path], media_type=mimetypes.guess_type(path)[0])
                    if path in self._rebased
                    else await files.get_response(name, scope)
                )
            except HTTPException:
                raise RouteNotFound(f"there is no file {path}") from None
            response.headers["cache-control"] = (
                _FOREVER if path.startswith(_HASHED) else _ASK_EACH_TIME
            )
            response.headers["cross-origin-resource-policy"] = "same-origin"
            return response
        raise RouteNotFound(f"there is no file {path}")

    async def _folders(self) -> dict[str, StaticFiles] | None:
        if self._served is None:
            try:
                frontend = await asyncio.to_thread(self._find)
                index = await asyncio.to_thread((frontend.root / "index.html").read_text)
                self._rebased = await asyncio.to_thread(rebased, frontend.root, PAGE)
            except (StackError, OSError) as error:
                _log.warning("ComfyUI's frontend can't be served: %s", error)
                return None
            self._page = at_home(index, PAGE)
            self._policy = content_policy(self._page)
            self._served = {"": _static((frontend.root,))}
            if frontend.templates:
                self._served["templates"] = _static(frontend.templates)
            if frontend.docs:
                self._served["docs"] = _static(frontend.docs)
        return self._served


def _static(folders: tuple[Path, ...]) -> StaticFiles:
    """One view of several folders, the first of which that has a file gives it."""
    files = StaticFiles(directory=folders[0], check_dir=False)
    files.all_directories = list(folders)
    return files
