"""Checks the paths that http steps may call."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from moyin.errors import InvalidRequest

__all__ = ["check_path"]

# A job that creates jobs could run for ever. Responses of accounts contain keys, which would be stored
# in a result that every reader of jobs can read.
_FORBIDDEN = (
    "/jobs", "/prompt", "/api/prompt", "/api/v2/jobs", "/comfy", "/v1/images", "/accounts",
)  # fmt: skip


def check_path(path: str, *, field: str) -> None:
    """Check that a path, which may have a query, leads to a route that a step may call.

    Raises:
        InvalidRequest: it has a host, is relative, has ``.`` or ``..`` segments, or leads to a
            route of accounts or one that creates jobs.
    """
    if not path.startswith("/") or path.startswith("//") or "\\" in path or "#" in path:
        raise InvalidRequest("path must be a path on the gateway, such as /v1/models", field=field)
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in path):
        raise InvalidRequest(
            "path must not contain spaces or control characters; write a space as %20", field=field
        )
    plain = _decoded(urlsplit(path).path)
    if "\\" in plain or "\0" in plain or {".", ".."} & set(plain.split("/")):
        raise InvalidRequest("path must not contain . or .. segments", field=field)
    # Servers read empty segments and a missing slash in different ways, so ignore both here.
    compact = "/" + "/".join(part for part in plain.lower().split("/") if part)
    if any(compact == route or compact.startswith(f"{route}/") for route in _FORBIDDEN):
        raise InvalidRequest(
            "an http step must not call a route of accounts or one that creates jobs", field=field
        )


def _decoded(path: str) -> str:
    """Remove percent-encoding from ``path``, however often it was applied."""
    for _ in range(len(path)):
        plain = unquote(path)
        if plain == path:
            break
        path = plain
    return path
