"""Stores the output files of prompts as blobs in the artifact store."""

from __future__ import annotations

import asyncio
import errno
import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from moyin.domain.prompt import PromptFile, PromptRecord
from moyin.domain.renderer import RenderedFile, RenderSucceeded
from moyin.errors import RenderFailed
from moyin.render.comfyui.output_names import (
    MAX_FILES,
    check_outputs,
    is_name_allowed,
    is_output_allowed,
)
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.response import (
    NodeOutputFile,
    collect_values,
    find_files,
    has_succeeded,
    list_output_files,
    make_unique_name,
    to_prompt_record,
)
from moyin.render.protocol.wire import HistoryEntry, OutputFile
from moyin.store.blobs import BlobStore
from moyin.system.bounded import BoundedDict

_MAX_STORED = 4096
_MAX_EARLY_PROMPTS = 256
_Version: TypeAlias = tuple[int, int, int]
# Media types that Python does not know, or reads from files of the machine.
_MEDIA_TYPES = {
    ".avif": "image/avif", ".webp": "image/webp",
    ".mkv": "video/x-matroska", ".mov": "video/quicktime", ".mp4": "video/mp4", ".webm": "video/webm",
    ".aac": "audio/aac", ".flac": "audio/flac", ".m4a": "audio/mp4", ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav",
    ".glb": "model/gltf-binary", ".gltf": "model/gltf+json", ".obj": "model/obj", ".ply": "model/ply",
    ".stl": "model/stl",
    ".csv": "text/csv", ".json": "application/json", ".md": "text/markdown", ".txt": "text/plain",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResult:
    """The result of a prompt whose files are in the artifact store.

    Attributes:
        record: ComfyUI's history of the prompt.
        done: the final event of the render, with its files.
    """

    record: PromptRecord
    done: RenderSucceeded


class OutputStore:
    """Stores the output files of one ComfyUI process, and remembers the stored files.

    For a repeated graph, ComfyUI's cache returns the names of files that an earlier prompt of the
    same tenant wrote. These files have been moved away, so the store remembers their digests by
    tenant and name. If a file with the name exists again, that file is stored, because some nodes
    always write to the same name. A node may report any name, so a name alone leads to no file of
    another tenant.

    Args:
        max_bytes: largest total size in bytes of a prompt's output files.
    """

    def __init__(self, written_files: WrittenFiles, blobs: BlobStore, max_bytes: int) -> None:
        self._written = written_files
        self._blobs = blobs
        self._max_bytes = max_bytes
        # The stored files, each with the version of the file that was read.
        self._stored: BoundedDict[tuple[str, OutputFile], tuple[PromptFile, _Version]]
        self._stored = BoundedDict(_MAX_STORED)
        # How many bytes were stored for each running prompt before its end.
        self._early_bytes: BoundedDict[str, int] = BoundedDict(_MAX_EARLY_PROMPTS)
        # Serialises storing, because a repeated graph may name files that are just being stored.
        self._store_lock = asyncio.Lock()

    async def collect(self, prompt_id: str, entry: HistoryEntry) -> StoredResult | None:
        """Store the output files of a finished prompt and return its result.

        Missing files of a failed prompt are left out.

        Returns:
            The result, or None if a file of a successful prompt does not exist and is not stored.

        Raises:
            RenderFailed: The files are too many or too large, or a name is not allowed.
        """
        try:
            async with self._store_lock:
                stored_files = await self._store_files(prompt_id, entry)
        finally:
            await asyncio.to_thread(self._written.discard_files, prompt_id)
        if stored_files is None:
            return None
        files = tuple(file for file, _ in stored_files)
        rendered_files = tuple(
            _to_rendered_file(file, output.node, output.slot) for file, output in stored_files
        )
        record = replace(to_prompt_record(entry, prompt_id), files=files)
        final_event = RenderSucceeded(files=rendered_files, values=collect_values(entry))
        return StoredResult(record=record, done=final_event)

    async def _store_files(
        self, prompt_id: str, entry: HistoryEntry
    ) -> list[tuple[PromptFile, NodeOutputFile]] | None:
        stored_files = []
        remaining_bytes = self._max_bytes
        outputs = list_output_files(entry)
        if has_succeeded(entry):
            check_outputs(outputs)
        else:
            # The error of the node is reported, and not what is wrong with its files.
            outputs = list(filter(is_output_allowed, outputs))[:MAX_FILES]
        for output in outputs:
            file = await self._store_file(prompt_id, output.file, remaining_bytes)
            if file is not None:
                remaining_bytes -= file.size
                stored_files.append((file, output))
            elif has_succeeded(entry):
                return None
        return stored_files

    async def collect_node_output(
        self, prompt_id: str, output: Mapping[str, Any]
    ) -> list[PromptFile]:
        """Store the output files of one node of a running prompt.

        Missing files and those that exceed a limit are left out. `collect` reports them.
        """
        stored_files = []
        async with self._store_lock:
            for file in islice(filter(is_name_allowed, find_files(output)), MAX_FILES):
                early_bytes = self._early_bytes.get(prompt_id, 0)
                try:
                    stored_file = await self._store_file(
                        prompt_id, file, self._max_bytes - early_bytes
                    )
                except RenderFailed:
                    continue
                if stored_file is not None:
                    self._early_bytes[prompt_id] = early_bytes + stored_file.size
                    stored_files.append(stored_file)
        return stored_files

    async def _store_file(
        self, prompt_id: str, output: OutputFile, max_bytes: int
    ) -> PromptFile | None:
        """Store a new version of a file; return None if the file does not exist.

        Raises `RenderFailed` if the file has more than ``max_bytes``.
        """
        name = make_unique_name(output, prompt_id)
        key = self._written.get_tenant(prompt_id), output
        known_file, version = self._stored.get(key, (None, None))
        file = await asyncio.to_thread(self._written.open_file, output, prompt_id)
        try:
            if (
                known_file is not None
                and (file is None or _get_version(file) == version)
                # The blob may have been pruned since an earlier prompt stored the file, perhaps
                # weeks ago.
                and (known_file.name == name or await self._blobs.renew(known_file.sha256))
            ):
                return replace(known_file, name=name)
            if file is None:
                return None
            version = _get_version(file)
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise self._make_size_error()
            try:
                blob = await self._blobs.put_stream(file, max_bytes)
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                # A thread of ComfyUI still writes to the file.
                raise self._make_size_error() from None
        finally:
            if file is not None:
                file.close()
        media_type = _guess_media_type(output.filename)
        stored_file = PromptFile(
            name=name, media_type=media_type, size=blob.size, sha256=blob.sha256
        )
        self._stored[key] = (stored_file, version)
        return stored_file

    def _make_size_error(self) -> RenderFailed:
        return RenderFailed(
            f"the render's output files exceed the limit of {self._max_bytes:,} bytes: write fewer "
            "or smaller files"
        )


def _to_rendered_file(file: PromptFile, node: str, slot: str) -> RenderedFile:
    return RenderedFile(
        name=file.name.filename,
        media_type=file.media_type,
        size=file.size,
        sha256=file.sha256,
        node=node,
        slot=slot,
        temporary=file.name.type == "temp",
    )


def _get_version(file: BinaryIO) -> _Version:
    """Return a file's modification time, size and inode; at least one differs in a new version."""
    stat = os.fstat(file.fileno())
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _guess_media_type(name: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    guessed_type = _MEDIA_TYPES.get(suffix) or mimetypes.guess_type(name)[0]
    return guessed_type or "application/octet-stream"
