"""The artifact store's bytes: content-addressed, through fsspec (a folder or S3).

A blob's name is the SHA-256 of its content, so writing twice is writing once, nothing is ever
changed in place, and an interrupted write is never seen.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from moyin.store import s3

__all__ = ["Blob", "BlobStore"]

_CHUNK = 256 * 1024
# Each is a request of its own, whose answer takes some 30 ms to begin, and is held in memory.
_S3_PART_DOWN = 4 * 1024 * 1024
_S3_PART_UP = 16 * 1024 * 1024
_NEW = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """``size`` in bytes; ``sha256`` in hex."""

    sha256: str
    size: int


class BlobStore:
    """Bytes by their digest, under one URL such as ``file:///data`` or ``s3://bucket/prefix``.

    The caller's event loop stays free: a folder's files are dealt with in threads, S3 in a loop of
    its own.

    Every method raises `ServiceUnavailable` where S3 is away, the bucket is not there, or our
    credentials are refused.
    """

    def __init__(self, url: str) -> None:
        self._in_s3 = url.startswith(s3.S3_PREFIX)
        self._files, root = (s3.open_bucket if self._in_s3 else fsspec.core.url_to_fs)(url)
        if not self._in_s3 and not isinstance(self._files, LocalFileSystem):
            raise ValueError(f"the artifact store is a folder or in S3, not {url!r}")
        self._root = root.rstrip("/")

    async def put(self, data: bytes) -> str:
        """Store ``data``; returns its sha256."""
        if not self._in_s3:
            return await asyncio.to_thread(self._put, data)
        digest = await asyncio.to_thread(_sha256, data)
        # Looking whether it is there would cost two requests, and this is one.
        await self._ask("pipe_file", self._path(digest), data, seconds=s3.patience(len(data)))
        return digest

    async def put_file(self, path: Path) -> Blob:
        """Store the content of a local file without holding it in memory.

        Raises:
            OSError: the local file can't be read.
        """
        if not self._in_s3:
            return await asyncio.to_thread(self._put_file, path)
        blob = await asyncio.to_thread(_blob_of, path)
        if not await self.renew(blob.sha256):
            target = self._path(blob.sha256)
            seconds = s3.patience(blob.size)
            await self._ask("put_file", str(path), target, chunksize=_S3_PART_UP, seconds=seconds)
        return blob

    async def put_stream(self, file: IO[bytes], limit: int) -> Blob:
        """Store the rest of an open file, which its owner may change meanwhile.

        It is read once: between a reading for its name and another for its content, the content could
        become another's.

        Raises:
            OSError: the file can't be read, or is longer than ``limit`` bytes.
        """
        if not self._in_s3:
            return await asyncio.to_thread(self._put_stream, file, limit)
        with tempfile.TemporaryDirectory(prefix="moyin-") as folder:
            path = Path(folder) / "blob"
            await asyncio.to_thread(_copy_stream, file, path, limit)
            return await self.put_file(path)

    async def get(self, sha256: str) -> bytes:
        """The whole blob.

        Raises:
            FileNotFoundError: no such blob.
        """
        data: bytes = await self._ask("cat_file", self._path(sha256))
        return data

    async def read(
        self, sha256: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Bytes ``start`` to ``end`` (exclusive, not past the blob's end) in chunks.

        Raises:
            FileNotFoundError: no such blob.
        """
        path = self._path(sha256)
        if end is None:
            end = (await self._ask("info", path))["size"]
        size = _S3_PART_DOWN if self._in_s3 else _CHUNK
        while start < end:
            chunk: bytes = await self._ask(
                "cat_file", path, start=start, end=min(start + size, end)
            )
            if not chunk:
                return
            start += len(chunk)
            yield chunk

    async def copy_to(self, sha256: str, path: Path) -> None:
        """Write the blob to a local file, whole or not at all.

        Raises:
            FileNotFoundError: no such blob.
        """
        source = self._path(sha256)
        if not self._in_s3:
            return await asyncio.to_thread(_copy, source, path)
        scratch = _scratch(path)
        try:
            await self._ask("get_file", source, str(scratch))
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    async def exists(self, sha256: str) -> bool:
        try:
            # Of what fsspec's `exists` says of S3, a missing bucket is a missing blob.
            await self._ask("info", self._path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def renew(self, sha256: str) -> bool:
        """Whether the blob is there. It counts as stored now: for who refers to what is there.

        A blob in S3 that is less than an hour old stays as it is.
        """
        try:
            path = self._path(sha256)
            if not self._in_s3:
                return await asyncio.to_thread(_renewed, Path(path))
            if (await self._ask("info", path))["LastModified"] < datetime.now(UTC) - _NEW:
                # Nothing else than a copy of itself makes it new, and that has to change something.
                await self._ask("cp_file", path, path, MetadataDirective="REPLACE")
        except FileNotFoundError:
            return False
        return True

    async def delete(self, sha256: str, before: datetime) -> int | None:
        """Delete the blob unless it was stored, or renewed, since ``before``.

        In S3 there is a moment between the look at its age and its end, in which nobody may do so.

        Returns:
            Its size in bytes; None: it stays, or was not there.
        """
        path = self._path(sha256)
        if not self._in_s3:
            return await asyncio.to_thread(_delete, Path(path), before.timestamp())
        try:
            found = await self._ask("info", path)
        except FileNotFoundError:
            return None
        if found["LastModified"] >= before:
            return None
        await self._ask("rm_file", path)
        return int(found["size"])

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._in_s3:
            return await s3.ask(self._files, method, *args, **kwargs)
        return await asyncio.to_thread(getattr(self._files, method), *args, **kwargs)

    def _path(self, sha256: str) -> str:
        if len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256):
            raise FileNotFoundError(sha256)
        # Two levels keep folders small on plain file systems.
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def _put(self, data: bytes) -> str:
        digest = _sha256(data)
        path = Path(self._path(digest))
        if not _renewed(path):
            with _aside(path) as file:
                file.write(data)
        return digest

    def _put_file(self, source: Path) -> Blob:
        blob = _blob_of(source)
        path = Path(self._path(blob.sha256))
        if not _renewed(path):
            with source.open("rb") as file, _aside(path) as target:
                _pump(file, target)
        return blob

    def _put_stream(self, file: IO[bytes], limit: int) -> Blob:
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        scratch = _scratch(root / "incoming")
        try:
            with scratch.open("wb") as copy:
                digest, size = _pump_hashed(file, copy, limit)
                path = Path(self._path(digest))
                if not _renewed(path):
                    copy.flush()
                    os.fsync(copy.fileno())
                    path.parent.mkdir(parents=True, exist_ok=True)
                    scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        return Blob(sha256=digest, size=size)


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """A local file that takes its name when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch(path)
    try:
        with scratch.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _renewed(path: Path) -> bool:
    """Whether the blob is there. It counts as stored now: who deletes old ones leaves it alone."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:
        # Another user's, on a shared disk.
        return path.exists()
    return True


def _delete(path: Path, before: float) -> int | None:
    # Aside first: whoever stores it meanwhile finds it and renews it, or does not and writes it.
    scratch = _scratch(path)
    try:
        if path.stat().st_mtime >= before:
            return None
        path.rename(scratch)
    except FileNotFoundError:
        return None
    found = scratch.stat()
    if found.st_mtime >= before:
        scratch.rename(path)
        return None
    scratch.unlink()
    return found.st_size


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _blob_of(source: Path) -> Blob:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(sha256=digest, size=file.tell())


def _copy(source: str, path: Path) -> None:
    scratch = _scratch(path)
    try:
        shutil.copyfile(source, scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _copy_stream(source: IO[bytes], path: Path, limit: int) -> None:
    with path.open("wb") as target:
        _pump_hashed(source, target, limit)


def _pump_hashed(source: IO[bytes], target: IO[bytes], limit: int) -> tuple[str, int]:
    """Copy; returns the sha256 and the number of bytes."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise OSError(errno.EFBIG, f"a file is larger than {limit} bytes")
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest(), size


def _pump(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)
