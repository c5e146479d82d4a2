"""ComfyUI's routes for people's files: paths in, listings out; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from moyin.domain.userdata import UserFile
from moyin.errors import InvalidRequest, PathNotAllowed, UserFileNotFound

__all__ = ["SETTINGS", "clean_path", "file_info", "listing", "listing_v2", "paths_in"]

# Where ComfyUI keeps the settings of a person: they are a file like any other.
SETTINGS = "comfy.settings.json"
_MAX_PATH = 512
_MAX_SEGMENT = 255
_ODD = re.compile(r"[\x00-\x1f\x7f\\:]")
_MOVE = "move"


def clean_path(text: str) -> str:
    """The path of a file below a shelf.

    Clients that encode twice are understood, as in ComfyUI.

    Raises:
        PathNotAllowed: it leads out, or could be taken for another by somebody.
        InvalidRequest: it is empty or too long.
    """
    path = _decoded(text) if "%" in text else text
    segments = [segment for segment in path.split("/") if segment != ""]
    if path.startswith("/") or _ODD.search(path) or any(one in (".", "..") for one in segments):
        raise PathNotAllowed("a path must stay below your own folder", field="file")
    if not segments:
        raise InvalidRequest("name a file", field="file")
    if len(path) > _MAX_PATH or any(len(one.encode()) > _MAX_SEGMENT for one in segments):
        raise InvalidRequest(f"a path may have {_MAX_PATH} characters", field="file")
    return "/".join(segments)


def paths_in(raw: str) -> tuple[str, str | None]:
    """The file, and where it is moved to, in what follows ``/userdata/`` as it was sent.

    A file's own slashes come encoded; clients that do not encode them are understood too.

    Raises:
        PathNotAllowed, InvalidRequest: see `clean_path`.
    """
    parts = raw.split("/")
    if len(parts) == 3 and parts[1] == _MOVE:
        return clean_path(_decoded(parts[0])), clean_path(_decoded(parts[2]))
    return clean_path(_decoded(raw)), None


def _decoded(raw: str) -> str:
    try:
        return unquote(raw, errors="strict")
    except UnicodeDecodeError:
        raise PathNotAllowed("a path must be UTF-8", field="file") from None


def file_info(file: UserFile, below: str = "") -> dict[str, Any]:
    """With ``full_info``; times in seconds since the epoch."""
    return {
        "path": file.path.removeprefix(below),
        "size": file.size,
        "modified": file.modified.timestamp(),
        "created": file.created.timestamp(),
    }


def listing(
    files: Iterable[UserFile], folder: str, *, recurse: bool, full_info: bool, split: bool
) -> list[Any]:
    """The files below ``folder``, with paths from there.

    Raises:
        UserFileNotFound: there is no such folder.
    """
    below = f"{folder}/"
    found = [file for file in files if file.path.startswith(below)]
    if not found:
        raise UserFileNotFound(f"there is no folder {folder!r}")
    shown = [file for file in found if recurse or "/" not in file.path[len(below) :]]
    if full_info:
        return [file_info(file, below) for file in shown]
    names = [file.path.removeprefix(below) for file in shown]
    return [[name, *name.split("/")] for name in names] if split else names


def listing_v2(files: Iterable[UserFile], folder: str) -> list[dict[str, Any]]:
    """Everything below ``folder`` (all of it: empty), folders first, with whole paths.

    Raises:
        UserFileNotFound: there is no such folder.
        InvalidRequest: it is a file.
    """
    known = list(files)
    if any(file.path == folder for file in known):
        raise InvalidRequest(f"{folder!r} is no folder", field="path")
    below = f"{folder}/" if folder else ""
    found = [file for file in known if file.path.startswith(below)]
    if folder and not found:
        raise UserFileNotFound(f"there is no folder {folder!r}")
    folders = sorted({parent for file in found for parent in _parents(file.path, below)})
    entries: list[dict[str, Any]] = [
        {"name": _name(path), "path": path, "type": "directory"} for path in folders
    ]
    entries += [
        {
            "name": _name(file.path),
            "path": file.path,
            "type": "file",
            "size": file.size,
            "modified": file.modified.timestamp(),
        }
        for file in found
    ]
    return sorted(entries, key=lambda entry: (entry["type"] == "file", entry["name"].lower()))


def _parents(path: str, below: str) -> Iterator[str]:
    """The folders between ``below`` and the file."""
    end = path.find("/", len(below))
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
