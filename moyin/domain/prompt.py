"""Defines renders as clients of ComfyUI's API see them: prompts, files and history records."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.artifact import Artifact

_PROMPT_IDS = uuid.UUID("6f0d2c1e-52f3-4a55-9d55-0a4f9f3a6c11")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyPrompt:
    """The options of a prompt that a client submits through ComfyUI's API, a part of `JobSpec`.

    Attributes:
        client_id: the client's id of the WebSocket that receives the events.
        number: the client's number for the prompt, which is only returned to the client.
        front: True if the prompt goes before the caller's other prompts.
        extra_data: the client's data for nodes; ``extra_pnginfo`` is written into pictures.
        targets: ids of the output nodes to execute; None means all.
        outputs: ids of the output nodes that will be executed, as ComfyUI's validation reported.
        files: ids of uploaded artifacts, by the file names in the graph.
    """

    client_id: str | None = None
    number: float | None = None
    front: bool = False
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    outputs: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyFileName:
    """The name of a file for clients of ComfyUI's API, which is unique in the whole render farm.

    Attributes:
        type: ComfyUI's folder: ``output``, ``temp`` or ``input``.
        subfolder: the path within the folder; for outputs it begins with the job's id.
    """

    filename: str
    subfolder: str = ""
    type: str = "output"

    @property
    def path(self) -> str:
        """The folder, subfolder and file name, joined by ``/``."""
        return "/".join(part for part in (self.type, self.subfolder, self.filename) if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFile:
    """An output file of a prompt, whose content is in the artifact store."""

    name: ComfyFileName
    media_type: str
    size: int
    sha256: str

    def to_artifact(self) -> Artifact:
        return Artifact(
            id="",
            name=self.name.filename,
            media_type=self.media_type,
            size=self.size,
            sha256=self.sha256,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """The entry of an executed prompt in ComfyUI's history.

    Attributes:
        outputs: ComfyUI's outputs by node and output name, in which each file is named by its
            `ComfyFileName`.
        meta: ComfyUI's metadata by node.
        status: ``success`` or ``error``.
        messages: pairs of an event's name and its data, in order.
    """

    outputs: Mapping[str, Any]
    meta: Mapping[str, Any]
    status: str
    completed: bool
    messages: tuple[tuple[str, Mapping[str, Any]], ...]
    files: tuple[PromptFile, ...] = ()


def derive_job_id(owner: str, prompt_id: str) -> str:
    """Return the id of the job whose prompt has an id that a client of the tenant chose.

    Ids of jobs are unique in the whole farm. Chosen ids are only unique for their tenant, so that no
    tenant can find out, or take, the ids of others.
    """
    return str(uuid.uuid5(_PROMPT_IDS, f"{owner}\0{prompt_id}"))


def build_channel_name(owner: str, client_id: str) -> str:
    """Return the name of the Valkey stream with the events for a WebSocket client of ComfyUI's API."""
    return hashlib.sha256("\0".join((owner, client_id)).encode()).hexdigest()
