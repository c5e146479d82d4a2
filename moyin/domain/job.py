"""Holds jobs: their specification (`JobSpec`, `Step`), their state (`Job`) and their events."""

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
    """A unit of work. Each finished step is a checkpoint.

    Attributes:
        payload: chat: a request body of ``protocol``. render: a ComfyUI API graph. http:
            ``{"method", "path", "headers", "body"}`` of a route of the gateway, or with
            ``blob``, the sha256 of a body that is sent unchanged. Strings may refer to earlier
            steps (see ``moyin.domain.references``). In a batch: a patch of the job's ``base``.
        pool: the render pool that runs it; ignored by other kinds.
        protocol: the API format of a chat step; ignored by other kinds.
        template: the name of the template that the graph came from, if any.
        inputs: the client's inputs of the template, or in a batch the inputs that distinguish
            this child from the others.
        outputs: ids of the nodes whose files are the result; empty: all.
        cache: reuse an earlier result of the same graph, and store this one for reuse.
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
    """A client's request, after validation. It is immutable and stored once as a blob.

    Attributes:
        kind: the kind that the client named, a step kind or ``pipeline``.
        priority: 1 (first) to 5 (last); 3 is normal.
        deadline: the time by which the job must finish, else it fails.
        webhook: the URL that receives a notification when the job ends.
        comfyui: the options of a render that came through ComfyUI's own API.
        base: the graph that the steps of a batch patch (see ``moyin.domain.batch``). These steps
            are independent and run in parallel.
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
    """The progress of a job: ``value`` of ``max`` units are done in step ``step`` (from 0).

    In a batch, the units are children and ``step`` is the child that reported last.

    Attributes:
        parts: the finished share of each running child, from 0 to 1, by index.
    """

    value: float = 0
    max: float = 1
    step: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """The error of a failed job: a stable code of ``moyin.errors`` and a sentence."""

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

    Only users and keys of the job's own tenant, and operators, can cancel it.

    Attributes:
        id: the public id of the user or key, or the name of a service of Moyin that acts for the
            tenant; None for an operator, who does not use the gateway.
    """

    kind: CancellerKind
    id: str | None = None

    @classmethod
    def from_identity(cls, caller: Identity) -> Self:
        """Create a canceller from the caller of a request, preferring the user to the key."""
        if caller.service is not None:
            return cls(kind=CancellerKind.SERVICE, id=caller.service)
        if caller.user is not None:
            return cls(kind=CancellerKind.USER, id=caller.user)
        return cls(kind=CancellerKind.KEY, id=caller.key_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """The result of a finished step, which is a checkpoint of its job.

    Attributes:
        output: sha256 of the blob that holds the step's output as JSON:
            ``{"text": str | null, "body": any, "artifacts": ["artifact:<id>", …]}``.
        backend: the back end or actor that ran the step, for display.
        cached: the result of an earlier job was reused.
    """

    index: int
    output: str
    artifacts: tuple[Artifact, ...] = ()
    cost_usd: Decimal = Decimal(0)
    backend: str | None = None
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The state of a job.

    Attributes:
        begun_at: when a renderer first started it; before that it waits, also if it is running.
        channel: the stream of the ComfyUI client that submitted it.
        record: for a failed render, the sha256 of a blob whose ``record`` is its `PromptRecord`;
            for a successful one, the record is in the step's output.
        children: the number of children of a batch; None: the steps run in sequence.
        fingerprint: the hash of a request that had an idempotency key.
        cancelled_by: the canceller of a cancelled job.
    """

    id: str
    owner: str
    kind: str
    status: JobStatus
    spec: str  # sha256 of the JobSpec blob
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
    begun_at: datetime | None = None
    channel: str | None = None
    record: str | None = None
    children: int | None = None
    fingerprint: str | None = None
    cancelled_by: Canceller | None = None

    @property
    def cached(self) -> bool:
        """True if every step reused the result of an earlier job."""
        return bool(self.results) and all(result.cached for result in self.results)

    @property
    def cost_usd(self) -> Decimal:
        return sum((result.cost_usd for result in self.results), Decimal(0))

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return tuple(a for result in self.results for a in result.artifacts)


class EventType(StrEnum):
    """The type of an event: a status of the job, or progress. A final status ends a stream."""

    QUEUED = "queued"
    RUNNING = "running"
    PROGRESS = "progress"
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
        id: the position in the stream (a Valkey stream id), from which a client can resume.
        data: JSON members; ``progress`` carries ``{"value", "max", "step", "node"?}``.
    """

    id: str
    type: EventType
    data: Mapping[str, Any]
