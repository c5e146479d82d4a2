"""Which routes an http step may call."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from moyin.errors import InvalidRequest

__all__ = ["check_path"]

# A job that makes jobs could go on for ever; and what accounts answer, keys among it, would lie in a
# result that whoever may read jobs can read.
_FORBIDDEN = (
    "/jobs", "/prompt", "/api/prompt", "/api/v2/jobs", "/comfy", "/v1/images", "/accounts",
)  # fmt: skip


def check_path(path: str, *, field: str) -> None:
    """Refuse what is not a plain path (and query) behind the door.

    Raises:
        InvalidRequest: another host, a relative or climbing path, or a route that makes jobs or is
            one of accounts.
    """
    if not path.startswith("/") or path.startswith("//") or "\\" in path or "#" in path:
        raise InvalidRequest("path must be a path behind the door, such as /v1/models", field=field)
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in path):
        raise InvalidRequest("path must not contain blanks; write them as %20", field=field)
    plain = _decoded(urlsplit(path).path)
    if "\\" in plain or "\0" in plain or {".", ".."} & set(plain.split("/")):
        raise InvalidRequest("path must not contain . or .. segments", field=field)
    # Servers differ in what they make of empty segments and a missing slash: refuse them all.
    compact = "/" + "/".join(part for part in plain.lower().split("/") if part)
    if any(compact == route or compact.startswith(f"{route}/") for route in _FORBIDDEN):
        told = "an http step must not call a route that makes jobs, or one of accounts"
        raise InvalidRequest(told, field=field)


def _decoded(path: str) -> str:
    """``path`` without percent-encoding, however often it was applied."""
    for _ in range(len(path)):
        plain = unquote(path)
        if plain == path:
            break
        path = plain
    return path
