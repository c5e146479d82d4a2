"""Log files that can't fill the disk."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LogFile", "tail"]


class LogFile:
    """Appends bytes; at ``limit`` bytes the file becomes ``NAME.1`` and a new one begins."""

    def __init__(self, path: Path, *, limit: int = 5 * 1024 * 1024) -> None:
        self._path = path
        self._limit = limit
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        if self._file.tell() + len(data) > self._limit:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            self._file = self._path.open("ab", buffering=0)
        self._file.write(data)

    def close(self) -> None:
        self._file.close()


def tail(path: Path, lines: int) -> list[str]:
    """The last ``lines`` lines of a file, or of what came before it when it is new."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 256 * 1024))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
