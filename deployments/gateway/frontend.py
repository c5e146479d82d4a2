"""Serves the page and the files of ComfyUI's web frontend."""

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
    FrontendFolders,
    add_renewal_script,
    build_security_policy,
    rebase_picture_urls,
    set_base_path,
)
from moyin.comfy_api.pages import render_plain_page
from moyin.comfy_api.protocol.paths import PAGE_PATH
from moyin.errors import RouteNotFound, StackError

_log = logging.getLogger(__name__)
# The names of files in these folders contain a digest of their content.
_HASHED_FOLDERS = ("assets/", "fonts/")
_CACHE_FOREVER = "public, max-age=31536000, immutable"
_REVALIDATE = "no-cache"


class FrontendFiles:
    """Serves ComfyUI's frontend. Until its folders are found, each request searches for them again.

    Args:
        find_folders: blocking function that returns the frontend's folders, or raises StackError if
            none are installed.
    """

    def __init__(self, find_folders: Callable[[], FrontendFolders]) -> None:
        self._find_folders = find_folders
        self._folders: dict[str, StaticFiles] | None = None
        self._rebased_files: dict[str, bytes] = {}
        self._index = ""
        self._policy = ""

    async def get_page(self, *, renews_session: bool) -> Response:
        """Return ComfyUI's page, or a page that explains how to install the frontend.

        Args:
            renews_session: True to make the page renew its session, which otherwise expires in minutes.
        """
        if await self._load_folders() is None:
            missing_page = render_plain_page(
                "ComfyUI's frontend is not installed",
                "Run `moyin comfyui install` on the gateway's machine, or set "
                "MOYIN_COMFYUI_FRONTEND to the frontend's folder.",
            )
            return HTMLResponse(missing_page.html, 503, missing_page.headers)
        headers = {"content-security-policy": self._policy, "cache-control": "no-store"}
        page = add_renewal_script(self._index) if renews_session else self._index
        return HTMLResponse(page, headers=headers)

    async def get_file(self, path: str, scope: Scope) -> Response:
        """Return a file of the frontend.

        Raises:
            RouteNotFound: the frontend has no file at this path.
        """
        folders = await self._load_folders()
        first_segment, _, remaining_path = path.partition("/")
        if folders is not None and path != "index.html":
            files, name = (
                (folders[first_segment], remaining_path)
                if first_segment in folders
                else (folders[""], path)
            )
            try:
                response = (
                    Response(self._rebased_files[path], media_type=mimetypes.guess_type(path)[0])
                    if path in self._rebased_files
                    else await files.get_response(name, scope)
                )
            except HTTPException:
                raise _make_missing_file_error(path) from None
            is_cacheable = path.startswith(_HASHED_FOLDERS)
            response.headers["cache-control"] = _CACHE_FOREVER if is_cacheable else _REVALIDATE
            response.headers["cross-origin-resource-policy"] = "same-origin"
            return response
        raise _make_missing_file_error(path)

    async def _load_folders(self) -> dict[str, StaticFiles] | None:
        """Return the frontend's folders, or None if none are installed.

        Each key is the first segment of the paths that the folder serves; the root's key is empty.
        """
        if self._folders is None:
            try:
                frontend = await asyncio.to_thread(self._find_folders)
                index = await asyncio.to_thread((frontend.root / "index.html").read_text)
                self._rebased_files = await asyncio.to_thread(
                    rebase_picture_urls, frontend.root, PAGE_PATH
                )
            except (StackError, OSError) as error:
                _log.warning(
                    "ComfyUI's frontend is not served; searching again at the next request: %s",
                    error,
                )
                return None
            self._index = set_base_path(index, PAGE_PATH)
            self._policy = build_security_policy(self._index)
            self._folders = {"": _new_static_files((frontend.root,))}
            if frontend.templates:
                self._folders["templates"] = _new_static_files(frontend.templates)
            if frontend.docs:
                self._folders["docs"] = _new_static_files(frontend.docs)
        return self._folders


def _make_missing_file_error(path: str) -> RouteNotFound:
    return RouteNotFound(f"ComfyUI's frontend has no file {path}; its page is at {PAGE_PATH}")


def _new_static_files(folders: tuple[Path, ...]) -> StaticFiles:
    """Return an app that serves several folders as one; earlier folders take precedence."""
    files = StaticFiles(directory=folders[0], check_dir=False)
    files.all_directories = list(folders)
    return files
