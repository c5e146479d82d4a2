"""Fetches input files, and lets ComfyUI access only the files of the executing prompt."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.protocol.graph import is_input_name
from moyin.store.blobs import BlobStore


class InputFiles:
    """Holds the input files of the executing prompt and of waiting prompts.

    The files of waiting prompts are in a staging folder that the process can't access.

    Args:
        max_staged_bytes: the total size to which `trim_staged` reduces the staged files.
    """

    def __init__(self, folder: ProcessFolder, max_staged_bytes: int) -> None:
        self._folder = folder
        self._max_staged_bytes = max_staged_bytes

    async def fetch(self, blobs: BlobStore, files: Mapping[str, str]) -> None:
        """Copy files from the artifact store to the staging folder, unless they are there already.

        The keys of ``files`` are names that `make_input_name` has made; the values are the sha256
        of blobs. Raises `FileNotFoundError` if the artifact store does not have a blob.
        """
        for name, sha256 in files.items():
            path = self._find_staged_file(name)
            if not _mark_file_used(path):
                await blobs.copy_to(sha256, path)
                path.chmod(0o644)  # the process may run as another user

    def are_staged(self, names: Collection[str]) -> bool:
        return all(self._find_staged_file(name).exists() for name in names)

    def trim_staged(self, needed_names: Collection[str]) -> None:
        """Remove the least recently used staged files beyond ``max_staged_bytes`` (blocking).

        Other threads may add files at the same time.

        Args:
            needed_names: names of the files that stay.
        """
        staged_files: list[tuple[float, int, Path]] = []
        for path in self._folder.staging.iterdir():
            # A copy in progress has a temporary name, which may disappear before `stat`.
            if not path.name.startswith("."):
                stat = path.stat()
                staged_files.append((stat.st_mtime, stat.st_size, path))
        total_bytes = sum(size for _, size, _ in staged_files)
        needed_paths = {self._find_staged_file(name) for name in needed_names}
        for _, size, path in sorted(staged_files):
            if total_bytes <= self._max_staged_bytes:
                return
            if path not in needed_paths:
                path.unlink()
                total_bytes -= size

    def place_files(self, names: Collection[str]) -> None:
        """Replace the files in the process's input folder by the named staged files (blocking).

        The process has no write access to the folder, so hard links to the staged files are safe.
        Raises `FileNotFoundError` if a file is not staged.
        """
        self.remove_placed_files()
        for name in names:
            staged_file = self._find_staged_file(name)
            placed_file = self._folder.inputs / staged_file.name
            try:
                os.link(staged_file, placed_file)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(staged_file, placed_file)  # the file system has no hard links
                placed_file.chmod(0o644)

    def remove_placed_files(self) -> None:
        """Remove all files from the process's input folder (blocking)."""
        for path in self._folder.inputs.iterdir():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _find_staged_file(self, name: str) -> Path:
        if not is_input_name(name):
            raise ValueError(
                f"the name of an input file must have the form moyin/<sha256>.<suffix>, not {name!r}"
            )
        return self._folder.staging / Path(name).name


def _mark_file_used(path: Path) -> bool:
    """Set a file's modification time to now, and return whether the file exists."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True
