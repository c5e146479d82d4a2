"""Reads files to upload, and writes downloaded files."""

from __future__ import annotations

import io
import mimetypes
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = 256 * 1024


class Upload:
    """A file to upload, whose content can be read several times.

    Args:
        file: the content as bytes, or the path of a file.
        name: the name of the stored file; by default that of ``file``.
        media_type: by default, the ending of the name determines it.
    """

    def __init__(
        self, file: str | Path | bytes, *, name: str | None = None, media_type: str | None = None
    ) -> None:
        self._file = file if isinstance(file, bytes) else Path(file)
        self.name = name or (self._file.name if isinstance(self._file, Path) else "")
        guessed = mimetypes.guess_type(self.name)[0]
        self.media_type = media_type or guessed or "application/octet-stream"
        self.size = len(self._file) if isinstance(self._file, bytes) else self._file.stat().st_size

    def read_pieces(self) -> Iterator[bytes]:
        """Yield the content in pieces, always from the beginning."""
        with (
            io.BytesIO(self._file) if isinstance(self._file, bytes) else self._file.open("rb") as f
        ):
            while piece := f.read(_PIECE):
                yield piece


class Download:
    """Collects the pieces of a downloaded file, in memory or in a temporary file.

    Args:
        to: the path where the complete file is put; it replaces an existing file. None collects the
            content in memory.
    """

    def __init__(self, to: Path | None) -> None:
        self._to = to
        self._scratch = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.part") if to else None
        self._file: io.BufferedIOBase = self._scratch.open("xb") if self._scratch else io.BytesIO()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._scratch is not None:
            self._scratch.unlink(missing_ok=True)

    def write(self, piece: bytes) -> None:
        """Append a piece of the file's content."""
        self._file.write(piece)

    def finish(self) -> bytes:
        """Return the content, or put the complete file at its path and return empty bytes."""
        if isinstance(self._file, io.BytesIO):
            return self._file.getvalue()
        self._file.close()
        assert self._to is not None and self._scratch is not None
        self._scratch.replace(self._to)
        return b""
