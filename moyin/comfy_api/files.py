"""Finds and stores uploads and the outputs of renders by the names that ComfyUI uses."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pydantic_core import from_json

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import Job
from moyin.domain.prompt import ComfyFileName, PromptFile, PromptRecord
from moyin.domain.serialization import from_plain
from moyin.errors import ArtifactNotFound, InvalidRequest
from moyin.render.protocol.graph import find_artifact_ids, make_missing_error
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.comfy_file_names import UploadStore
from moyin.store.frames import FrameStore
from moyin.store.prompts import PromptStore, build_submitter_condition

_TYPES = ("input", "output", "temp")
_ANNOTATED_NAME = re.compile(r"(.*?) ?\[(input|output|temp)\]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_RENAMES = 1_000
_MAX_LENGTH = 255
_MAX_LISTED = 1_000


def parse_file_name(filename: str, subfolder: str, kind: str) -> ComfyFileName:
    """Parse a client's file name. A type in the name (``a.png [output]``) overrides ``kind``.

    Args:
        kind: ``input``, ``output`` or ``temp``.

    Raises:
        InvalidRequest: ``kind`` is none of these, or the name is invalid or leads out of its
            folder.
    """
    annotation = _ANNOTATED_NAME.fullmatch(filename)
    if annotation:
        filename, kind = annotation.group(1, 2)
    if kind not in _TYPES:
        raise InvalidRequest("type must be input, output or temp", field="type")
    path = posixpath.join(subfolder, filename)
    normalized_path = posixpath.normpath(path)
    if (
        not filename
        or filename.endswith("/")
        or path.startswith("/")
        or normalized_path == "."
        or ".." in path.split("/")
        or "\\" in path
        or not path.isprintable()
        or len(path) > _MAX_LENGTH
    ):
        raise InvalidRequest(
            f"the file name must be a relative path of printable characters without .. or \\, with "
            f"at most {_MAX_LENGTH} characters",
            field="filename",
        )
    folder, _, last_segment = normalized_path.rpartition("/")
    return ComfyFileName(filename=last_segment, subfolder=folder, type=kind)


def parse_record(content: bytes) -> PromptRecord | None:
    """Return ComfyUI's history entry in a blob of `ComfyFiles.read_record_content`, if any."""
    record = from_json(content).get("record") if content else None
    return None if record is None else from_plain(PromptRecord, record)


