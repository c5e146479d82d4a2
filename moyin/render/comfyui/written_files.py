"""`WrittenFiles`: moves prompts' files out of the process's reach, and opens them with distrust.

A node may leave anything behind: links to others' files, pipes that block their reader, folders
without permissions, files that change while they are read.
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

_MAX_DEPTH = 64
_OWNER_ONLY = 0o700
# A folder name that is not a prompt id.
_NO_PROMPT = "nobody"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK the opening of a pipe waits for its writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WrittenFiles:
    """Holds the files of the executing prompt, and of prompts whose files are not stored yet."""

    def __init__(self, folder: ProcessFolder) -> None:
        self._folder = folder
        self._executing: str | None = None

    def begin(self, prompt_id: str) -> None:
        """Begin a prompt: remove all that was written since the last one ended; blocks.

        Raises:
            OSError: a file can't be removed.
        """
        self.clear()
        self._executing = prompt_id

    def clear(self) -> None:
        """Remove files that no prompt has written; blocks.

        Raises:
            OSError: a file can't be removed.
        """
        self._move_all(_NO_PROMPT)
        remove_tree(self._folder.done / _NO_PROMPT)

    def end(self, prompt_id: str) -> None:
        """End a prompt: move its files to where the process can't reach them; blocks.

        Raises:
            OSError: a file can't be moved.
        """
        self._executing = None
        self._move_all(prompt_id)

    def discard(self, prompt_id: str) -> None:
        """Remove the prompt's files, which have been stored; blocks.

        Raises:
            OSError: a file can't be removed.
        """
        remove_tree(self._folder.done / prompt_id)

    def open(self, file: OutputFile, prompt_id: str) -> BinaryIO | None:
        """Open an output file of the prompt, which ComfyUI's cache may have supplied; blocks.

        Returns:
            None if it is gone, is not a regular file, or lies outside the folder of its type.
        """
        parts = PurePosixPath(file.subfolder, file.filename).parts
        if len(parts) > _MAX_DEPTH or any(part in ("/", "..") for part in parts):
            return None
        # The bridge puts the id of the prompt that wrote the file first.
        origin = parts[0] if parts and _UUID.fullmatch(parts[0]) else prompt_id
        roots = [self._folder.done / origin / file.type]
        if origin == self._executing:
            # First, because the file may be moved to the other folder meanwhile.
            roots.insert(0, self._folder.base / file.type)
        for root in roots:
            for candidate in _candidate_paths(parts, origin):
                opened = _open_below(root, candidate)
                if opened is not None:
                    return opened
        return None

    def _move_all(self, name: str) -> None:
        target = self._folder.done / name
        for source in self._folder.writable:
            if stat.S_IMODE(source.lstat().st_mode) != _OWNER_ONLY:
                # The process owns the folder, and may have removed its own permissions.
                unlock(source)
            children = list(source.iterdir())
            if not children:
                continue
            folder = target / source.name
            if folder.exists():
                # An earlier attempt at the same prompt has left it.
                remove_tree(folder)
            folder.mkdir(parents=True)
            for child in children:
                _move(child, folder / child.name)


def _candidate_paths(parts: tuple[str, ...], origin: str) -> Iterator[tuple[str, ...]]:
    """Yield where a file may lie: nodes that name their files themselves use no prompt folder."""
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
        # A thread of the process has removed it meanwhile.
        pass


def _open_below(root: Path, parts: tuple[str, ...]) -> BinaryIO | None:
    """Open a regular file below ``root`` without following links."""
    if not parts:
        return None
    descriptor = -1
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(root, _FOLDER_FLAGS)
            stack.callback(os.close, folder)
            for part in parts[:-1]:
                folder = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
                stack.callback(os.close, folder)
            descriptor = os.open(parts[-1], _FILE_FLAGS, dir_fd=folder)
        except (OSError, ValueError):
            return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")
