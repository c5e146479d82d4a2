"""Finds and stores files by ComfyUI's names: uploads and the outputs of renders."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pydantic_core import from_json

from moyin.domain.artifact import Artifact
from moyin.domain.job import Job
from moyin.domain.prompt import ComfyFileName, PromptFile, PromptRecord
from moyin.domain.serialization import from_plain
from moyin.errors import ArtifactNotFound, InvalidRequest
from moyin.render.protocol.graph import find_artifact_ids, make_missing_error
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.frames import FrameStore
from moyin.store.prompts import PromptStore
from moyin.store.uploads import UploadStore

__all__ = ["FarmFiles", "file_name"]

_TYPES = ("input", "output", "temp")
_ANNOTATED_NAME = re.compile(r"(.*?) ?\[(input|output|temp)\]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_RENAMES = 1_000
_MAX_LENGTH = 255
_MAX_LISTED = 1_000


def file_name(filename: str, subfolder: str, kind: str) -> ComfyFileName:
    """Parse a client's file name; ``name.png [output]`` overrides ``kind``.

    Raises:
        InvalidRequest: the name is invalid or leads out of its folder.
    """
    annotated = _ANNOTATED_NAME.fullmatch(filename)
    if annotated:
        filename, kind = annotated.group(1, 2)
    if kind not in _TYPES:
        raise InvalidRequest("type must be input, output or temp", field="type")
    path = posixpath.join(subfolder, filename)
    normalized = posixpath.normpath(path)
    if (
        not filename
        or filename.endswith("/")
        or path.startswith("/")
        or normalized == "."
        or ".." in path.split("/")
        or "\\" in path
        or not path.isprintable()
        or len(path) > _MAX_LENGTH
    ):
        raise InvalidRequest(
            f"the file name must be a relative path without .. or \\, up to {_MAX_LENGTH} characters",
            field="filename",
        )
    folder, _, last = normalized.rpartition("/")
    return ComfyFileName(filename=last, subfolder=folder, type=kind)


class FarmFiles:
    """Finds and stores files, always for their owner."""

    def __init__(
        self,
        *,
        uploads: UploadStore,
        artifacts: ArtifactStore,
        prompts: PromptStore,
        blobs: BlobStore,
        frames: FrameStore,
    ) -> None:
        self._uploads = uploads
        self._artifacts = artifacts
        self._prompts = prompts
        self._blobs = blobs
        self._frames = frames

    async def find(self, owner: str, name: ComfyFileName) -> Artifact:
        """Return an upload or an output of the owner's renders, including running ones.

        Raises:
            ArtifactNotFound: the owner has no such file.
        """
        upload = (await self._uploads.find(owner, [name])).get(name)
        if upload is not None:
            return upload
        output = await self._find_output(owner, name)
        if output is None:
            raise ArtifactNotFound(f"you have no file {name.path!r}")
        return output

    async def list_uploads(self, owner: str, kind: str = "input") -> list[str]:
        """Return the owner's newest uploads, as graphs name them, newest first."""
        names = await self._uploads.list_newest(owner, kind, _MAX_LISTED)
        return [name.path.removeprefix(f"{kind}/") for name in names]

    async def find_named(self, owner: str, texts: Collection[str]) -> Mapping[str, Artifact]:
        """Return the owner's files among the texts of a graph, by text."""
        names: dict[str, ComfyFileName] = {}
        for text in texts:
            try:
                names[text] = file_name(text, "", "input")
            except InvalidRequest:
                continue
        uploads = await self._uploads.find(owner, set(names.values()))
        files = {}
        for text, name in names.items():
            artifact = uploads.get(name)
            if artifact is None and name.type != "input":
                artifact = await self._save_output(owner, name)
            if artifact is not None:
                files[text] = artifact
        return files

    async def find_referenced(self, owner: str, graph: Mapping[str, Any]) -> Mapping[str, Artifact]:
        """Return the artifacts that a graph references, by id.

        Raises:
            InputNotFound: the owner has no such artifact.
        """
        artifacts = {}
        for artifact_id in find_artifact_ids(graph):
            try:
                artifacts[artifact_id] = await self._artifacts.get(owner, artifact_id)
            except ArtifactNotFound:
                raise make_missing_error(graph, artifact_id) from None
        return artifacts

    async def add_upload(
        self, owner: str, name: ComfyFileName, artifact: Artifact, *, overwrite: bool
    ) -> ComfyFileName:
        """Store an artifact under a name, and return the name that it got.

        Like ComfyUI, append a number if the name is taken by other content.

        Raises:
            InvalidRequest: too many numbered names are taken.
        """
        stem, suffix = _split_suffix(name.filename)
        for number in range(_MAX_RENAMES):
            candidate = replace(name, filename=f"{stem} ({number}){suffix}") if number else name
            stored = await self._uploads.put(owner, candidate, artifact, replace=overwrite)
            if stored.sha256 == artifact.sha256:
                return candidate
        raise InvalidRequest("too many files have this name: choose another", field="filename")

    async def read_record(self, job: Job) -> PromptRecord | None:
        """Return ComfyUI's history entry of a render; None if there is none or its blob is gone."""
        return (await self.read_record_with_size(job))[0]

    async def read_record_with_size(self, job: Job) -> tuple[PromptRecord | None, int]:
        """Return the render's history entry like `read_record`, and its size in bytes."""
        sha256 = job.results[-1].output if job.results else job.record
        if sha256 is None:
            return None, 0
        try:
            content = await self._blobs.get(sha256)
        except FileNotFoundError:
            return None, 0
        record = from_json(content).get("record")
        return None if record is None else from_plain(PromptRecord, record), len(content)

    async def _find_output(self, owner: str, name: ComfyFileName) -> Artifact | None:
        """Find an output of the owner's job, whose id begins the file's subfolder."""
        job_id = name.subfolder.partition("/")[0]
        if not _UUID.fullmatch(job_id):
            return None
        for job in await self._prompts.get(owner, [job_id], hidden=True):
            record = await self.read_record(job)
            files: tuple[PromptFile, ...] = record.files if record is not None else ()
            file = next((file for file in files if file.name == name), None)
            file = file or await self._frames.find_file(job_id, name.path)
            if file is not None:
                return replace(file.to_artifact(), id=_artifact_id(owner, name))
        return None

    async def _save_output(self, owner: str, name: ComfyFileName) -> Artifact | None:
        """Find an output and store its artifact row, so that a later render may reference it."""
        output = await self._find_output(owner, name)
        if output is None or not await self._blobs.renew(output.sha256):
            return None
        await self._artifacts.add(output, owner=owner)
        return output


def _artifact_id(owner: str, name: ComfyFileName) -> str:
    return f"art_{hashlib.sha256(f'{owner}/{name.path}'.encode()).hexdigest()[:32]}"


def _split_suffix(filename: str) -> tuple[str, str]:
    suffix = PurePosixPath(filename).suffix
    return filename.removesuffix(suffix), suffix
