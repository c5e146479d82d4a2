"""Which paths are ComfyUI's; pure.

Its routes are served bare and under ``/api``. Its frontend is a page at ``/comfy/`` that takes the
folder it lies in for the server's root, so it asks for ``/comfy/api/…`` and ``/comfy/ws``.
"""

from __future__ import annotations

__all__ = ["FIRST_SEGMENTS", "PAGE", "inside", "is_comfyui", "is_page_file"]

PAGE = "/comfy/"
# What a browser may only see with a key, below the page. All else there are the page's own files.
_SERVED = ("api/", "internal/", "extensions/")
# The page brings these itself; all other extensions are of the pools' node packages.
_BROUGHT = "extensions/core/"
_SOCKET = "ws"
FIRST_SEGMENTS = frozenset(
    {
        "embeddings", "experiment", "extensions", "features", "free", "global_subgraphs",
        "history", "i18n", "internal", "interrupt", "jobs", "models", "object_info", "prompt",
        "queue", "settings", "system_stats", "upload", "userdata", "users", "view",
        "view_metadata", "workflow_templates", "ws",
    }
)  # fmt: skip


def inside(path: str) -> str | None:
    """The server's path behind one that the page asks for; None: it is a file, or elsewhere."""
    if not path.startswith(PAGE):
        return None
    asked = path[len(PAGE) :]
    if asked.startswith(_BROUGHT):
        return None
    if asked == _SOCKET or asked.startswith(_SERVED):
        return f"/{asked}"
    return None


def is_page_file(path: str) -> bool:
    """Whether it is the page or one of its files, which are no secret."""
    return path == PAGE.rstrip("/") or (path.startswith(PAGE) and inside(path) is None)


def is_comfyui(path: str) -> bool:
    """Whether a route of ComfyUI's has this path. ``/jobs`` is only under ``/api`` ComfyUI's."""
    asked = inside(path) or path
    below_api = asked.startswith("/api/")
    first = asked.removeprefix("/api").strip("/").partition("/")[0]
    return first in FIRST_SEGMENTS and (below_api or first != "jobs")
