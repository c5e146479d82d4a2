"""Renders as ComfyUI's clients know them: what they sent, and what the history says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moyin.domain.artifact import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyPrompt:
    """How a client of ComfyUI's API asked for a render; a part of the job's spec.

    Attributes:
        client_id: of the WebSocket that wants the events.
        number: the client's own place in the queue, which it gets back; it orders nothing here.
        front: ahead of the caller's other renders.
        extra_data: of the client; ``extra_pnginfo`` goes into the pictures.
        targets: output nodes that shall be executed; None: all.
        outputs: those that will be, as ComfyUI said when it validated the graph.
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
    """Where ComfyUI's clients believe a file to lie; in the farm, no two files share one.

    Attributes:
        type: the folder: ``output``, ``temp`` or ``input``.
        subfolder: below it, with ``/``; of outputs it begins with the job's id.
    """

    filename: str
    subfolder: str = ""
    type: str = "output"

    @property
    def path(self) -> str:
        """As one text, for look-ups."""
        return "/".join(part for part in (self.type, self.subfolder, self.filename) if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFile:
    """An output file, in the artifact store."""

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
    """What ComfyUI's history says of one execution, with files under the farm's names.

    Attributes:
        outputs: by node and slot, as ComfyUI has it; ``meta`` by node.
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
    """The name of the stream on which a client of an owner is told of its prompts."""
    return hashlib.sha256("\0".join((owner, client_id)).encode()).hexdigest()
