"""The renderer port: what a render pool needs from whatever renders, and its vocabulary.

``moyin.render.comfyui.renderer`` is the real one, ``moyin.testing.renderer`` the fake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
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
    """One prompt.

    Attributes:
        prompt_id: canonical lower-case UUID; a repeat of a running or finished one is the same one.
        graph: ComfyUI API graph, with input files under the names in ``files``.
        files: sha256 of the blob by the name under which the graph loads it (see
            ``moyin.render.protocol.graph``).
        models: files that the graph loads, with their sizes in bytes.
        extra_data: what nodes may ask for besides, such as what goes into a picture's metadata.
        targets: output nodes that shall be executed; None: all.
        channel: where whoever asked wants to hear what ComfyUI says of it (`moyin.store.frames`).
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
    """``value`` of ``max`` nodes are done; the fraction is that of the nodes at work.

    Attributes:
        node: id of the node at work, where there is one.
    """

    value: float
    max: float
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutionFinished:
    """The renderer is free for the next prompt; the files of this one are still being stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedFile:
    """One output, in the artifact store.

    Attributes:
        node: id of the node that wrote it; ``slot`` is the key in that node's output (``images``).
        temporary: a preview, not a saved file.
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
    """Success.

    Attributes:
        values: by node and slot, what the nodes put out that is not a file.
        repeatable: the same graph would make the same again, as far as its nodes say.
    """

    files: tuple[RenderedFile, ...]
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    repeatable: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderResult:
    """What is left of a prompt that succeeded; ``record``: what ComfyUI's history said of it."""

    done: RenderSucceeded
    record: PromptRecord | None = None


RenderEvent: TypeAlias = RenderProgress | ExecutionFinished | PromptRecord | RenderSucceeded


@dataclass(frozen=True, kw_only=True, slots=True)
class RendererStatus:
    """A renderer now.

    Attributes:
        ready: takes prompts.
        pid: of the ComfyUI process.
        running: prompts submitted and not finished; ``known`` those, and finished ones that would
            be answered without rendering again.
        error: why it is not ready, for an operator.
        models: files that it has in memory, the largest first.
        memory: bytes of a card that it may take; None without a card.
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
        """Progress, once there is some and at most four times a second, then `ExecutionFinished`, then `RenderSucceeded`, which is the last.

        Before that, and before it raises what a node is to blame for, comes what ComfyUI's history
        says of it.

        Closing the generator leaves the prompt running: ask again to attach to it.

        Raises:
            InvalidGraph: ComfyUI refuses the graph.
            OutOfMemory: the card's memory does not suffice, not even when it was freed before.
            RenderFailed: a node raised, the prompt was interrupted, or nothing moved for too long.
            WorkerLost: the process died under it; another try may succeed.
            ServiceUnavailable: the process does not start.
        """
        ...

    async def prepare(self, request: RenderRequest) -> None:
        """Fetch what the prompt needs, so that it can begin at once; it may never come.

        Raises:
            StepFailed: an input file is gone.
        """

    async def cancel(self, prompt_id: str) -> PromptRecord | None:
        """Interrupt this prompt, or take it from the queue; nothing when it is not there.

        Returns:
            What ComfyUI's history says of it, once its node has stopped; None: it did not begin, or
            its node does not stop soon.
        """

    async def validate(
        self, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """ComfyUI's own validation body: with ``error`` when it refuses the graph, and else with
        the ``outputs`` that it would execute; ``node_errors`` tells of others. And what it does not
        say: ``free``, see `moyin.comfy_api.validation_cache`.

        Raises:
            ServiceUnavailable: the process is not up.
        """
        ...

    async def object_info(self) -> dict[str, Any]:
        """The nodes that it knows, as ``GET /object_info`` gives them.

        Raises:
            ServiceUnavailable: the process is not up.
        """
        ...

    async def fetch(self, path: str) -> bytes | None:
        """What a route of ComfyUI's that changes nothing answers; None: it has nothing there.

        Raises:
            ServiceUnavailable: the process is not up.
        """
        ...

    async def results(self) -> Mapping[str, RenderResult]:
        """Of the prompts that succeeded, by their ids, as many as are remembered."""
        ...

    async def status(self) -> RendererStatus: ...
