"""Defines jobs: their specification (`JobSpec`, `Step`), their state (`Job`) and their events.

A batch has many renders, its children, whose graphs are large and differ only in a few values. So
it is stored as one graph, and a patch for each child: ``{<node>: {<input>: <value>}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.prompt import ComfyPrompt

MAX_BATCH_CHILDREN = 256


class StepKind(StrEnum):
    CHAT = "chat"
    RENDER = "render"
    HTTP = "http"


class ChatProtocol(StrEnum):
    """The API format of a chat step's request and of its response."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    RESPONSES = "responses"


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One part of a job; after a crash, a step is repeated only if its result was not recorded.

    Attributes:
        payload: the content of the step. A chat step has a request body of ``protocol``, a render
            step has a graph in ComfyUI's API format, and an http step has ``{"method", "path",
            "headers", "body"}``, or ``blob`` (the sha256 of a body) instead of ``body``. Strings
            may refer to earlier steps (`moyin.domain.references`). In a batch, a step has a patch
            for the graph `JobSpec.base` instead of a whole graph.
        pool: the render pool of a render step; other kinds ignore it.
        protocol: the API format of a chat step; other kinds ignore it.
        template: the name of the template from which the graph was filled, if any.
        inputs: the client's inputs of the template; in a batch, the inputs that distinguish this
            child from the others.
        outputs: ids of the nodes whose files are the result; empty means all nodes.
        cache: True if the result may come from, and may be stored in, the render cache.
    """

    kind: StepKind
    payload: Mapping[str, Any]
    pool: str = "default"
    protocol: ChatProtocol = ChatProtocol.OPENAI
    template: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    cache: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """The validated request for a job, which is stored once as an immutable blob.

    Attributes:
        kind: the kind of the only step, or ``pipeline`` for a job with several steps.
        priority: 1 (first) to 5 (last); 3 is normal.
        deadline: the time by which the job must finish; afterwards it fails.
        webhook: the URL that receives a POST when the job ends.
        comfyui: the options of a render that a client submitted through ComfyUI's own API.
        base: for a batch, the graph to which the patch of each step is applied. These steps are
            independent and run in parallel. None for other jobs.
    """

    kind: str
    steps: tuple[Step, ...]
    priority: int = 3
    deadline: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook: str | None = None
    comfyui: ComfyPrompt | None = None
    base: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of a job: ``value`` of ``max`` units of the step number ``step`` are done.

    In a batch, the units are children and ``step`` is the child that reported last.

    Attributes:
        step: the index of the step, which counts from 0.
        parts: the finished share (0 to 1) of each running child of a batch, by the child's index.
    """

    value: float = 0
    max: float = 1
    step: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """The error of a failed job: a stable code of ``moyin.errors`` and a message for the client."""

    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)


