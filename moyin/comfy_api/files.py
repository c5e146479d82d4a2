"""Files by the names that ComfyUI's clients know them by: uploads, and what renders put out."""

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
from moyin.render.protocol.graph import artifact_ids, artifacts_missing
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.frames import FrameStore
from moyin.store.prompts import PromptStore
from moyin.store.uploads import UploadStore

__all__ = ["FarmFiles", "file_name"]

_TYPES = ("input", "output", "temp")
_ANNOTATED = re.compile(r"(.*?) ?\[(input|output|temp)\]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_RENAMES = 1_000
_MAX_LENGTH = 255
_LISTED = 1_000


def file_name(filename: str, subfolder: str, kind: str) -> ComfyFileName:
    """What a client means by the three; ``name.png [output]`` says its type by itself.

    Raises:
        InvalidRequest: it leads out of its folder, or is none.
    """
    annotated = _ANNOTATED.fullmatch(filename)
    if annotated:
        filename, kind = annotated.group(1, 2)
    if kind not in _TYPES:
        raise InvalidRequest("type must be input, output or temp", field="type")
    path = posixpath.join(subfolder, filename)
    plain = posixpath.normpath(path)
    if (
        not filename
        or filename.endswith("/")
        or path.startswith("/")
        or plain == "."
        or ".." in path.split("/")
        or "\\" in path
        or not path.isprintable()
        or len(path) > _MAX_LENGTH
    ):
        raise InvalidRequest("the file's name must lie in its folder", field="filename")
    folder, _, last = plain.rpartition("/")
    return ComfyFileName(filename=last, subfolder=folder, type=kind)


class FarmFiles:
    """Finds and keeps files, always for their owner."""

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
        """An upload, or an output of one of the owner's renders, also of one that still runs.

        Raises:
            ArtifactNotFound: there is none, or it is somebody else's.
        """
        uploaded = (await self._uploads.find(owner, [name])).get(name)
        if uploaded is not None:
            return uploaded
        output = await self._output(owner, name)
        if output is None:
            raise ArtifactNotFound(f"there is no file {name.path!r}")
        return output

    async def uploaded(self, owner: str, kind: str = "input") -> list[str]:
        """The owner's uploads as graphs name them, the latest first; as many as a menu can show."""
        found = await self._uploads.newest(owner, kind, _LISTED)
        return [name.path.removeprefix(f"{kind}/") for name in found]

    async def named(self, owner: str, texts: Collection[str]) -> Mapping[str, Artifact]:
        """Those of the texts in a graph that are names of the owner's files, and what they name."""
        names: dict[str, ComfyFileName] = {}
        for text in texts:
            try:
                names[text] = file_name(text, "", "input")
            except InvalidRequest:
                continue
        uploaded = await self._uploads.find(owner, set(names.values()))
        found = {}
        for text, name in names.items():
            artifact = uploaded.get(name)
            if artifact is None and name.type != "input":
                artifact = await self._kept_output(owner, name)
            if artifact is not None:
                found[text] = artifact
        return found

    async def referred(self, owner: str, graph: Mapping[str, Any]) -> Mapping[str, Artifact]:
        """The artifacts to which a graph refers by id.

        Raises:
            InputNotFound: there is none, or it is somebody else's.
        """
        found = {}
        for artifact_id in artifact_ids(graph):
            try:
                found[artifact_id] = await self._artifacts.get(owner, artifact_id)
            except ArtifactNotFound:
                raise artifacts_missing(graph, artifact_id) from None
        return found

    async def upload(
        self, owner: str, name: ComfyFileName, artifact: Artifact, *, overwrite: bool
    ) -> ComfyFileName:
        """Give an artifact a name; returns the one that it got.

        As ComfyUI does: a name that is taken gets a number, unless the same content has it.

        Raises:
            InvalidRequest: there are too many files of that name.
        """
        stem, suffix = _split(name.filename)
        for number in range(_MAX_RENAMES):
            tried = replace(name, filename=f"{stem} ({number}){suffix}") if number else name
            holder = await self._uploads.put(owner, tried, artifact, replace=overwrite)
            if holder.sha256 == artifact.sha256:
                return tried
        raise InvalidRequest("there are too many files of this name", field="filename")

    async def record(self, job: Job) -> PromptRecord | None:
        """What ComfyUI's history says of a render; None without one, or when its blob is gone."""
        return (await self.sized_record(job))[0]

    async def sized_record(self, job: Job) -> tuple[PromptRecord | None, int]:
        """The same, and how many bytes it takes."""
        sha256 = job.results[-1].output if job.results else job.record
        if sha256 is None:
            return None, 0
        try:
            kept = await self._blobs.get(sha256)
        except FileNotFoundError:
            return None, 0
        told = from_json(kept).get("record")
        return None if told is None else from_plain(PromptRecord, told), len(kept)

    async def _output(self, owner: str, name: ComfyFileName) -> Artifact | None:
        """Its subfolder begins with the id of the job, whose owner is checked."""
        job_id = name.subfolder.partition("/")[0]
        if not _UUID.fullmatch(job_id):
            return None
        for job in await self._prompts.get(owner, [job_id], hidden=True):
            record = await self.record(job)
            files: tuple[PromptFile, ...] = record.files if record is not None else ()
            file = next((file for file in files if file.name == name), None)
            file = file or await self._frames.file(job_id, name.path)
            if file is not None:
                return replace(file.artifact(), id=_artifact_id(owner, name))
        return None

    async def _kept_output(self, owner: str, name: ComfyFileName) -> Artifact | None:
        """The same with a row of its own, so that a later render may refer to it."""
        output = await self._output(owner, name)
        if output is None or not await self._blobs.renew(output.sha256):
            return None
        await self._artifacts.add(output, owner=owner)
        return output


def _artifact_id(owner: str, name: ComfyFileName) -> str:
    return f"art_{hashlib.sha256(f'{owner}/{name.path}'.encode()).hexdigest()[:32]}"


def _split(filename: str) -> tuple[str, str]:
    suffix = PurePosixPath(filename).suffix
    return filename.removesuffix(suffix), suffix
