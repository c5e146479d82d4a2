"""The artifact store's bytes: content-addressed, through fsspec (a folder, S3, …).

A blob's name is the SHA-256 of its content, so writing twice is writing once, nothing is ever
changed in place, and an interrupted write is never seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

__all__ = ["Blob", "BlobStore"]

_CHUNK = 256 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """``size`` in bytes; ``sha256`` in hex."""

    sha256: str
    size: int


class BlobStore:
    """Bytes by their digest, under one fsspec URL such as ``file:///data`` or ``s3://bucket/x``.

    Every method moves the blocking work to a thread: the caller's event loop stays free.
    """

    def __init__(self, url: str) -> None:
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = root.rstrip("/")

    async def put(self, data: bytes) -> str:
        """Store ``data``; returns its sha256."""
        return await asyncio.to_thread(self._put, data)

    async def put_file(self, path: Path) -> Blob:
        """Store the content of a local file without holding it in memory."""
        return await asyncio.to_thread(self._put_file, path)

    async def get(self, sha256: str) -> bytes:
        """The whole blob.

        Raises:
            FileNotFoundError: no such blob.
        """
        data: bytes = await asyncio.to_thread(self._files.cat_file, self._path(sha256))
        return data

    async def read(
        self, sha256: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Bytes ``start`` to ``end`` (exclusive) in chunks.

        Raises:
            FileNotFoundError: no such blob.
        """
        file = await asyncio.to_thread(self._files.open, self._path(sha256), "rb")
        try:
            await asyncio.to_thread(file.seek, start)
            left = None if end is None else end - start
            while left is None or left > 0:
                size = _CHUNK if left is None else min(_CHUNK, left)
                chunk: bytes = await asyncio.to_thread(file.read, size)
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk
        finally:
            await asyncio.to_thread(file.close)

    async def copy_to(self, sha256: str, path: Path) -> None:
        """Write the blob to a local file, whole or not at all."""
        await asyncio.to_thread(self._copy_to, sha256, path)

    async def exists(self, sha256: str) -> bool:
        found: bool = await asyncio.to_thread(self._files.exists, self._path(sha256))
        return found

    def _path(self, sha256: str) -> str:
        if len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256):
            raise FileNotFoundError(sha256)
        # Two levels keep folders small on plain file systems.
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def _put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not self._files.exists(path):
            with self._replacing(path) as file:
                file.write(data)
        return digest

    def _put_file(self, source: Path) -> Blob:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            path = self._path(digest)
            if not self._files.exists(path):
                file.seek(0)
                with self._replacing(path) as target:
                    _pump(file, target)
        return Blob(sha256=digest, size=size)

    def _copy_to(self, sha256: str, path: Path) -> None:
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self._files.get_file(self._path(sha256), str(scratch))
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def _replacing(self, path: str) -> Any:
        # Local files: written aside and moved on close. Object stores appear only when closed.
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if self._files.protocol in ("file", ("file", "local")):
            return _aside(Path(path))
        return self._files.open(path, "wb")


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """A local file that takes its name when it is complete and on disk."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _pump(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)
