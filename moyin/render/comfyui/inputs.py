"""Input files: they wait where the process can't look, and are its prompt's for as long as it runs."""

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
    """The input files of prompts to come and of the one that is executed.

    Args:
        limit: bytes that are kept for prompts to come.
    """

    def __init__(self, folder: ProcessFolder, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    async def fetch(self, blobs: BlobStore, wanted: Mapping[str, str]) -> None:
        """Copy files (sha256 by name) from the artifact store, unless they are there.

        Raises:
            FileNotFoundError: the store has no such blob.
            ValueError: a name is not one of ours.
        """
        for name, sha256 in wanted.items():
            path = self._staged(name)
            if not _used_now(path):
                await blobs.copy_to(sha256, path)
                # The process may be another user's.
                path.chmod(0o644)

    def has(self, names: Collection[str]) -> bool:
        """Whether all of these are fetched."""
        return all(self._staged(name).exists() for name in names)

    def trim(self, needed: Collection[str]) -> None:
        """Remove the files that were not used for longest, down to the limit; blocks.

        Files may come meanwhile.
        """
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.staging.iterdir():
            # A copy under way has a name of its own, which may be gone by now.
            if not path.name.startswith("."):
                stat = path.stat()
                kept.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in kept)
        spared = {self._staged(name) for name in needed}
        for _, size, path in sorted(kept):
            if total <= self._limit:
                return
            if path not in spared:
                path.unlink()
                total -= size

    def place(self, names: Collection[str]) -> None:
        """Give the process these files and no others; blocks.

        It may read the folder and not write it, so it can't change what links to the same file.

        Raises:
            FileNotFoundError: one is not fetched.
        """
        self.take_away()
        for name in names:
            staged = self._staged(name)
            placed = self._folder.inputs / staged.name
            try:
                os.link(staged, placed)
            except FileNotFoundError:
                raise
            except OSError:
                # A file system without links.
                shutil.copyfile(staged, placed)
                placed.chmod(0o644)

    def take_away(self) -> None:
        """Leave the process no input file; blocks."""
        for path in self._folder.inputs.iterdir():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _staged(self, name: str) -> Path:
        if not is_input_name(name):
            raise ValueError(f"not the name of an input file: {name!r}")
        return self._folder.staging / Path(name).name


def _used_now(path: Path) -> bool:
    """Mark a file as used now; whether there is one."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
