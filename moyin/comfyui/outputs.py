"""From files in ComfyUI's folders to blobs in the artifact store."""

from __future__ import annotations

import asyncio
import mimetypes
from dataclasses import replace
from pathlib import Path

from moyin.comfyui.folder import ProcessFolder
from moyin.comfyui.port import RenderDone, RenderedFile
from moyin.comfyui.prompts import Memory
from moyin.protocols.comfyui.translate import WrittenFile, values, written
from moyin.protocols.comfyui.wire import HistoryEntry, OutputFile
from moyin.store.blobs import BlobStore

__all__ = ["Outputs"]

_REMEMBERED = 4096
_MEDIA_TYPES = {".webp": "image/webp", ".glb": "model/gltf-binary", ".flac": "audio/flac"}


class Outputs:
    """Stores each file once, and remembers which file was which.

    ComfyUI answers a repeated graph from its cache by naming the files of the prompt that made
    them; by then they are gone from its folder, and found again here. Valid for one process.
    """

    def __init__(self, folder: ProcessFolder, blobs: BlobStore) -> None:
        self._folder = folder
        self._blobs = blobs
        self._stored: Memory[OutputFile, RenderedFile] = Memory(_REMEMBERED)
        # A repeat may name the files of a prompt that is just being stored.
        self._turn = asyncio.Lock()

    async def collect(self, prompt_id: str, entry: HistoryEntry) -> RenderDone | None:
        """The prompt's outputs, now in the store; None when one is neither here nor remembered."""
        async with self._turn:
            found = []
            for output in written(entry):
                file = await self._keep(output)
                if file is None:
                    return None
                found.append(file)
            await asyncio.to_thread(self._folder.discard, prompt_id)
        return RenderDone(files=tuple(found), values=values(entry))

    async def _keep(self, output: WrittenFile) -> RenderedFile | None:
        path = self._folder.locate(output.file)
        if path is None:
            known = self._stored.get(output.file)
            return known and replace(known, node=output.node, slot=output.slot)
        blob = await self._blobs.put_file(path)
        file = RenderedFile(
            name=path.name,
            media_type=_media_type(path),
            size=blob.size,
            sha256=blob.sha256,
            node=output.node,
            slot=output.slot,
            temporary=output.file.type == "temp",
        )
        self._stored[output.file] = file
        return file


def _media_type(path: Path) -> str:
    guessed = _MEDIA_TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    return guessed or "application/octet-stream"
