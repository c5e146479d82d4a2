"""Holds renders as ComfyUI's clients see them: prompts, files and history records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.artifact import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyPrompt:
    """The options of a render from ComfyUI's API. They are a part of the job's spec.

    Attributes:
        client_id: the id of the WebSocket that receives the events.
        number: the client's place in the queue, which is only returned to it.
        front: render before the caller's other renders.
        extra_data: the client's extra data; ``extra_pnginfo`` goes into the pictures.
        targets: ids of the output nodes to execute; None: all.
        outputs: ids of the output nodes that ComfyUI's validation will execute.
        files: artifact ids of uploads, by the name under which the graph loads them.
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
    """The place of a file as ComfyUI's clients see it. It is unique in the farm.

    Attributes:
        type: the folder: ``output``, ``temp`` or ``input``.
        subfolder: the path below the folder, with ``/``; for outputs it begins with the job's id.
    """

    filename: str
    subfolder: str = ""
    type: str = "output"

    @property
    def path(self) -> str:
        """The place as a single string, for look-ups."""
        return "/".join(part for part in (self.type, self.subfolder, self.filename) if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFile:
    """An output file in the artifact store."""

    name: ComfyFileName
    media_type: str
    size: int
    sha256: str

    def artifact(self) -> Artifact:
        return Artifact(
            id="",
            name=self.name.filename,
            media_type=self.media_type,
            size=self.size,
            sha256=self.sha256,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """The record of an execution in ComfyUI's history, with files under the farm's names.

    Attributes:
        outputs: ComfyUI's outputs by node and slot.
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


def channel_name(owner: str, client_id: str) -> str:
    """Return the name of the stream that carries the events of a client's prompts."""
    return hashlib.sha256("\0".join((owner, client_id)).encode()).hexdigest()
