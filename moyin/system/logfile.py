"""Writes log files of limited size, and reads their last lines."""

from __future__ import annotations

import io
from pathlib import Path


class LogFile:
    """A log file that is renamed to ``NAME.1`` and started again when it reaches ``max_bytes`` bytes.

    Raises:
        OSError: The constructor can't open the file.
    """

    def __init__(self, path: Path, *, max_bytes: int = 5 * 1024 * 1024) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lost = 0
        self._file: io.FileIO | None = self._open()

    def write(self, data: bytes) -> None:
        """Append ``data``; drop the data if the file cannot be written, for example on a full disk.

        No error is raised, because the process whose output is logged would block on its pipe.
        """
        try:
            self._write(data)
        except OSError:
            self._lost += len(data)
            self.close()

    def close(self) -> None:
        """Close the file; a later call of `write` opens it again."""
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
        if self._file.tell() + len(data) > self._max_bytes:
            self.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._open()
        self._file.write(data)


def read_last_lines(path: Path, count: int) -> list[str]:
    """Return the last ``count`` lines of a file, at most 256 KiB; empty if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 256 * 1024))
            return file.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []
