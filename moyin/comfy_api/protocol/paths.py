"""Recognizes the paths of ComfyUI's API and of its web page.

ComfyUI's routes are served at the root and under ``/api``. The web page at ``/comfy/`` treats that
path as the server's root, so the page requests ``/comfy/api/…`` and ``/comfy/ws``.
"""

from __future__ import annotations

PAGE_PATH = "/comfy/"
# Of the paths below the page, these belong to the API and need a key. All others are public files.
_API_PREFIXES = ("api/", "internal/", "extensions/")
# These frontend extensions are files of the page. Node packages provide all other extensions.
_PAGE_EXTENSIONS = "extensions/core/"
_WEBSOCKET = "ws"
# The first path segments of ComfyUI's API.
API_FIRST_SEGMENTS = frozenset(
    {
        "embeddings", "experiment", "extensions", "features", "free", "global_subgraphs",
        "history", "i18n", "internal", "interrupt", "jobs", "models", "object_info", "prompt",
        "queue", "settings", "system_stats", "upload", "userdata", "users", "view",
        "view_metadata", "workflow_templates", "ws",
    }
)  # fmt: skip


def to_server_path(path: str) -> str | None:
    """Return the API path of ``/comfy/api/…`` or ``/comfy/ws``, or None for all other paths."""
    if not path.startswith(PAGE_PATH):
        return None
    page_subpath = path[len(PAGE_PATH) :]
    if page_subpath.startswith(_PAGE_EXTENSIONS):
        return None
    if page_subpath == _WEBSOCKET or page_subpath.startswith(_API_PREFIXES):
        return f"/{page_subpath}"
    return None


def is_page_file(path: str) -> bool:
    """Return True if the path is that of ComfyUI's page or one of its files, which are public."""
    return path == PAGE_PATH.rstrip("/") or (
        path.startswith(PAGE_PATH) and to_server_path(path) is None
    )


def is_comfyui_path(path: str) -> bool:
    """Return True if the path belongs to ComfyUI's API, like ``/api/jobs`` but not ``/jobs``."""
    path = to_server_path(path) or path
    is_below_api = path.startswith("/api/")
    first_segment = path.removeprefix("/api").strip("/").partition("/")[0]
    return first_segment in API_FIRST_SEGMENTS and (is_below_api or first_segment != "jobs")
