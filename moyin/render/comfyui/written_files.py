"""Moves the output files of prompts out of the process's reach, and opens them safely.

A malicious node may write links to other tenants' files, pipes that block their reader, folders
without permissions, or files that change while they are read.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from moyin.render.comfyui.folder import ProcessFolder, make_folder_writable, remove_tree
from moyin.render.protocol.wire import OutputFile
from moyin.system.bounded import BoundedDict

_MAX_DEPTH = 64
_MAX_PROMPTS = 4096
_OWNER_ONLY = 0o700
# The name of the folder for files of no prompt; it is not a valid prompt id.
_UNCLAIMED = "nobody"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FOLDER_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a pipe would block until the pipe has a writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class WrittenFiles:
    """The files that prompts have written and that are not stored yet.

    All methods block, and raise `OSError` if a file can't be moved or removed.
    """

    def __init__(self, folder: ProcessFolder) -> None:
        self._folder = folder
        self._executing: str | None = None
        # The tenants of the latest prompts, by prompt id.
        self._tenants: BoundedDict[str, str] = BoundedDict(_MAX_PROMPTS)

    def begin_prompt(self, prompt_id: str, tenant: str) -> None:
        """Remove the files of other prompts from the process's folders, before a prompt begins.

        Args:
            tenant: anonymous id of the prompt's tenant.
        """
        self.remove_unclaimed()
        self._executing = prompt_id
        self._tenants[prompt_id] = tenant

    def get_tenant(self, prompt_id: str) -> str:
        """Return the tenant of a prompt; one that is not known counts as a tenant of its own."""
        return self._tenants.get(prompt_id, prompt_id)

    def remove_unclaimed(self) -> None:
        """Remove the files that the process has written while no prompt was executed."""
        self._move_to_done(_UNCLAIMED)
        remove_tree(self._folder.done / _UNCLAIMED)

    def end_prompt(self, prompt_id: str) -> None:
        """Move the files of a finished prompt to a folder that the process can't access."""
        self._executing = None
        self._move_to_done(prompt_id)

    def discard_files(self, prompt_id: str) -> None:
        """Remove the moved files of a prompt."""
        remove_tree(self._folder.done / prompt_id)

    def open_file(self, file: OutputFile, prompt_id: str) -> BinaryIO | None:
        """Open an output file of a prompt.

        An earlier prompt of the same tenant may have written the file, if the output comes from
        ComfyUI's cache. Returns None if the file is missing, not regular, outside the folder of its
        type, or another tenant's.

        Args:
            file: the file as ComfyUI reports it.
            prompt_id: id of the prompt that has the file as its output.
        """
        segments = PurePosixPath(file.subfolder, file.filename).parts
        if len(segments) > _MAX_DEPTH or any(segment in ("/", "..") for segment in segments):
            return None
        # The first folder is named after the prompt that wrote the file, because of the bridge.
        origin_id = segments[0] if segments and _UUID.fullmatch(segments[0]) else prompt_id
        if self.get_tenant(origin_id) != self.get_tenant(prompt_id):
            return None
        roots = [self._folder.done / origin_id / file.type]
        if origin_id == self._executing:
            # The process's folder is tried first, because the file may meanwhile be moved to the
            # other one.
            roots.insert(0, self._folder.base / file.type)
        for root in roots:
            for candidate_segments in _iterate_candidate_paths(segments, origin_id):
                opened_file = _open_file_below(root, candidate_segments)
                if opened_file is not None:
                    return opened_file
        return None

    def _move_to_done(self, name: str) -> None:
        target = self._folder.done / name
        for source in self._folder.writable:
            if stat.S_IMODE(source.lstat().st_mode) != _OWNER_ONLY:
                # The process owns the folder and may have removed the permissions.
                make_folder_writable(source)
            children = list(source.iterdir())
            if not children:
                continue
            folder = target / source.name
            if folder.exists():
                # The folder is left from an earlier try of the same prompt.
                remove_tree(folder)
            folder.mkdir(parents=True)
            for child in children:
                _move_entry(child, folder / child.name)


def _iterate_candidate_paths(
    segments: tuple[str, ...], origin_id: str
) -> Iterator[tuple[str, ...]]:
    """Yield the paths where a file may be, as tuples of path segments.

    Some nodes ignore the folder of their prompt, so the path without it is yielded, too.

    Args:
        segments: the path that ComfyUI reports.
        origin_id: the id of the prompt that wrote the file.
    """
    yield segments
    if segments[:1] == (origin_id,):
        yield segments[1:]


def _move_entry(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except PermissionError:
        for folder in (source.parent, source):
            make_folder_writable(folder)
        source.rename(target)
    except FileNotFoundError:
        pass  # a thread of the process has removed the file meanwhile


def _open_file_below(root: Path, segments: tuple[str, ...]) -> BinaryIO | None:
    """Open a regular file below ``root`` without following links.

    Returns None if the file is missing or not regular, or if a folder on the way is a link.
    """
    if not segments:
        return None
    descriptor = -1
    with contextlib.ExitStack() as stack:
        try:
            folder = os.open(root, _FOLDER_FLAGS)
            stack.callback(os.close, folder)
            for segment in segments[:-1]:
                folder = os.open(segment, _FOLDER_FLAGS, dir_fd=folder)
                stack.callback(os.close, folder)
            descriptor = os.open(segments[-1], _FILE_FLAGS, dir_fd=folder)
        except (OSError, ValueError):
            return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")
