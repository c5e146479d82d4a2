"""Pictures as ComfyUI's ``/view`` and mask editor want them."""

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

__all__ = ["Converted", "PictureConverter"]

_PREVIEW = re.compile(r"(webp|jpeg)?[^;]{0,16}(?:;(\d{1,3}))?")
_QUALITY = 90
_MIB = 2**20
_CHUNK = 256 * 1024
# What is kept of conversions: so many of each tenant, none larger, for an hour.
_KEPT_ENTRIES = 32
_KEPT_BYTES = 512 * 1024
_KEPT_SECONDS = 3600
# Part of every kept conversion's name: change it when conversions change.
_EDITION = "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """A converted picture: in memory where it is small, else in a file that has no name any more.

    Attributes:
        content: exactly one of it and ``file`` is there.
    """

    media_type: str
    size: int
    content: bytes | None = None
    file: BinaryIO | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes; once, since the file is closed then."""
        if self.content is not None:
            yield self.content
        elif self.file is not None:
            async with anyio.wrap_file(self.file) as file:
                while chunk := await file.read(_CHUNK):
                    yield chunk


class PictureConverter:
    """Converts pictures of tenants within the bounds of `PictureProcesses`.

    Args:
        cache: keeps small results.
    """

    def __init__(
        self, blobs: BlobStore, processes: PictureProcesses, cache: TenantCache | None = None
    ) -> None:
        self._blobs = blobs
        self._processes = processes
        self._cache = cache

    async def preview(self, owner: str, source: Artifact, asked: str, channels: str) -> Converted:
        """A copy for the eye, scaled down where the picture is large.

        Args:
            asked: ``webp`` or ``jpeg``, and a quality: ``webp;75``.
            channels: without transparency: ``rgb``.

        Raises:
            InvalidRequest: it is no picture that can be read, ``asked`` is nonsense, or the format
                that it asks for has no pictures of this size.
            PictureTooLarge, Overloaded, ArtifactNotFound
        """
        match = _PREVIEW.fullmatch(asked)
        if match is None:
            raise InvalidRequest("preview must be such as webp;90", field="preview")
        kind = match[1] if match[1] and "a" not in channels else "webp"
        order = {
            "action": "preview",
            "format": kind,
            "quality": min(100, int(match[2] or _QUALITY)),
            "channels": "rgb" if channels == "rgb" else "",
        }
        return await self._converted(owner, source, order, f"image/{kind}")

    async def channel(self, owner: str, source: Artifact, channels: str) -> Converted:
        """A PNG of the colours (``rgb``) or of the transparency (``a``) alone.

        Raises:
            InvalidRequest: it is no picture that can be read.
            PictureTooLarge, Overloaded, ArtifactNotFound
        """
        order = {"action": "channel", "channels": channels}
        return await self._converted(owner, source, order, "image/png")

    async def masked(self, owner: str, source: Artifact, mask: Path) -> None:
        """Put the source with the mask's transparency, as PNG, in the place of ``mask``.

        Raises:
            InvalidRequest: one is no picture that can be read, or they differ in size.
            PictureTooLarge, Overloaded, ArtifactNotFound
        """
        self._check_size((await anyio.Path(mask).stat()).st_size)
        async with self._done(owner, source, {"action": "mask", "mask": str(mask)}) as target:
            await anyio.to_thread.run_sync(_replace, target, mask)

    async def _converted(
        self, owner: str, source: Artifact, order: Mapping[str, Any], media_type: str
    ) -> Converted:
        parts = (_EDITION, source.sha256, *(str(value) for value in order.values()))
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        kept = None if self._cache is None else await self._cache.get(owner, digest)
        if kept is not None:
            return Converted(media_type=media_type, size=len(kept), content=kept)
        async with self._done(owner, source, order) as target:
            size = (await anyio.Path(target).stat()).st_size
            if size > _KEPT_BYTES:
                file = await anyio.to_thread.run_sync(_open, target)
                return Converted(media_type=media_type, size=size, file=file)
            content = await anyio.Path(target).read_bytes()
        if self._cache is not None:
            await self._cache.put(owner, digest, content, ttl=_KEPT_SECONDS, entries=_KEPT_ENTRIES)
        return Converted(media_type=media_type, size=size, content=content)

    @asynccontextmanager
    async def _done(
        self, owner: str, source: Artifact, order: Mapping[str, Any]
    ) -> AsyncIterator[Path]:
        """The file that the order makes, for as long as it is being dealt with."""
        self._check_size(source.size)
        with tempfile.TemporaryDirectory(prefix="moyin-picture-") as folder:
            original, target = Path(folder) / "source", Path(folder) / "target"
            # Copied when its turn has come: pictures that wait take no room.
            async with self._processes.process(owner) as process:
                try:
                    await self._blobs.copy_to(source.sha256, original)
                except FileNotFoundError:
                    raise ArtifactNotFound("the file's content is gone") from None
                await process.do({**order, "source": str(original), "target": str(target)})
            yield target

    def _check_size(self, size: int) -> None:
        limit = self._processes.bounds.source_mib * _MIB
        if size > limit:
            raise PictureTooLarge(
                f"the file has {size:,} bytes; pictures of up to {limit:,} bytes are converted",
                field="filename",
                details={"bytes": size, "max_bytes": limit},
            )


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


def _replace(source: Path, target: Path) -> None:
    source.replace(target)
