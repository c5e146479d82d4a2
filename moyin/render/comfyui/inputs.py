"""`InputFiles`: fetches prompts' input files and shows the process only those of its own prompt."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.protocol.graph import is_input_name
from moyin.store.blobs import BlobStore

__all__ = ["InputFiles"]


class InputFiles:
    """Manages the input files of the executing prompt and of prompts that wait.

    Files wait in a staging folder that the process can't see.

    Args:
        limit: bytes of staged files that are kept.
    """

    def __init__(self, folder: ProcessFolder, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    async def fetch(self, blobs: BlobStore, files: Mapping[str, str]) -> None:
        """Copy files (sha256 by name) from the artifact store, unless they are staged.

        Raises:
            FileNotFoundError: the store has no such blob.
            ValueError: a name was not made by `input_name`.
        """
        for name, sha256 in files.items():
            path = self._staged(name)
            if not _mark_used(path):
                await blobs.copy_to(sha256, path)
                # The process may run as another user.
                path.chmod(0o644)

    def has(self, names: Collection[str]) -> bool:
        """Return whether all of these files are staged."""
        return all(self._staged(name).exists() for name in names)

    def trim(self, needed: Collection[str]) -> None:
        """Remove the least recently used files, down to the limit, but none in ``needed``; blocks.

        Files may be added while it runs.
        """
        staged: list[tuple[float, int, Path]] = []
        for path in self._folder.staging.iterdir():
            # A copy in progress has a temporary name, which may be gone by now.
            if not path.name.startswith("."):
                stat = path.stat()
                staged.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in staged)
        needed_paths = {self._staged(name) for name in needed}
        for _, size, path in sorted(staged):
            if total <= self._limit:
                return
            if path not in needed_paths:
                path.unlink()
                total -= size

    def place(self, names: Collection[str]) -> None:
        """Show the process these files and no others; blocks.

        The process can only read the folder, so it can't change the staged file behind a link.

        Raises:
            FileNotFoundError: a file is not staged.
        """
        self.remove_placed()
        for name in names:
            staged = self._staged(name)
            placed = self._folder.inputs / staged.name
            try:
                os.link(staged, placed)
            except FileNotFoundError:
                raise
            except OSError:
                # The file system has no hard links.
                shutil.copyfile(staged, placed)
                placed.chmod(0o644)

    def remove_placed(self) -> None:
        """Remove all input files from the process's folder; blocks."""
        for path in self._folder.inputs.iterdir():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _staged(self, name: str) -> Path:
        if not is_input_name(name):
            raise ValueError(f"not the name of an input file: {name!r}")
        return self._folder.staging / Path(name).name


def _mark_used(path: Path) -> bool:
    """Mark a file as used now; return whether it exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
