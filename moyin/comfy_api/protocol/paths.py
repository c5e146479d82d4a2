"""Recognizes the paths of ComfyUI's API and of its web page; pure.

ComfyUI's routes are served at the root and under ``/api``. Its frontend is a page at ``/comfy/``
that treats this folder as the server's root, so it requests ``/comfy/api/…`` and ``/comfy/ws``.
"""

from __future__ import annotations

__all__ = ["FIRST_SEGMENTS", "PAGE", "is_comfyui", "is_page_file", "server_path"]

PAGE = "/comfy/"
# API paths below the page, which need a key. All other paths below it are the page's own files.
_API_PREFIXES = ("api/", "internal/", "extensions/")
# These extensions belong to the page; all others come from the pools' node packages.
_PAGE_EXTENSIONS = "extensions/core/"
_WEBSOCKET = "ws"
FIRST_SEGMENTS = frozenset(
    {
        "embeddings", "experiment", "extensions", "features", "free", "global_subgraphs",
        "history", "i18n", "internal", "interrupt", "jobs", "models", "object_info", "prompt",
        "queue", "settings", "system_stats", "upload", "userdata", "users", "view",
        "view_metadata", "workflow_templates", "ws",
    }
)  # fmt: skip


def server_path(path: str) -> str | None:
    """Return the API path of a request that the page makes below itself; None for other paths."""
    if not path.startswith(PAGE):
        return None
    below_page = path[len(PAGE) :]
    if below_page.startswith(_PAGE_EXTENSIONS):
        return None
    if below_page == _WEBSOCKET or below_page.startswith(_API_PREFIXES):
        return f"/{below_page}"
    return None


def is_page_file(path: str) -> bool:
    """Return whether the path is the page or one of its files, which are public."""
    return path == PAGE.rstrip("/") or (path.startswith(PAGE) and server_path(path) is None)


def is_comfyui(path: str) -> bool:
    """Return whether ComfyUI's API has this path; ``jobs`` belongs to it only under ``/api``."""
    path = server_path(path) or path
    below_api = path.startswith("/api/")
    first = path.removeprefix("/api").strip("/").partition("/")[0]
    return first in FIRST_SEGMENTS and (below_api or first != "jobs")
