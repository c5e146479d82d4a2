"""Stores blobs, named by the SHA-256 of their content, in a folder or in S3 through fsspec.

Because of the names, blobs are never modified, storing the same content again changes nothing, and
readers never see a partial write.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from moyin.store import s3

_CHUNK = 256 * 1024
# Each part is held in memory and needs one request, which takes at least about 30 ms.
_S3_PART_DOWN = 4 * 1024 * 1024
_S3_PART_UP = 16 * 1024 * 1024
# A blob in S3 that was stored or renewed within this time need not be renewed.
_RECENT = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """Identifies a blob by the SHA-256 of its content in hex; ``size`` is in bytes."""

    sha256: str
    size: int


class BlobStore:
    """Stores blobs at a URL such as ``file:///data`` or ``s3://bucket/prefix``.

    Its methods do not block the event loop: files are accessed in threads, S3 in the event loop of
    fsspec's thread. They raise `ServiceUnavailable` if S3 is unavailable, the bucket does not
    exist, or S3 refuses the credentials.
    """

    def __init__(self, url: str) -> None:
        self._in_s3 = url.startswith(s3.S3_PREFIX)
        self._files, root = (s3.open_bucket if self._in_s3 else fsspec.core.url_to_fs)(url)
        if not self._in_s3 and not isinstance(self._files, LocalFileSystem):
            raise ValueError(
                f"the URL of the artifact store must begin with file:// or s3://, but is {url!r}"
            )
        self._root = root.rstrip("/")

    async def put(self, data: bytes) -> str:
        """Store ``data`` as a blob and return its SHA-256."""
        if not self._in_s3:
            return await asyncio.to_thread(self._put, data)
        digest = await asyncio.to_thread(_compute_sha256, data)
        # Written without a check whether it exists, which would cost another request.
        await self._call(
            "pipe_file",
            self._build_path(digest),
            data,
            timeout_seconds=s3.compute_upload_timeout(len(data)),
        )
        return digest

    async def put_file(self, path: Path) -> Blob:
        """Store the content of a local file, without reading all of it into memory.

        Returns:
            The SHA-256 and the size of the content.
        """
        if not self._in_s3:
            return await asyncio.to_thread(self._put_file, path)
        blob = await asyncio.to_thread(_hash_file, path)
        if not await self.renew(blob.sha256):
            target = self._build_path(blob.sha256)
            timeout_seconds = s3.compute_upload_timeout(blob.size)
            await self._call(
                "put_file",
                str(path),
                target,
                chunksize=_S3_PART_UP,
                timeout_seconds=timeout_seconds,
            )
        return blob

    async def put_stream(self, file: IO[bytes], max_bytes: int) -> Blob:
        """Store the rest of an open file, which another process may change meanwhile.

        The file is read only once, so that the digest is that of the stored bytes.

        Returns:
            The SHA-256 and the size of the stored bytes.

        Raises:
            OSError: the file has more than ``max_bytes`` bytes.
        """
        if not self._in_s3:
            return await asyncio.to_thread(self._put_stream, file, max_bytes)
        with tempfile.TemporaryDirectory(prefix="moyin-") as folder:
            path = Path(folder) / "blob"
            await asyncio.to_thread(_copy_limited, file, path, max_bytes)
            return await self.put_file(path)

    async def get(self, sha256: str) -> bytes:
        """Return the content of a blob; raise FileNotFoundError if it does not exist."""
        data: bytes = await self._call("cat_file", self._build_path(sha256))
        return data

    async def read_chunks(
        self, sha256: str, *, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from ``start`` to before ``end``, which must be within the blob."""
        path = self._build_path(sha256)
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
        """Copy a blob to a local file atomically; raise FileNotFoundError if it does not exist."""
        source = self._build_path(sha256)
        if not self._in_s3:
            return await asyncio.to_thread(_copy_atomically, source, path)
        temporary_path = _choose_temporary_path(path)
        try:
            await self._call("get_file", source, str(temporary_path))
            temporary_path.replace(path)
        finally:
            temporary_path.unlink(missing_ok=True)

    async def ping(self) -> None:
        """Raise an exception if the store does not respond."""
        await self.exists("0" * 64)

    async def exists(self, sha256: str) -> bool:
        """Return whether the blob exists."""
        try:
            # Not fsspec's `exists`, which returns False if the bucket does not exist.
            await self._call("info", self._build_path(sha256))
        except FileNotFoundError:
            return False
        return True

    async def renew(self, sha256: str) -> bool:
        """Reset the age of a blob, so that pruning does not delete it; return False if none exists.

        A blob in S3 that is less than an hour old is not changed.
        """
        try:
            path = self._build_path(sha256)
            if not self._in_s3:
                return await asyncio.to_thread(_touch, Path(path))
            if (await self._call("info", path))["LastModified"] < datetime.now(UTC) - _RECENT:
                # Copying a blob onto itself resets its time; S3 requires that this changes metadata.
                await self._call("cp_file", path, path, MetadataDirective="REPLACE")
        except FileNotFoundError:
            return False
        return True

    async def delete(self, sha256: str, cutoff: datetime) -> int | None:
        """Delete a blob unless it was stored or renewed since ``cutoff``.

        In S3 the check and the deletion are two requests; a renewal between them is lost.

        Returns:
            The size of the deleted blob in bytes, or None if nothing was deleted.
        """
        path = self._build_path(sha256)
        if not self._in_s3:
            return await asyncio.to_thread(_delete_if_older, Path(path), cutoff.timestamp())
        try:
            info = await self._call("info", path)
        except FileNotFoundError:
            return None
        if info["LastModified"] >= cutoff:
            return None
        await self._call("rm_file", path)
        return int(info["size"])

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._in_s3:
            return await s3.call_method(self._files, method, *args, **kwargs)
        return await asyncio.to_thread(getattr(self._files, method), *args, **kwargs)

    def _build_path(self, sha256: str) -> str:
        if len(sha256) != 64 or not all(c in "0123456789abcdef" for c in sha256):
            raise FileNotFoundError(f"no blob has the name {sha256!r}: a name is a SHA-256 in hex")
        # Two levels of folders, so that each has few entries.
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def _put(self, data: bytes) -> str:
        digest = _compute_sha256(data)
        path = Path(self._build_path(digest))
        if not _touch(path):
            with _open_atomically(path) as file:
                file.write(data)
        return digest

    def _put_file(self, source: Path) -> Blob:
        blob = _hash_file(source)
        path = Path(self._build_path(blob.sha256))
        if not _touch(path):
            with source.open("rb") as file, _open_atomically(path) as target:
                shutil.copyfileobj(file, target, _CHUNK)
        return blob

    def _put_stream(self, file: IO[bytes], max_bytes: int) -> Blob:
        root = Path(self._root)
        root.mkdir(parents=True, exist_ok=True)
        temporary_path = _choose_temporary_path(root / "incoming")
        try:
            with temporary_path.open("wb") as target:
                digest, size = _copy_and_hash(file, target, max_bytes)
                path = Path(self._build_path(digest))
                if not _touch(path):
                    target.flush()
                    os.fsync(target.fileno())
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary_path.replace(path)
        finally:
            temporary_path.unlink(missing_ok=True)
        return Blob(sha256=digest, size=size)


