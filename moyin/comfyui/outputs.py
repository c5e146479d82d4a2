"""From files in ComfyUI's folders to blobs in the artifact store."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from moyin.comfyui.folder import ProcessFolder
from moyin.comfyui.port import RenderDone, RenderedFile
from moyin.comfyui.prompts import Memory
from moyin.domain.prompt import PromptFile, PromptRecord
from moyin.protocols.comfyui.translate import files_of, placed, record_of, values, written
from moyin.protocols.comfyui.wire import HistoryEntry, OutputFile
from moyin.store.blobs import BlobStore

__all__ = ["Kept", "Outputs"]

_REMEMBERED = 4096
_Mark: TypeAlias = tuple[int, int, int]
_MEDIA_TYPES = {".webp": "image/webp", ".glb": "model/gltf-binary", ".flac": "audio/flac"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A prompt's end, with its files in the store."""

    record: PromptRecord
    done: RenderDone


class Outputs:
    """Stores each file once, and remembers which file was which.

    ComfyUI answers a repeated graph from its cache by naming the files of the prompt that made
    them; by then they are gone from its folder, and found again here. What is there is believed
    before what was: a node may give its files the same names every time. And what was may have been
    pruned. Valid for one process.
    """

    def __init__(self, folder: ProcessFolder, blobs: BlobStore) -> None:
        self._folder = folder
        self._blobs = blobs
        # With what the file system said of the file that was stored.
        self._stored: Memory[OutputFile, tuple[PromptFile, _Mark]] = Memory(_REMEMBERED)
        # A repeat may name the files of a prompt that is just being stored.
        self._turn = asyncio.Lock()

    async def collect(self, prompt_id: str, entry: HistoryEntry) -> Kept | None:
        """The prompt's outputs, now in the store; None when one is neither here nor remembered.

        Of a prompt that failed, those that are there.
        """
        succeeded = entry.status.status_str == "success"
        async with self._turn:
            files, rendered = [], []
            for output in written(entry):
                file = await self._keep(prompt_id, output.file)
                if file is not None:
                    files.append(file)
                    rendered.append(_rendered(file, output.node, output.slot))
                elif succeeded:
                    return None
            await asyncio.to_thread(self._folder.discard, prompt_id)
        record = replace(record_of(entry, prompt_id), files=tuple(files))
        return Kept(record=record, done=RenderDone(files=tuple(rendered), values=values(entry)))

    async def collect_node(self, prompt_id: str, output: Mapping[str, Any]) -> list[PromptFile]:
        """The same for what one node of a running prompt put out, as far as it is there."""
        async with self._turn:
            found = [await self._keep(prompt_id, file) for file in files_of(output)]
        return [file for file in found if file is not None]

    async def _keep(self, prompt_id: str, output: OutputFile) -> PromptFile | None:
        name = placed(output, prompt_id)
        known, mark = self._stored.get(output, (None, None))
        path = self._folder.locate(output)
        if (
            known is not None
            and (path is None or _mark(path) == mark)
            # Another prompt may have stored it weeks ago.
            and (known.name == name or await self._blobs.renew(known.sha256))
        ):
            return replace(known, name=name)
        if path is None:
            return None
        mark = _mark(path)
        blob = await self._blobs.put_file(path)
        file = PromptFile(
            name=name, media_type=_media_type(path), size=blob.size, sha256=blob.sha256
        )
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


def _mark(path: Path) -> _Mark:
    """Another one when the file has been written anew."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _media_type(path: Path) -> str:
    guessed = _MEDIA_TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    return guessed or "application/octet-stream"
