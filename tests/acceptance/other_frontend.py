"""Serves another version of ComfyUI's frontend from a folder, and forwards all else to the gateway.

A gateway can serve another frontend itself (MOYIN_COMFYUI_FRONTEND), but the test would have to
start a second farm for that.
"""

from __future__ import annotations

import asyncio
import mimetypes
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from moyin.cli.connector import Connector
from moyin.comfy_api.frontend import build_security_policy, rebase_picture_urls, set_base_path
from moyin.comfy_api.protocol.paths import PAGE_PATH, is_page_file
from moyin.stack.profile import Profile

_SECONDS = 60


@contextmanager
def other_frontend(profile: Profile, folder: Path) -> Iterator[str]:
    """Serve the frontend in ``folder`` from a thread, and yield its URL."""
    ready_url: Future[str] = Future()
    loop = asyncio.new_event_loop()
    stop_event = asyncio.Event()
    thread = threading.Thread(
        target=loop.run_until_complete,
        args=(_serve_frontend(profile, folder, ready_url, stop_event),),
    )
    thread.start()
    try:
        yield ready_url.result(_SECONDS)
    finally:
        loop.call_soon_threadsafe(stop_event.set)
        thread.join(_SECONDS)
        loop.close()


async def _serve_frontend(
    profile: Profile, folder: Path, ready_url: Future[str], stop_event: asyncio.Event
) -> None:
    connector = _OtherFrontendConnector(profile, folder)
    async with connector.serve(0) as url:
        ready_url.set_result(url)
        await stop_event.wait()


class _OtherFrontendConnector(Connector):
    def __init__(self, profile: Profile, files: Path) -> None:
        super().__init__(profile)
        self._files = files
        self._page = set_base_path((files / "index.html").read_text(), PAGE_PATH)
        self._rebased_files = rebase_picture_urls(files, PAGE_PATH)

    async def respond(self, request: web.Request) -> web.StreamResponse:
        if request.path == PAGE_PATH:
            headers = {"content-security-policy": build_security_policy(self._page)}
            return web.Response(text=self._page, content_type="text/html", headers=headers)
        path = request.path.removeprefix(PAGE_PATH)
        file_path = self._files / path
        if path in self._rebased_files:
            media_type = mimetypes.guess_type(path)[0] or ""
            return web.Response(body=self._rebased_files[path], content_type=media_type)
        if is_page_file(request.path) and file_path.is_file():
            return web.FileResponse(file_path)
        return await super().respond(request)
