"""Checks the names of output files, nodes and slots that ComfyUI reports.

A node may report any text. Names appear in terminals, HTTP headers, databases and other systems'
file names, and the name of a node is repeated for each of its files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from moyin.errors import RenderFailed
from moyin.render.protocol.response import NodeOutputFile
from moyin.render.protocol.wire import OutputFile

# The result of a step lists its files, and Temporal refuses results of more than 2 MiB.
MAX_FILES = 4096
# Linux allows no longer names.
_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 1024
_MAX_FOLDERS = 32
# Control characters, line separators and marks of direction, which show another name than there is,
# and halves of surrogate pairs.
_UNSAFE_CHARACTER = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def check_outputs(outputs: Sequence[NodeOutputFile]) -> None:
    """Raise `RenderFailed` if the files are too many, or one has a name that is not allowed."""
    if len(outputs) > MAX_FILES:
        raise RenderFailed(
            f"the render has {len(outputs):,} output files, which exceeds the limit of "
            f"{MAX_FILES:,}: write fewer files, or one archive or video"
        )
    for output in outputs:
        label = f"node {output.node[:_MAX_NAME_BYTES]}"
        if _is_too_long(output.node) or _is_too_long(output.slot):
            raise RenderFailed(
                f"{label} has an output whose id or name has more than {_MAX_NAME_BYTES} bytes: "
                "let the node report a shorter one"
            )
        fault = _find_fault(output.file)
        if fault is not None:
            raise RenderFailed(
                f"{label} has written a file whose name has {fault}: let the node choose another "
                "name"
            )


def is_output_allowed(output: NodeOutputFile) -> bool:
    """Return whether `check_outputs` allows an output."""
    is_too_long = _is_too_long(output.node) or _is_too_long(output.slot)
    return not is_too_long and is_name_allowed(output.file)


def is_name_allowed(file: OutputFile) -> bool:
    """Return whether `check_outputs` allows the name of a file."""
    return _find_fault(file) is None


def _find_fault(file: OutputFile) -> str | None:
    """Return what is wrong with a file's name, or None if nothing is."""
    text = f"{file.subfolder}/{file.filename}"
    if _UNSAFE_CHARACTER.search(text) is not None:
        return "control characters, marks of direction or invalid Unicode"
    if len(text.encode()) > _MAX_PATH_BYTES:
        return f"more than {_MAX_PATH_BYTES:,} bytes with its folders"
    segments = PurePosixPath(file.subfolder, file.filename).parts
    if any(map(_is_too_long, segments)):
        return f"more than {_MAX_NAME_BYTES} bytes"
    if len(segments) > _MAX_FOLDERS + 1:
        return f"more than {_MAX_FOLDERS} folders"
    if not segments or segments[0] == "/" or ".." in segments:
        return "no place inside its folder"
    return None


def _is_too_long(name: str) -> bool:
    return len(name.encode(errors="replace")) > _MAX_NAME_BYTES