@dataclass(kw_only=True, eq=False)
class ComfyFiles:
    """Finds and stores the files of one tenant at a time, by ComfyUI's names."""

    uploads: UploadStore
    artifacts: ArtifactStore
    prompts: PromptStore
    blobs: BlobStore
    frames: FrameStore

    async def find_file(
        self, caller: Identity, name: ComfyFileName, client_id: str | None = None
    ) -> Artifact:
        """Return the tenant's upload with this name, or else an output of the tenant's renders.

        With a subfolder, the outputs of ended and running renders are searched. Without one, the
        newest output with this name of a succeeded job is returned. Outputs of the ComfyUI client
        ``client_id`` are preferred; if it is None, those of the caller.

        Raises:
            ArtifactNotFound: the tenant has no file with this name.
        """
        owner = caller.owner
        upload = (await self.uploads.find(owner, [name])).get(name)
        if upload is not None:
            return upload
        if not name.subfolder and name.type != "input":
            preferred_condition = build_submitter_condition(caller, client_id)
            output = await self.artifacts.find_newest_output(
                owner, name.filename, preferred_condition
            )
        else:
            output = await self._find_output(owner, name)
        if output is None:
            raise ArtifactNotFound(f"you have no upload or output with the name {name.path!r}")
        return output

    async def list_uploads(self, owner: str, kind: str = "input") -> list[str]:
        """Return the names of the owner's newest uploads, newest first, relative to their folder.

        Args:
            kind: the folder that was uploaded to: ``input``, ``output`` or ``temp``.
        """
        names = await self.uploads.list_newest(owner, kind, _MAX_LISTED)
        return [name.path.removeprefix(f"{kind}/") for name in names]

    async def find_in_texts(self, owner: str, texts: Collection[str]) -> Mapping[str, Artifact]:
        """Return the owner's files that are named in ``texts``, by the text that names them.

        Texts that name no file are left out.
        """
        names: dict[str, ComfyFileName] = {}
        for text in texts:
            try:
                names[text] = parse_file_name(text, "", "input")
            except InvalidRequest:
                continue
        uploads = await self.uploads.find(owner, set(names.values()))
        files = {}
        for text, name in names.items():
            artifact = uploads.get(name)
            if artifact is None and name.type != "input":
                artifact = await self._save_output(owner, name)
            if artifact is not None:
                files[text] = artifact
        return files

    async def find_referenced_artifacts(
        self, owner: str, graph: Mapping[str, Any]
    ) -> Mapping[str, Artifact]:
        """Return the artifacts that a graph refers to, as a mapping by artifact id.

        Raises:
            InputNotFound: the graph refers to an artifact that the owner does not have.
        """
        artifacts = {}
        for artifact_id in find_artifact_ids(graph):
            try:
                artifacts[artifact_id] = await self.artifacts.get(owner, artifact_id)
            except ArtifactNotFound:
                raise make_missing_error(graph, artifact_id) from None
        return artifacts

    async def add_upload(
        self, owner: str, name: ComfyFileName, artifact: Artifact, *, overwrite: bool
    ) -> tuple[ComfyFileName, Artifact]:
        """Store ``artifact`` under ``name``; return the final name and the artifact that has it.

        Like ComfyUI, append a number to the name if a file with other content has this name, unless
        ``overwrite`` is True.

        Raises:
            InvalidRequest: a thousand numbered names are in use.
        """
        stem, suffix = _split_suffix(name.filename)
        for number in range(_MAX_RENAMES):
            candidate_name = (
                replace(name, filename=f"{stem} ({number}){suffix}") if number else name
            )
            stored_artifact = await self.uploads.put(
                owner, candidate_name, artifact, may_replace=overwrite
            )
            if stored_artifact.sha256 == artifact.sha256:
                return candidate_name, stored_artifact
        raise InvalidRequest(
            f"too many files are named {name.filename!r}: choose another name", field="filename"
        )

    async def read_record(self, job: Job) -> PromptRecord | None:
        """Return ComfyUI's history entry of a render, or None if the entry is not stored."""
        return parse_record(await self.read_record_content(job))

    async def read_record_content(self, job: Job) -> bytes:
        """Return the blob with ComfyUI's history entry of a render; empty if it is not stored."""
        sha256 = job.results[-1].output if job.results else job.record
        if sha256 is None:
            return b""
        try:
            return await self.blobs.get(sha256)
        except FileNotFoundError:
            return b""

    async def _find_output(self, owner: str, name: ComfyFileName) -> Artifact | None:
        """Find an output by its name, whose subfolder begins with the id of the render's job.

        Returns None if the tenant has no such output.
        """
        job_id = name.subfolder.partition("/")[0]
        if not _UUID.fullmatch(job_id):
            return None
        for job in await self.prompts.get(owner, [job_id], with_hidden=True):
            # Clients name files by the prompt's id, which may be another one than the job's.
            name = replace(name, subfolder=f"{job.id}{name.subfolder[len(job_id) :]}")
            record = await self.read_record(job)
            files: tuple[PromptFile, ...] = record.files if record is not None else ()
            file = next((file for file in files if file.name == name), None)
            file = file or await self.frames.find_file(job.id, name.path)
            if file is not None:
                return replace(file.to_artifact(), id=_derive_output_artifact_id(owner, name))
        return None

    async def _save_output(self, owner: str, name: ComfyFileName) -> Artifact | None:
        """Find an output, and add it to the table of artifacts, so that graphs can refer to it.

        Returns None if there is no such output or its content was deleted.
        """
        output = await self._find_output(owner, name)
        if output is None or not await self.blobs.renew(output.sha256):
            return None
        await self.artifacts.add_or_restore(output, owner=owner)
        return output


def _derive_output_artifact_id(owner: str, name: ComfyFileName) -> str:
    return f"art_{hashlib.sha256(f'{owner}/{name.path}'.encode()).hexdigest()[:32]}"


def _split_suffix(filename: str) -> tuple[str, str]:
    suffix = PurePosixPath(filename).suffix
    return filename.removesuffix(suffix), suffix
