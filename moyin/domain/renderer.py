"""Defines the interface of a renderer (one ComfyUI process), and its requests, events and results.

``moyin.render.comfyui.renderer`` implements the interface; ``moyin.testing.renderer`` is a fake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from moyin.domain.prompt import PromptRecord
from moyin.domain.render_run import RenderAccount, RenderRun


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderRequest:
    """A prompt to render.

    Attributes:
        prompt_id: a lower-case UUID; a second request with the same id attaches to the prompt.
        graph: the graph in ComfyUI's API format.
        files: the sha256 of each input file's blob, by the file name in the graph.
        models: the sizes in bytes of the model files that the graph loads, by name.
        extra_data: further data for nodes, such as the metadata of pictures.
        targets: ids of the output nodes to execute; None means all.
        channel: the Valkey stream that receives ComfyUI's messages (`moyin.store.frames`).
        account: the account that pays for the render; None if the pool has no price.
        job_id: the job whose subscribers may see previews; empty if previews must not be published.
        step: the index of the job's step.
    """

    prompt_id: str
    graph: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, int] = field(default_factory=dict)
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    channel: str | None = None
    account: RenderAccount | None = None
    job_id: str = ""
    step: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderProgress:
    """The progress of a render: ``value`` of ``max`` nodes are done; running ones count in part."""

    value: float
    max: float
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionStarted:
    """The event that ComfyUI has received the prompt, after its input files were downloaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionFinished:
    """The event after the last node: the renderer is free, although files are still being stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedFile:
    """An output file of a render, whose content is in the artifact store.

    Attributes:
        node: the id of the node that wrote the file.
        slot: the key of the file in the node's output, such as ``images``.
        temporary: True if the file is a preview.
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
        values: the nodes' outputs other than files, by node and output name.
        repeatable: True if all nodes declare that the same graph gives the same result.
    """

    files: tuple[RenderedFile, ...]
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    repeatable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderResult:
    """The result of a successful prompt, its entry in ComfyUI's history, and its runs."""

    done: RenderSucceeded
    record: PromptRecord | None = None
    runs: tuple[RenderRun, ...] = ()


RenderEvent: TypeAlias = (
    ExecutionStarted
    | RenderProgress
    | ExecutionFinished
    | RenderRun
    | PromptRecord
    | RenderSucceeded
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RendererStatus:
    """The state of a renderer.

    Attributes:
        ready: True if the renderer accepts prompts.
        pid: the id of the ComfyUI process.
        running: ids of unfinished prompts.
        known: ids of unfinished prompts that were not cancelled, and of finished prompts with a
            remembered result.
        error: the reason why the renderer is not ready, for an operator.
        models: the model files in memory, the largest first.
        memory: the bytes of the graphics card that ComfyUI may use; None without a card.
        runs: the priced runs that have not ended, or that were not confirmed by `Renderer.settle`.
        tenant: anonymous id of the only tenant whose prompts the process executes, or "".
        tenant_changes: how often the process was restarted for another tenant.
        start_seconds: how long the latest start took, from the end of the process before it; None
            before the first start.
    """

    ready: bool
    pid: int | None = None
    running: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    error: str | None = None
    models: tuple[str, ...] = ()
    memory: int | None = None
    runs: tuple[RenderRun, ...] = ()
    tenant: str = ""
    tenant_changes: int = 0
    start_seconds: float | None = None


class Renderer(Protocol):
    """The interface of a renderer, which renders one prompt at a time."""

    def render(self, request: RenderRequest) -> AsyncGenerator[RenderEvent, None]:
        """Render a prompt and yield its events.

        The events are `ExecutionStarted`, `RenderProgress` (at most four a second),
        `ExecutionFinished`, each `RenderRun` of the prompt, `PromptRecord` and `RenderSucceeded`, in
        this order, with two exceptions: `RenderProgress` may come before `ExecutionStarted`, and a
        call that attaches to a finished prompt gets no `ExecutionStarted`. If a node raises an
        error, `PromptRecord` is the last event. Closing the generator does not stop the prompt;
        another call with its id attaches to it.

        Raises:
            InvalidGraph: ComfyUI refuses the graph.
            OutOfMemory: the graphics card has too little memory, even after models were unloaded.
            RenderFailed: a node raised an error, or the prompt was interrupted or made no progress.
            WorkerLost: the ComfyUI process died; a retry may succeed.
            ServiceUnavailable: the ComfyUI process does not start.
        """
        ...

    async def prepare(self, request: RenderRequest) -> None:
        """Download input files of a prompt that may be next; raise StepFailed if one is gone."""

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """Interrupt the prompt or remove it from the queue; an unknown prompt is ignored.

        Returns:
            ComfyUI's history entry of the interrupted prompt; None if the prompt had not started,
            or the running node does not stop in time.
        """

    async def settle(self, run_ids: Sequence[str]) -> None:
        """Forget runs that were recorded, so that `status` no longer returns them."""

    async def get(self, path: str) -> bytes | None:
        """Return the body that ComfyUI serves at ``path``; None if the path does not exist."""
        ...

    async def results(self) -> Mapping[str, RenderResult]:
        """Return the remembered results of successful prompts, by prompt id."""
        ...

    async def status(self) -> RendererStatus: ...
