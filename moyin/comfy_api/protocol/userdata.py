"""Parses paths and builds response bodies for ComfyUI's ``/userdata`` routes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from moyin.domain.identity import UserFile
from moyin.errors import InvalidRequest, PathNotAllowed, UserFileNotFound

# ComfyUI stores a user's settings in this file among the user's other files.
SETTINGS_FILE = "comfy.settings.json"
_MAX_PATH_CHARACTERS = 512
_MAX_SEGMENT_BYTES = 255
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\:]")
_MOVE_SEGMENT = "move"


def normalize_path(raw_path: str) -> str:
    """Return a file's path in the user's folder in a normalized form.

    Like in ComfyUI, a path that the client has percent-encoded twice is decoded twice.

    Raises:
        PathNotAllowed: the path leads out of the folder or is ambiguous.
        InvalidRequest: the path is empty or too long.
    """
    path = _decode_path(raw_path) if "%" in raw_path else raw_path
    segments = [segment for segment in path.split("/") if segment != ""]
    if path.startswith("/") or _FORBIDDEN.search(path) or not {".", ".."}.isdisjoint(segments):
        raise PathNotAllowed(
            "the path must be relative, without . or .. segments, \\, : or control characters",
            field="file",
        )
    if not segments:
        raise InvalidRequest("the path is empty: it must name a file", field="file")
    if len(path) > _MAX_PATH_CHARACTERS or any(
        len(name.encode()) > _MAX_SEGMENT_BYTES for name in segments
    ):
        raise InvalidRequest(
            f"the path must have at most {_MAX_PATH_CHARACTERS} characters, and each segment "
            f"at most {_MAX_SEGMENT_BYTES} bytes",
            field="file",
        )
    return "/".join(segments)


def parse_paths(raw_path: str) -> tuple[str, str | None]:
    """Return the file's path in a URL, and the path to which the URL moves the file, or None.

    Clients should encode the slashes in a path, but plain slashes are accepted as well.

    Args:
        raw_path: the percent-encoded part of the URL after ``/userdata/``.

    Raises:
        PathNotAllowed, InvalidRequest: `normalize_path` rejects a path.
    """
    parts = raw_path.split("/")
    if len(parts) == 3 and parts[1] == _MOVE_SEGMENT:
        return normalize_path(_decode_path(parts[0])), normalize_path(_decode_path(parts[2]))
    return normalize_path(_decode_path(raw_path)), None


def _decode_path(encoded_path: str) -> str:
    try:
        return unquote(encoded_path, errors="strict")
    except UnicodeDecodeError:
        raise PathNotAllowed("the path must be percent-encoded UTF-8", field="file") from None


def build_file_entry(file: UserFile, folder_prefix: str = "") -> dict[str, Any]:
    """Return the entry of a file in a list with ``full_info``; times are Unix timestamps.

    Args:
        folder_prefix: the listed folder with a slash, which is removed from the path.
    """
    return {
        "path": file.path.removeprefix(folder_prefix),
        "size": file.size,
        "modified": file.modified.timestamp(),
        "created": file.created.timestamp(),
    }


def list_folder(
    files: Iterable[UserFile], folder: str, *, recurse: bool, full_info: bool, split: bool
) -> list[Any]:
    """Return the files below ``folder``, with paths relative to the folder.

    Args:
        recurse: True to include the files in its subfolders.
        full_info: True to return `build_file_entry` of each file instead of its path.
        split: True to return for each file a list: its path and the segments of the path.

    Raises:
        UserFileNotFound: the folder does not exist.
    """
    prefix = f"{folder}/"
    files_below = [file for file in files if file.path.startswith(prefix)]
    if not files_below:
        raise UserFileNotFound(f"you have no folder with the path {folder!r}")
    listed_files = [file for file in files_below if recurse or "/" not in file.path[len(prefix) :]]
    if full_info:
        return [build_file_entry(file, prefix) for file in listed_files]
    names = [file.path.removeprefix(prefix) for file in listed_files]
    return [[name, *name.split("/")] for name in names] if split else names


def list_folder_v2(files: Iterable[UserFile], folder: str) -> list[dict[str, Any]]:
    """Return all files and folders below ``folder``; an empty string means the root folder.

    Raises:
        UserFileNotFound: the folder does not exist.
        InvalidRequest: ``folder`` is a file.
    """
    all_files = list(files)
    if any(file.path == folder for file in all_files):
        raise InvalidRequest(f"{folder!r} is a file: name a folder", field="path")
    prefix = f"{folder}/" if folder else ""
    files_below = [file for file in all_files if file.path.startswith(prefix)]
    if folder and not files_below:
        raise UserFileNotFound(f"you have no folder with the path {folder!r}")
    folders = sorted(
        {parent for file in files_below for parent in _iterate_folders(file.path, prefix)}
    )
    entries: list[dict[str, Any]] = [
        {"name": _get_last_segment(path), "path": path, "type": "directory"} for path in folders
    ]
    entries += [
        {
            "name": _get_last_segment(file.path),
            "path": file.path,
            "type": "file",
            "size": file.size,
            "modified": file.modified.timestamp(),
        }
        for file in files_below
    ]
    return sorted(entries, key=lambda entry: (entry["type"] == "file", entry["name"].lower()))


def _iterate_folders(path: str, prefix: str) -> Iterator[str]:
    """Yield all folders between the folder ``prefix`` and the file at ``path``."""
    slash_index = path.find("/", len(prefix))
    while slash_index != -1:
        yield path[:slash_index]
        slash_index = path.find("/", slash_index + 1)


def _get_last_segment(path: str) -> str:
    return path.rpartition("/")[2]
