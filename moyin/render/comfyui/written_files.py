"""What prompts have written: moved out of the process's reach, and read as what it is, hostile.

A node may leave anything behind: links to files of others, pipes that block their reader, folders
that nobody may open, files that change while they are read.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.removal import remove_tree, unlock
from moyin.render.protocol.wire import OutputFile

__all__ = ["WrittenFiles"]

_DEEPEST = 64
_OWNERS_ALONE = 0o700
# No id of a prompt.
_NOBODY = "nobody"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the opening of a pipe waits for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WrittenFiles:
    """The files of the prompt that is executed, and of those whose files are not stored yet."""

    def __init__(self, folder: ProcessFolder) -> None:
        self._folder = folder
        self._executing: str | None = None

    def begin(self, prompt_id: str) -> None:
        """The process executes this prompt from now on. What was written since the last one ended is
        nobody's; blocks.

        Raises:
            OSError: it can't be removed.
        """
        self.clear()
        self._executing = prompt_id

    def clear(self) -> None:
        """Remove what no prompt has written; blocks.

        Raises:
            OSError: something can't be removed.
        """
        self._set_aside(_NOBODY)
        remove_tree(self._folder.done / _NOBODY)

    def end(self, prompt_id: str) -> None:
        """Move all that the prompt has written to where the process can't reach it; blocks.

        Raises:
            OSError: something can't be moved.
        """
        self._executing = None
        self._set_aside(prompt_id)

    def discard(self, prompt_id: str) -> None:
        """Remove the prompt's files, which are in the artifact store by now; blocks.

        Raises:
            OSError: something can't be removed.
        """
        remove_tree(self._folder.done / prompt_id)

    def open(self, file: OutputFile, prompt_id: str) -> BinaryIO | None:
        """Open a file that the prompt has put out, or found in ComfyUI's cache; blocks.

        Returns:
            None when it is gone, is not a regular file, or lies outside of the folder for such files.
        """
        parts = PurePosixPath(file.subfolder, file.filename).parts
        if len(parts) > _DEEPEST or any(part in ("/", "..") for part in parts):
            return None
        # The bridge says of each file which prompt wrote it.
        origin = parts[0] if parts and _UUID.fullmatch(parts[0]) else prompt_id
        roots = [self._folder.done / origin / file.type]
        if origin == self._executing:
            # First: it may be moved meanwhile.
            roots.insert(0, self._folder.base / file.type)
        for root in roots:
            for place in _places(parts, origin):
                opened = _open_below(root, place)
                if opened is not None:
                    return opened
        return None

    def _set_aside(self, name: str) -> None:
        target = self._folder.done / name
        for source in self._folder.writable:
            if stat.S_IMODE(source.lstat().st_mode) != _OWNERS_ALONE:
                # The process owns the folder, and may have closed it to itself.
                unlock(source)
            children = list(source.iterdir())
            if not children:
                continue
            place = target / source.name
            if place.exists():
                # Of an earlier try of the same prompt.
                remove_tree(place)
            place.mkdir(parents=True)
            for child in children:
                _move(child, place / child.name)


def _places(parts: tuple[str, ...], origin: str) -> Iterator[tuple[str, ...]]:
    """Where a file may lie: nodes that choose their files' names know of no folder for prompts."""
    yield parts
    if parts[:1] == (origin,):
        yield parts[1:]


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except PermissionError:
        for folder in (source.parent, source):
            unlock(folder)
        source.rename(target)
    except FileNotFoundError:
        # A thread of the process is still at work in there.
        pass


def _open_below(root: Path, parts: tuple[str, ...]) -> BinaryIO | None:
    """Open a regular file below ``root``, on a way without links."""
    if not parts:
        return None
    descriptor = -1
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(root, _FOLDER)
            stack.callback(os.close, folder)
            for part in parts[:-1]:
                folder = os.open(part, _FOLDER, dir_fd=folder)
                stack.callback(os.close, folder)
            descriptor = os.open(parts[-1], _FILE, dir_fd=folder)
        except (OSError, ValueError):
            return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")
