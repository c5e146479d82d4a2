"""Parses the paths and builds the listings of ComfyUI's ``/userdata`` routes; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from moyin.domain.identity import UserFile
from moyin.errors import InvalidRequest, PathNotAllowed, UserFileNotFound

__all__ = ["SETTINGS", "clean_path", "file_info", "listing", "listing_v2", "paths_in"]

# ComfyUI stores a user's settings in this file, beside the user's other files.
SETTINGS = "comfy.settings.json"
_MAX_PATH = 512
_MAX_SEGMENT = 255
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:]")
_MOVE = "move"


def clean_path(text: str) -> str:
    """Validate and normalize a file's path within the user's folder.

    Like in ComfyUI, a path that the client has encoded twice is decoded twice.

    Raises:
        PathNotAllowed: the path leads out of the folder or is ambiguous.
        InvalidRequest: the path is empty or too long.
    """
    path = _decoded(text) if "%" in text else text
    segments = [segment for segment in path.split("/") if segment != ""]
    if path.startswith("/") or _FORBIDDEN.search(path) or not {".", ".."}.isdisjoint(segments):
        raise PathNotAllowed(
            "the path must be relative, without . or .. segments, \\, : or control characters",
            field="file",
        )
    if not segments:
        raise InvalidRequest("the path must name a file", field="file")
    if len(path) > _MAX_PATH or any(len(name.encode()) > _MAX_SEGMENT for name in segments):
        raise InvalidRequest(
            f"the path is longer than {_MAX_PATH} characters, or a name than {_MAX_SEGMENT} bytes",
            field="file",
        )
    return "/".join(segments)


def paths_in(raw: str) -> tuple[str, str | None]:
    """Return the file's path and the destination of a move, if any.

    Clients should encode the slashes in a path; unencoded ones are accepted as well.

    Args:
        raw: the undecoded path after ``/userdata/``.

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
        raise PathNotAllowed("the path must be percent-encoded UTF-8", field="file") from None


def file_info(file: UserFile, folder_prefix: str = "") -> dict[str, Any]:
    """Return a file's entry with ``full_info``; times in seconds since the epoch."""
    return {
        "path": file.path.removeprefix(folder_prefix),
        "size": file.size,
        "modified": file.modified.timestamp(),
        "created": file.created.timestamp(),
    }


def listing(
    files: Iterable[UserFile], folder: str, *, recurse: bool, full_info: bool, split: bool
) -> list[Any]:
    """Return the files below ``folder``, with paths relative to it.

    Raises:
        UserFileNotFound: the folder does not exist.
    """
    prefix = f"{folder}/"
    below = [file for file in files if file.path.startswith(prefix)]
    if not below:
        raise UserFileNotFound(f"you have no folder {folder!r}")
    listed = [file for file in below if recurse or "/" not in file.path[len(prefix) :]]
    if full_info:
        return [file_info(file, prefix) for file in listed]
    names = [file.path.removeprefix(prefix) for file in listed]
    return [[name, *name.split("/")] for name in names] if split else names


def listing_v2(files: Iterable[UserFile], folder: str) -> list[dict[str, Any]]:
    """Return all files and folders below ``folder`` (empty: everything), folders first.

    Raises:
        UserFileNotFound: the folder does not exist.
        InvalidRequest: ``folder`` is a file.
    """
    all_files = list(files)
    if any(file.path == folder for file in all_files):
        raise InvalidRequest(f"{folder!r} is a file: name a folder", field="path")
    prefix = f"{folder}/" if folder else ""
    below = [file for file in all_files if file.path.startswith(prefix)]
    if folder and not below:
        raise UserFileNotFound(f"you have no folder {folder!r}")
    folders = sorted({parent for file in below for parent in _parents(file.path, prefix)})
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
        for file in below
    ]
    return sorted(entries, key=lambda entry: (entry["type"] == "file", entry["name"].lower()))


def _parents(path: str, prefix: str) -> Iterator[str]:
    """Yield the folders between ``prefix`` and the file."""
    end = path.find("/", len(prefix))
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