class CancellerKind(StrEnum):
    USER = "user"
    KEY = "key"
    SERVICE = "service"
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True, slots=True)
class Canceller:
    """The user, key, service or operator that cancelled a job.

    Attributes:
        id: the public id of the user or key, or the name of the Moyin service that acts for the
            tenant; None for an operator, because operators do not cancel through the gateway.
    """

    kind: CancellerKind
    id: str | None = None

    @classmethod
    def from_identity(cls, caller: Identity) -> Self:
        """Create a canceller from the caller of a request; a user's key counts as the user."""
        if caller.service is not None:
            return cls(kind=CancellerKind.SERVICE, id=caller.service)
        if caller.user is not None:
            return cls(kind=CancellerKind.USER, id=caller.user)
        return cls(kind=CancellerKind.KEY, id=caller.key_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The result of a finished step, which is recorded as a checkpoint of the job.

    Attributes:
        output: sha256 of the blob that holds the step's output as JSON:
            ``{"text": str | null, "body": any, "artifacts": ["artifact:<id>", …]}``.
        backend: the name of the back end or actor that ran the step, for display.
        cached: True if the result comes from an earlier job.
        gpu_seconds: for a render, the seconds for which it occupied its renderer; None for other
            steps, and for renders of versions of Moyin that did not measure it.
        load_seconds: the part of ``gpu_seconds`` in which models were loaded; None if ``gpu_seconds``
            is None.
        shape: for a render that was executed, the shape of its graph
            (`moyin.render.protocol.shape`), from which later renders are estimated; None otherwise.
        pictures: for a render that was executed, the number of pictures that it stored, without
            previews; None otherwise.
    """

    index: int
    output: str
    artifacts: tuple[Artifact, ...] = ()
    cost_usd: Decimal = Decimal(0)
    backend: str | None = None
    cached: bool = False
    gpu_seconds: float | None = None
    load_seconds: float | None = None
    shape: str | None = None
    pictures: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The state of a job.

    Attributes:
        attempts: the number of the current attempt, from 1; a retry starts another attempt.
        started_at: the time at which a worker or a renderer began the attempt's first step; None
            while that step waits.
        queued_at: the time since which the attempt is or was queued; None if it is unknown, as for
            jobs that an earlier version accepted.
        channel: the event stream of the ComfyUI client that submitted the job.
        record: for a failed render, the sha256 of a JSON blob with the `PromptRecord` as its member
            ``record``; a successful render has the record in its step's output instead.
        children: the number of children of a batch; None for other jobs.
        fingerprint: the hash of the request, if that had an idempotency key.
        cancelled_by: the user, key, service or operator that cancelled the job.
        render_cost_usd: the cost of all renders of the job, including those that failed, were
            cancelled or belong to earlier attempts.
        render_steps: the indexes of the steps that are renders.
        chosen_id: the prompt's id that the client of ComfyUI's API chose, from which ``id`` is derived;
            None if it chose none.
        cancel_requested_by: the user, key or service that first requested to cancel the current
            attempt, which may still run, or may have ended otherwise.
        node_errors: the nodes that ComfyUI found invalid when it accepted the graph, whose outputs
            are not executed: ComfyUI's errors by node id; in a pipeline by ``steps.<index>.<id>``.
    """

    id: str
    owner: str
    kind: str
    status: JobStatus
    spec: str  # the sha256 of the blob that holds the JobSpec
    steps: int
    progress: Progress
    results: tuple[StepResult, ...]
    error: JobError | None
    attempts: int
    priority: int
    metadata: Mapping[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queued_at: datetime | None = None
    channel: str | None = None
    record: str | None = None
    children: int | None = None
    fingerprint: str | None = None
    cancelled_by: Canceller | None = None
    render_cost_usd: Decimal = Decimal(0)
    render_steps: tuple[int, ...] = ()
    cancel_requested_by: Canceller | None = None
    chosen_id: str | None = None
    node_errors: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_id(self) -> str:
        """The id of the prompt in ComfyUI's API."""
        return self.chosen_id or self.id

    @property
    def cached(self) -> bool:
        return bool(self.results) and all(result.cached for result in self.results)

    @property
    def cost_usd(self) -> Decimal:
        # `render_cost_usd` includes the cost of the renders in `results`.
        other_costs = (r.cost_usd for r in self.results if r.index not in self.render_steps)
        return sum(other_costs, self.render_cost_usd)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return tuple(a for result in self.results for a in result.artifacts)


class EventType(StrEnum):
    """The type of a job's event: a new status, progress, a preview, or a finished step.

    Previews are not stored with a job's other events, and are sent only to clients that request
    them.
    """

    QUEUED = "queued"
    RUNNING = "running"
    PROGRESS = "progress"
    PREVIEW = "preview"
    STEP = "step"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEvent:
    """An entry of a job's event stream.

    Attributes:
        id: the Valkey stream id of the entry, after which a client can resume the stream.
        data: the event as JSON members; ``progress`` has ``{"value", "max", "step", "node"?}``.
    """

    id: str
    type: EventType
    data: Mapping[str, Any]


def make_batch_patch(
    base: Mapping[str, Any], graph: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the patch that turns ``base`` into ``graph``.

    The two graphs must have the same node ids and names of inputs; only values may differ.
    """
    patch: dict[str, dict[str, Any]] = {}
    for node_id, node in graph.items():
        base_inputs = base[node_id].get("inputs", {})
        for name, value in node.get("inputs", {}).items():
            # 1, 1.0 and True are equal in Python, but not for a node.
            if value != base_inputs[name] or type(value) is not type(base_inputs[name]):
                patch.setdefault(node_id, {})[name] = value
    return patch


def apply_batch_patch(
    base: Mapping[str, Any], patch: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a copy of the graph ``base`` with the patch applied."""
    return {
        node_id: {**node, "inputs": {**node.get("inputs", {}), **patch[node_id]}}
        if node_id in patch
        else node
        for node_id, node in base.items()
    }
