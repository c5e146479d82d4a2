"""From files in ComfyUI's folders to blobs in the artifact store."""

from __future__ import annotations

import asyncio
import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from moyin.domain.prompt import PromptFile, PromptRecord
from moyin.domain.renderer import RenderedFile, RenderSucceeded
from moyin.errors import RenderFailed
from moyin.render.comfyui.prompts import BoundedDict
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.response import (
    WrittenFile,
    files_of,
    placed,
    record_of,
    values,
    written,
)
from moyin.render.protocol.wire import HistoryEntry, OutputFile
from moyin.store.blobs import BlobStore

__all__ = ["Outputs", "StoredResult"]

_REMEMBERED = 4096
_Mark: TypeAlias = tuple[int, int, int]
_MEDIA_TYPES = {".webp": "image/webp", ".glb": "model/gltf-binary", ".flac": "audio/flac"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResult:
    """A prompt's end, with its files in the store."""

    record: PromptRecord
    done: RenderSucceeded


class Outputs:
    """Stores each file once, and remembers which file was which.

    ComfyUI answers a repeated graph from its cache by naming the files of the prompt that made
    them; by then they are gone from its folder, and found again here. What is there is believed
    before what was: a node may give its files the same names every time. And what was may have been
    pruned. Valid for one process.

    Args:
        limit: bytes of one prompt's files.
    """

    def __init__(self, written_files: WrittenFiles, blobs: BlobStore, limit: int) -> None:
        self._written = written_files
        self._blobs = blobs
        self._limit = limit
        # With what the file system said of the file that was stored.
        self._stored: BoundedDict[OutputFile, tuple[PromptFile, _Mark]] = BoundedDict(_REMEMBERED)
        # A repeat may name the files of a prompt that is just being stored.
        self._turn = asyncio.Lock()

    async def collect(self, prompt_id: str, entry: HistoryEntry) -> StoredResult | None:
        """The prompt's outputs, now in the store; None when one is neither here nor remembered.

        Of a prompt that failed, those that are there.
        """
        try:
            async with self._turn:
                found = await self._keep_all(prompt_id, entry)
        finally:
            await asyncio.to_thread(self._written.discard, prompt_id)
        if found is None:
            return None
        files = tuple(file for file, _ in found)
        rendered = tuple(_rendered(file, output.node, output.slot) for file, output in found)
        record = replace(record_of(entry, prompt_id), files=files)
        return StoredResult(
            record=record, done=RenderSucceeded(files=rendered, values=values(entry))
        )

    async def _keep_all(
        self, prompt_id: str, entry: HistoryEntry
    ) -> list[tuple[PromptFile, WrittenFile]] | None:
        found = []
        left = self._limit
        for output in written(entry):
            file = await self._keep(prompt_id, output.file, left)
            if file is not None:
                left -= file.size
                found.append((file, output))
            elif entry.status.status_str == "success":
                return None
        return found

    async def collect_node(self, prompt_id: str, output: Mapping[str, Any]) -> list[PromptFile]:
        """The same for what one node of a running prompt put out, as far as it is there."""
        async with self._turn:
            found = [await self._keep(prompt_id, file, self._limit) for file in files_of(output)]
        return [file for file in found if file is not None]

    async def _keep(self, prompt_id: str, output: OutputFile, limit: int) -> PromptFile | None:
        """
        Raises:
            RenderFailed: the file is larger than ``limit`` bytes.
        """
        name = placed(output, prompt_id)
        known, mark = self._stored.get(output, (None, None))
        opened = await asyncio.to_thread(self._written.open, output, prompt_id)
        try:
            if (
                known is not None
                and (opened is None or _mark(opened) == mark)
                # Another prompt may have stored it weeks ago.
                and (known.name == name or await self._blobs.renew(known.sha256))
            ):
                return replace(known, name=name)
            if opened is None:
                return None
            mark = _mark(opened)
            if os.fstat(opened.fileno()).st_size > limit:
                raise RenderFailed(f"the render's files are larger than {self._limit} bytes")
            blob = await self._blobs.put_stream(opened, limit)
        finally:
            if opened is not None:
                opened.close()
        media_type = _media_type(output.filename)
        file = PromptFile(name=name, media_type=media_type, size=blob.size, sha256=blob.sha256)
        self._stored[output] = (file, mark)
        return file


def _rendered(file: PromptFile, node: str, slot: str) -> RenderedFile:
    return RenderedFile(
        name=file.name.filename,
        media_type=file.media_type,
        size=file.size,
        sha256=file.sha256,
        node=node,
        slot=slot,
        temporary=file.name.type == "temp",
    )


def _mark(file: BinaryIO) -> _Mark:
    """Another one when the file has been written anew."""
    stat = os.fstat(file.fileno())
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _media_type(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    guessed = _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(name)[0]
    return guessed or "application/octet-stream"