@contextmanager
def _open_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file, which is renamed to ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path = _choose_temporary_path(path)
    try:
        with temporary_path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary_path.replace(path)
    finally:
        temporary_path.unlink(missing_ok=True)


def _touch(path: Path) -> bool:
    """Set the modification time of a file to now; return False if it does not exist."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except PermissionError:
        # On a shared disk, another user may own the file.
        return path.exists()
    return True


def _delete_if_older(path: Path, cutoff: float) -> int | None:
    # Renamed first, so that a concurrent writer either renews the file before or writes it again.
    temporary_path = _choose_temporary_path(path)
    try:
        if path.stat().st_mtime >= cutoff:
            return None
        path.rename(temporary_path)
    except FileNotFoundError:
        return None
    stat = temporary_path.stat()
    if stat.st_mtime >= cutoff:
        temporary_path.rename(path)
        return None
    temporary_path.unlink()
    return stat.st_size


def _compute_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash_file(source: Path) -> Blob:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Blob(sha256=digest, size=file.tell())


def _copy_atomically(source: str, path: Path) -> None:
    temporary_path = _choose_temporary_path(path)
    try:
        shutil.copyfile(source, temporary_path)
        temporary_path.replace(path)
    finally:
        temporary_path.unlink(missing_ok=True)


def _choose_temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _copy_limited(source: IO[bytes], path: Path, max_bytes: int) -> None:
    with path.open("wb") as target:
        _copy_and_hash(source, target, max_bytes)


def _copy_and_hash(source: IO[bytes], target: IO[bytes], max_bytes: int) -> tuple[str, int]:
    """Copy a file and return its SHA-256 and size; raise OSError beyond ``max_bytes`` bytes."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"the file is larger than the limit of {max_bytes} bytes")
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest(), size
