"""Stores blobs by the digest of their content, in a folder or in S3, through fsspec.

A blob's name is the SHA-256 of its content. So a second write of the same content changes nothing,
blobs are never modified, and readers never see a partial write.
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
# Each part is a request, whose response takes about 30 ms to begin, and is held in memory.
_S3_PART_DOWN = 4 * 1024 * 1024
_S3_PART_UP = 16 * 1024 * 1024
# A blob in S3 that was stored within this time is not renewed.
_RECENT = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """Identifies a blob. ``size`` is in bytes, ``sha256`` in hex."""

    sha256: str
    size: int


class BlobStore:
    """Stores blobs at a URL such as ``file:///data`` or ``s3://bucket/prefix``.

    Nothing blocks the caller's event loop: files are handled in threads, S3 in its own event loop.
    Every method raises `ServiceUnavailable` if S3 is unavailable, the bucket does not exist, or the
    credentials are refused.
    """

    def __init__(self, url: str) -> None:
        self._in_s3 = url.startswith(s3.S3_PREFIX)
        self._files, root = (s3.open_bucket if self._in_s3 else fsspec.core.url_to_fs)(url)
        if not self._in_s3 and not isinstance(self._files, LocalFileSystem):
            raise ValueError(
                f"the URL of the artifact store must begin with file:// or s3://, not {url!r}"
            )
        self._root = root.rstrip("/")

    async def put(self, data: bytes) -> str:
        """Store ``data`` and return its sha256."""
        if not self._in_s3:
            return await asyncio.to_thread(self._put, data)
        digest = await asyncio.to_thread(_sha256, data)
        # Checking for the blob first would cost two requests instead of one.
        await self._call(
            "pipe_file", self._path(digest), data, seconds=s3.upload_timeout(len(data))
        )
        return digest

    async def put_file(self, path: Path) -> Blob:
        """Store the content of a local file without holding it in memory.

        Raises:
            OSError: the local file cannot be read.
        """
        if not self._in_s3:
            return await asyncio.to_thread(self._put_file, path)
        blob = await asyncio.to_thread(_hash_file, path)
        if not await self.renew(blob.sha256):
            target = self._path(blob.sha256)
            seconds = s3.upload_timeout(blob.size)
            await self._call("put_file", str(path), target, chunksize=_S3_PART_UP, seconds=seconds)
        return blob

    async def put_stream(self, file: IO[bytes], limit: int) -> Blob:
        """Store the rest of an open file, which may change meanwhile.

        The file is read once, since its content could change between reading it for the digest and
        reading it for storage.

        Raises:
            OSError: the file cannot be read, or is longer than ``limit`` bytes.
        """
        if not self._in_s3:
            return await asyncio.to_thread(self._put_stream, file, limit)
        with tempfile.TemporaryDirectory(prefix="moyin-") as folder:
            path = Path(folder) / "blob"
            await asyncio.to_thread(_copy_limited, file, path, limit)
            return await self.put_file(path)

    async def get(self, sha256: str) -> bytes:
        """Return the whole blob.

        Raises:
            FileNotFoundError: the blob does not exist.
        """
        data: bytes = await self._call("cat_file", self._path(sha256))
        return data

    async def read(
        self, sha256: str, *, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to ``end`` (exclusive, within the blob) in chunks.

        Raises:
            FileNotFoundError: the blob does not exist.
        """
        path = self._path(sha256)
        if end is None:
            end = (await self._call("info", path))["size"]
        size = _S3_PART_DOWN if self._in_s3 else _CHUNK
        while start < end:
            chunk: bytes = await self._call(
                "cat_file", path, start=start, end=min(start + size, end)
            )
            if not chunk:
                return
            start += len(chunk)
            yield chunk

    async def copy_to(self, sha256: str, path: Path) -> None:
        """Write the blob to a local file atomically.

        Raises:
            FileNotFoundError: the blob does not exist.
        """
        source = self._path(sha256)
        if not self._in_s3:
            return await asyncio.to_thread(_copy_atomically, source, path)
        temporary = _temporary_path(path)
        try:
            await self._call("get_file", source, str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    async def exists(self, sha256: str) -> bool:
        """Return whether the blob exists."""
        try:
            # fsspec's `exists` would report a missing bucket as a missing blob.
            await self._call("info", self._path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def renew(self, sha256: str) -> bool:
        """Set the blob's age to zero, for a caller that will refer to it; False: it does not exist.

        A blob in S3 that is less than an hour old is left as it is.
        """
        try:
            path = self._path(sha256)
            if not self._in_s3:
                return await asyncio.to_thread(_touch, Path(path))
            if (await self._call("info", path))["LastModified"] < datetime.now(UTC) - _RECENT:
                # Only a copy onto itself changes the time, and S3 requires that the copy changes metadata.
                await self._call("cp_file", path, path, MetadataDirective="REPLACE")
        except FileNotFoundError:
            return False
        return True

    async def delete(self, sha256: str, before: datetime) -> int | None:
        """Delete the blob unless it was stored or renewed since ``before``.

        In S3 the check and the deletion are two requests; a renewal between them is lost.

        Returns:
            The size of the deleted blob in bytes; None: nothing was deleted.
        """
        path = self._path(sha256)
        if not self._in_s3:
            return await asyncio.to_thread(_delete, Path(path), before.timestamp())
        try:
            info = await self._call("info", path)
        except FileNotFoundError:
            return None
        if info["LastModified"] >= before:
            return None
        await self._call("rm_file", path)
        return int(info["size"])

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._in_s3:
            return await s3.call(self._files, method, *args, **kwargs)
        return await asyncio.to_thread(getattr(self._files, method), *args, **kwargs)

    def _path(self, sha256: str) -> str:
        if len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256):
            raise FileNotFoundError(sha256)
        # Two levels of folders keep each one small.
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def _put(self, data: bytes) -> str:
        digest = _sha256(data)
        path = Path(self._path(digest))
        if not _touch(path):
            with _open_atomically(path) as file:
                file.write(data)
        return digest

    def _put_file(self, source: Path) -> Blob:
        blob = _hash_file(source)
        path = Path(self._path(blob.sha256))
        if not _touch(path):
            with source.open("rb") as file, _open_atomically(path) as target:
                _copy_chunks(file, target)
        return blob

    def _put_stream(self, file: IO[bytes], limit: int) -> Blob:
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_path(root / "incoming")
        try:
            with temporary.open("wb") as copy:
                digest, size = _copy_and_hash(file, copy, limit)
                path = Path(self._path(digest))
                if not _touch(path):
                    copy.flush()
                    os.fsync(copy.fileno())
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return Blob(sha256=digest, size=size)


@contextmanager
def _open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is renamed to ``path`` once it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _touch(path: Path) -> bool:
    """Set the blob's age to zero, so that it is not pruned; False: it does not exist."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:
        # Another user owns the file, on a shared disk.
        return path.exists()
    return True


def _delete(path: Path, before: float) -> int | None:
    # Renamed first: a concurrent writer either renews the file before that or writes it anew.
    temporary = _temporary_path(path)
    try:
        if path.stat().st_mtime >= before:
            return None
        path.rename(temporary)
    except FileNotFoundError:
        return None
    stat = temporary.stat()
    if stat.st_mtime >= before:
        temporary.rename(path)
        return None
    temporary.unlink()
    return stat.st_size


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash_file(source: Path) -> Blob:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(sha256=digest, size=file.tell())


def _copy_atomically(source: str, path: Path) -> None:
    temporary = _temporary_path(path)
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _copy_limited(source: IO[bytes], path: Path, limit: int) -> None:
    with path.open("wb") as target:
        _copy_and_hash(source, target, limit)


def _copy_and_hash(source: IO[bytes], target: IO[bytes], limit: int) -> tuple[str, int]:
    """Copy a file; return the sha256 and the number of bytes."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise OSError(errno.EFBIG, f"the file is larger than {limit} bytes")
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest(), size


def _copy_chunks(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(_CHUNK):
        target.write(chunk)
