"""Log files that can't fill the disk."""

from __future__ import annotations

import io
from pathlib import Path

__all__ = ["LogFile", "tail"]


class LogFile:
    """Appends bytes; at ``limit`` bytes the file becomes ``NAME.1`` and a new one begins.

    Raises:
        OSError: it can't be opened to begin with.
    """

    def __init__(self, path: Path, *, limit: int = 5 * 1024 * 1024) -> None:
        self._path = path
        self._limit = limit
        self._lost = 0
        self._file: io.FileIO | None = self._open()

    def write(self, data: bytes) -> None:
        """Never raises: whoever's output it is would stand still with nobody to read it. What can't
        be written (a full disk, a file that somebody removed) is lost, and counted in the file once
        that goes again."""
        try:
            self._write(data)
        except OSError:
            self._lost += len(data)
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.FileIO:
        return self._path.open("ab", buffering=0)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = self._open()
        if self._lost:
            self._file.write(b"[%d bytes could not be written]\n" % self._lost)
            self._lost = 0
        if self._file.tell() + len(data) > self._limit:
            self.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._open()
        self._file.write(data)


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a file, or of what came before it when it is new."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 256 * 1024))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
