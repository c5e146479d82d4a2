"""Defines the interface of a renderer, and its requests, events and results.

``moyin.render.comfyui.renderer`` implements it, ``moyin.testing.renderer`` is a fake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from moyin.domain.prompt import PromptRecord

__all__ = [
    "ExecutionFinished",
    "RenderEvent",
    "RenderProgress",
    "RenderRequest",
    "RenderSucceeded",
    "RenderedFile",
    "Renderer",
    "RendererStatus",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderRequest:
    """A prompt to render.

    Attributes:
        prompt_id: canonical lower-case UUID; repeating it attaches to the same prompt.
        graph: ComfyUI API graph, with input files under the names in ``files``.
        files: sha256 of the blob by the name under which the graph loads it (see
            ``moyin.render.protocol.graph``).
        models: model files that the graph loads, with their sizes in bytes.
        extra_data: further data for nodes, such as the metadata of pictures.
        targets: ids of the output nodes to execute; None: all.
        channel: the stream that receives ComfyUI's messages (`moyin.store.frames`).
    """

    prompt_id: str
    graph: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    channel: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderProgress:
    """The progress of a render: ``value`` of ``max`` nodes are done, including partial ones.

    Attributes:
        node: id of the running node, if any.
    """

    value: float
    max: float
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionFinished:
    """The renderer can take the next prompt, while the files of this one are still being stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedFile:
    """An output file in the artifact store.

    Attributes:
        node: id of the node that wrote it.
        slot: the key in that node's output, such as ``images``.
        temporary: the file is a preview.
    """

    name: str
    media_type: str
    size: int
    sha256: str
    node: str
    slot: str
    temporary: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderSucceeded:
    """The result of a successful render.

    Attributes:
        values: the nodes' outputs other than files, by node and slot.
        repeatable: the nodes declare that the same graph gives the same result.
    """

    files: tuple[RenderedFile, ...]
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    repeatable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderResult:
    """The remembered result of a successful prompt. ``record`` is ComfyUI's history entry."""

    done: RenderSucceeded
    record: PromptRecord | None = None


RenderEvent: TypeAlias = RenderProgress | ExecutionFinished | PromptRecord | RenderSucceeded


@dataclass(frozen=True, kw_only=True, slots=True)
class RendererStatus:
    """The state of a renderer.

    Attributes:
        ready: the renderer accepts prompts.
        pid: the id of the ComfyUI process.
        running: ids of unfinished prompts.
        known: ids of unfinished prompts, and of finished ones whose results are remembered.
        error: why the renderer is not ready, for an operator.
        models: model files in memory, the largest first.
        memory: bytes of the card's memory that it may use; None without a card.
    """

    ready: bool
    pid: int | None = None
    running: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    error: str | None = None
    models: tuple[str, ...] = ()
    memory: int | None = None


class Renderer(Protocol):
    """Renders one prompt at a time."""

    def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        """Render a prompt and yield its events.

        `RenderProgress` comes at most four times a second. Then come `ExecutionFinished`,
        `PromptRecord` and `RenderSucceeded`, which is the last. `PromptRecord` also comes before an
        error that a node raised.

        Closing the generator leaves the prompt running. Another call attaches to it.

        Raises:
            InvalidGraph: ComfyUI refuses the graph.
            OutOfMemory: the card's memory does not suffice, even after it was freed.
            RenderFailed: a node raised an error, the prompt was interrupted or it made no progress.
            WorkerLost: the process died; a retry may succeed.
            ServiceUnavailable: the process does not start.
        """
        ...

    async def prepare(self, request: RenderRequest) -> None:
        """Fetch the files of a prompt that may be rendered next, so that it can start at once.

        Raises:
            StepFailed: an input file no longer exists.
        """

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """Interrupt the prompt, or remove it from the queue; do nothing if it is unknown.

        Returns:
            ComfyUI's history entry, once the running node has stopped; None if the prompt did not
            start, or the node does not stop soon.
        """

    async def get(self, path: str) -> bytes | None:
        """Return the body that ComfyUI serves at ``path``; None if it has nothing there.

        Raises:
            ServiceUnavailable: the process is not running.
        """
        ...

    async def results(self) -> Mapping[str, RenderResult]:
        """Return the remembered results of successful prompts, by their ids."""
        ...

    async def status(self) -> RendererStatus: ...
