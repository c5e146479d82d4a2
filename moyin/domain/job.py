"""Jobs: what was asked (`JobSpec`, `Step`), what became of it (`Job`), and its statuses."""

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
    """The protocol of a chat step's body and of its answer."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"


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
    """One unit of work; finishing it is a checkpoint.

    Attributes:
        payload: chat: a chat body of ``protocol``. render: a ComfyUI API graph. http:
            ``{"method", "path", "headers", "body"}`` of a route behind the door, or with
            ``blob``, the sha256 of a body that is sent as it is. Strings may refer to earlier
            steps (see ``moyin.domain.references``). In a batch: what differs from its ``base``.
        pool: the render pool that runs it; ignored by other kinds.
        protocol: of a chat step; ignored by other kinds.
        template: whose graph the payload is, if it came from one.
        inputs: what the client chose: of a template its inputs, in a batch what sets this one apart
            from the others.
        outputs: nodes of a graph whose files are the result; none: all.
        cache: whether an earlier result of the same graph will do, and this one for later ones.
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
    """What a client asked for, after validation. Immutable; stored once as a blob.

    Attributes:
        kind: the kind the client named: a step kind or ``pipeline``.
        priority: 1 (first) to 5 (last); 3 is normal.
        deadline: the job fails when it is not finished by then.
        webhook: URL told when the job ends.
        comfyui: of a render that came through ComfyUI's own API.
        base: of a batch, the graph that its steps change (see ``moyin.domain.batch``). They know
            nothing of each other and run side by side.
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
    """``value`` of ``max`` units done in step number ``step`` (from 0).

    Of a batch: of ``max`` children ``value`` are done, and child ``step`` had the last news.

    Attributes:
        parts: how much is done of each child at work, from 0 to 1, by index.
    """

    value: float = 0
    max: float = 1
    step: int = 0
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """Why a job failed: a stable code of ``moyin.errors`` and a sentence."""

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
    """Who cancelled a job. Only people and keys of the job's own tenant can, and the operator.

    Attributes:
        id: public id of the person or key, or the name of a service of Moyin that acts for the
            tenant; None: of an operator, who works beside the door.
    """

    kind: CancellerKind
    id: str | None = None

    @classmethod
    def of(cls, caller: Identity) -> Self:
        """Name the caller of a request: the person before the key."""
        if caller.service is not None:
            return cls(kind=CancellerKind.SERVICE, id=caller.service)
        if caller.user is not None:
            return cls(kind=CancellerKind.USER, id=caller.user)
        return cls(kind=CancellerKind.KEY, id=caller.key_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """A finished step: the checkpoint that makes repeating it unnecessary.

    Attributes:
        output: sha256 of the blob that holds the step's output as JSON:
            ``{"text": str | null, "body": any, "artifacts": ["artifact:<id>", …]}``.
        backend: which back end or actor did it, for people.
        cached: it was done before, for another job.
    """

    index: int
    output: str
    artifacts: tuple[Artifact, ...] = ()
    cost_usd: Decimal = Decimal(0)
    backend: str | None = None
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job as its owner sees it.

    Attributes:
        begun_at: when a renderer first took it up; until then it waits, whatever its status says.
        channel: the stream of the ComfyUI client that submitted it.
        record: of a render that failed, sha256 of a blob whose ``record`` is its `PromptRecord`;
            of one that succeeded, it is in the step's output.
        children: how many a batch has; None: the steps are one after the other.
        fingerprint: of the request, where that had an idempotency key.
        cancelled_by: of a cancelled job; an operator where nobody asked for it through the door.
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
        """Whether nothing had to be done for it."""
        return bool(self.results) and all(result.cached for result in self.results)

    @property
    def cost_usd(self) -> Decimal:
        return sum((result.cost_usd for result in self.results), Decimal(0))

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return tuple(a for result in self.results for a in result.artifacts)


class EventType(StrEnum):
    """``QUEUED`` … ``CANCELLED`` repeat the job's statuses; the last three end a stream."""

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
    """One entry of a job's event stream.

    Attributes:
        id: position in the stream (a Valkey stream id); a client resumes after it.
        data: JSON members; ``progress`` carries ``{"value", "max", "step", "node"?}``.
    """

    id: str
    type: EventType
    data: Mapping[str, Any]
