"""Converts stored pictures and videos for thumbnails and ComfyUI's routes, and caches the results."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.to_thread

from moyin.domain.artifact import Artifact
from moyin.errors import ArtifactNotFound, InvalidRequest, PictureTooLarge
from moyin.render.imaging.processes import PictureProcesses
from moyin.store.blobs import BlobStore
from moyin.store.tenant_cache import TenantCache

_PREVIEW = re.compile(r"(webp|jpeg)?[^;]{0,16}(?:;(\d{1,3}))?")
_QUALITY = 90
_THUMBNAIL_QUALITY = 80
_VIDEO_TYPES = frozenset({"video/mp4", "video/quicktime", "video/webm", "video/x-matroska"})
_MIB = 2**20
_CHUNK = 256 * 1024
# Limits of the cache: entries per tenant, size of an entry, lifetime.
_CACHED_ENTRIES = 32
_CACHED_THUMBNAILS = 256
_CACHED_BYTES = 512 * 1024
_CACHED_SECONDS = 3600
# A part of each cache key. Change this number when conversions produce other results.
_VERSION = "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvertedPicture:
    """A converted picture, in memory if it is small or else in an open file.

    Attributes:
        content: the bytes of a small picture, or None.
        file: the open, already unlinked file of a large picture, or None.
    """

    media_type: str
    size: int
    content: bytes | None = None
    file: BinaryIO | None = None

    async def iterate_chunks(self) -> AsyncIterator[bytes]:
        """Yield the picture's bytes, then close its file. Call this method only once."""
        if self.content is not None:
            yield self.content
        elif self.file is not None:
            async with anyio.wrap_file(self.file) as file:
                while chunk := await file.read(_CHUNK):
                    yield chunk


class PictureConverter:
    """Converts pictures in the artifact store.

    Args:
        processes: the processes that decode and encode pictures, with their limits.
        cache: cache of small results, or None for no cache.
    """

    def __init__(
        self, blobs: BlobStore, processes: PictureProcesses, cache: TenantCache | None = None
    ) -> None:
        self._blobs = blobs
        self._processes = processes
        self._cache = cache

    async def make_preview(
        self, owner: str, source: Artifact, preview_format: str, channels: str
    ) -> ConvertedPicture:
        """Return a lossy copy of a picture, scaled down if the picture is large.

        Args:
            preview_format: format (``webp`` or ``jpeg``) and quality, such as ``webp;75``.
            channels: the channels to keep; ``rgb`` removes the transparency.

        Raises:
            InvalidRequest: The source is not a readable picture, ``preview_format`` is malformed,
                or the format does not support pictures of this size.
            PictureTooLarge: The source or the conversion exceeds a limit.
            Overloaded: Too many pictures are waiting for conversion.
            ArtifactNotFound: The store no longer has the content of the source.
        """
        match = _PREVIEW.fullmatch(preview_format)
        if match is None:
            raise InvalidRequest(
                "preview must be webp or jpeg with a quality, such as webp;90", field="preview"
            )
        image_format = match[1] if match[1] and "a" not in channels else "webp"
        task = {
            "action": "preview",
            "format": image_format,
            "quality": min(100, int(match[2] or _QUALITY)),
            "channels": "rgb" if channels == "rgb" else "",
        }
        return await self._convert(owner, source, task, f"image/{image_format}")

    async def make_thumbnail(self, owner: str, source: Artifact, width: int) -> ConvertedPicture:
        """Return a WebP of a picture, or of a video's first frame, at most ``width`` pixels wide.

        Raises the same errors as `make_preview`, and `InvalidRequest` if the file is of another kind.
        """
        is_video = source.media_type in _VIDEO_TYPES
        if not is_video and not source.media_type.startswith("image/"):
            raise InvalidRequest(
                "only pictures and videos have thumbnails, but the type of this file is "
                f"{source.media_type}",
                field="filename",
            )
        task = {
            "action": "poster" if is_video else "preview",
            "format": "webp",
            "quality": _THUMBNAIL_QUALITY,
            "channels": "",
            "width": width,
        }
        return await self._convert(owner, source, task, "image/webp", _CACHED_THUMBNAILS)

    async def make_channel_picture(
        self, owner: str, source: Artifact, channels: str
    ) -> ConvertedPicture:
        """Return a PNG with only the colours or only the transparency of a picture.

        Raises the same errors as `make_preview`.

        Args:
            channels: ``rgb`` for the colours, ``a`` for the transparency.
        """
        task = {"action": "channel", "channels": channels}
        return await self._convert(owner, source, task, "image/png")

    async def apply_mask(self, owner: str, source: Artifact, mask: Path) -> None:
        """Replace the file ``mask`` by a PNG of the source with the transparency of the mask.

        Raises the same errors as `make_preview`, and `InvalidRequest` if the pictures differ in size.
        """
        self._check_size((await anyio.Path(mask).stat()).st_size)
        async with self._run_task(owner, source, {"action": "mask", "mask": str(mask)}) as target:
            await anyio.to_thread.run_sync(_replace_file, target, mask)

    async def _convert(
        self,
        owner: str,
        source: Artifact,
        task: Mapping[str, Any],
        media_type: str,
        max_entries: int = _CACHED_ENTRIES,
    ) -> ConvertedPicture:
        key_parts = (_VERSION, source.sha256, *(str(value) for value in task.values()))
        digest = hashlib.sha256("\0".join(key_parts).encode()).hexdigest()
        cached_content = None if self._cache is None else await self._cache.get(owner, digest)
        if cached_content is not None:
            return ConvertedPicture(
                media_type=media_type, size=len(cached_content), content=cached_content
            )
        async with self._run_task(owner, source, task) as target:
            size = (await anyio.Path(target).stat()).st_size
            if size > _CACHED_BYTES:
                file = await anyio.to_thread.run_sync(_open_file, target)
                return ConvertedPicture(media_type=media_type, size=size, file=file)
            content = await anyio.Path(target).read_bytes()
        if self._cache is not None:
            await self._cache.put(
                owner, digest, content, ttl_seconds=_CACHED_SECONDS, max_entries=max_entries
            )
        return ConvertedPicture(media_type=media_type, size=size, content=content)

    @asynccontextmanager
    async def _run_task(
        self, owner: str, source: Artifact, task: Mapping[str, Any]
    ) -> AsyncIterator[Path]:
        """Run a task of `worker.convert`, and yield the path of the result until the block ends."""
        self._check_size(source.size)
        with tempfile.TemporaryDirectory(prefix="moyin-picture-") as folder:
            source_path, target_path = Path(folder) / "source", Path(folder) / "target"
            # Copy the source only when a process is free, so that waiting pictures take no disk
            # space.
            async with self._processes.acquire_process(owner) as process:
                try:
                    await self._blobs.copy_to(source.sha256, source_path)
                except FileNotFoundError:
                    raise ArtifactNotFound(
                        f"the content of file {source.name!r} was deleted from the artifact store: "
                        "upload the file again"
                    ) from None
                await process.run({**task, "source": str(source_path), "target": str(target_path)})
            yield target_path

    def _check_size(self, size_bytes: int) -> None:
        max_bytes = self._processes.limits.source_mib * _MIB
        if size_bytes > max_bytes:
            raise PictureTooLarge(
                f"the file has {size_bytes:,} bytes; only files of at most {max_bytes:,} bytes are converted",
                field="filename",
                details={"bytes": size_bytes, "max_bytes": max_bytes},
            )


def _open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def _replace_file(source: Path, target: Path) -> None:
    source.replace(target)
