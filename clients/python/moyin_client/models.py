"""Defines what the gateway returns: jobs, files and events.

Every class has the members of docs/reference/events.md and of the gateway's `/docs` that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")
FINAL_STATUSES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """A stored file; ``url`` is relative to the gateway, ``size`` is in bytes.

    ``job`` (the id of the job that made the file), ``created_at`` and ``favourite`` are only known
    in lists.
    """

    id: str
    url: str = ""
    name: str = ""
    media_type: str = "application/octet-stream"
    size: int = 0
    job: str | None = None
    created_at: datetime | None = None
    favourite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """A link that returns a file without a key until it expires; ``url`` is absolute."""

    url: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """``value`` of ``max`` units of step ``step`` (from 0) are done; in a batch, units are children.

    ``node`` is the node of the graph that is at work, if it is known.
    """

    value: float = 0.0
    max: float = 1.0
    step: int = 0
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A new preview of a render; ``url`` is relative to the gateway and serves the newest for a minute.

    ``step`` counts from 0 and is the child in a batch; ``node`` is the node at work, if it is known.
    """

    step: int
    media_type: str
    url: str
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture with its media type, such as `image/jpeg`."""

    content: bytes
    media_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EventToken:
    """A token with which a page reads one job's events, previews and files, as `?token=`."""

    token: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class JobError:
    """The error of a failed job."""

    code: str
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Canceller:
    """A user, key, service or operator that cancelled a job; an operator has no id."""

    kind: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Estimated seconds, which half of all cases exceed (``p50``) or a tenth exceeds (``p90``)."""

    p50: float
    p90: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Eta:
    """In how many seconds a render will probably start and end; None if it is unknown."""

    starts_in: Seconds | None = None
    ends_in: Seconds | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The output of a finished step."""

    step: int
    text: str | None = None
    body: Any = None
    artifacts: tuple[Artifact, ...] = ()
    backend: str | None = None
    cost_usd: float = 0.0
    cached: bool = False
    gpu_seconds: float | None = None
    load_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Child:
    """A child of a batch, which is one render; ``progress`` is from 0 to 1."""

    index: int
    status: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    progress: float = 0.0
    artifacts: tuple[Artifact, ...] = ()
    error: JobError | None = None
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedStep:
    """What a step was submitted with; members of other kinds are None."""

    kind: str
    template: str | None = None
    inputs: Mapping[str, Any] | None = None
    graph: str | None = None
    pool: str | None = None
    cache: bool | None = None
    protocol: str | None = None
    request: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """The request as the client submitted it, without the fields that `JobBody` already contains."""

    steps: tuple[SubmittedStep, ...] = ()
    deadline: datetime | None = None
    webhook: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job. ``outputs``, ``children`` and ``submitted`` are only known of `job` and `wait`."""

    id: str
    status: str
    kind: str = ""
    steps: int = 1
    progress: Progress = Progress()
    artifacts: tuple[Artifact, ...] = ()
    error: JobError | None = None
    cancelled_by: Canceller | None = None
    cancel_requested_by: Canceller | None = None
    attempts: int = 1
    priority: int = 3
    cost_usd: float = 0.0
    cached: bool = False
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    queued_for: float | None = None
    position: int | None = None
    eta: Eta | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    children: tuple[Child, ...] | None = None
    submitted: Submission | None = None

    @property
    def has_ended(self) -> bool:
        """True if the job has succeeded, failed or was cancelled."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedStep:
    """A finished step, whose result is recorded; ``value`` and ``max`` are missing for the last."""

    step: int
    artifacts: tuple[Artifact, ...] = ()
    value: float | None = None
    max: float | None = None
    attempt: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """An event of a job.

    Attributes:
        type: `queued`, `running`, `progress`, `preview`, `step`, `succeeded`, `failed` or
            `cancelled`; later versions of Moyin may have more.
        data: a `Progress` for `progress`, a `Preview` for `preview`, a `FinishedStep` for `step`,
            None for unknown types, else the `Job` when it got this status.
        raw: the data as JSON, with the members that this version does not know.
        id: the cursor, with which `events` resumes; None for a preview, and for an event that was
            made from the job's row.
    """

    type: str
    data: Job | Progress | Preview | FinishedStep | None
    raw: Mapping[str, Any]
    id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkResult:
    """The numbers of jobs that a request for many matched, changed, and left as they were."""

    matched: int
    done: int
    skipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The usage of several calls; costs are exact decimal numbers as text."""

    calls: int
    incomplete_calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    units: Mapping[str, int]
    load_milliseconds: int
    cost_usd: str
    render_cost_usd: str
    dearest_cost_usd: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageGroup(Usage):
    """The usage of a group; only the properties by which calls were grouped are set."""

    day: str | None = None
    model: str | None = None
    backend: str | None = None
    owner: str | None = None
    key: str | None = None
    user: str | None = None
    operation: str | None = None
    template: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A budget of the caller's key, user or tenant (``of``) in its current period."""

    limit: str
    of: str
    limit_usd: str
    spent_usd: str
    reserved_usd: str
    left_usd: str
    resets_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageReport:
    """The usage of a period by groups; ``budgets`` is None while they cannot be read.

    ``dearest`` names the models with which ``dearest_cost_usd`` is computed.
    """

    since: datetime
    until: datetime
    group_by: tuple[str, ...]
    total: Usage
    groups: tuple[UsageGroup, ...]
    dearest: Mapping[str, Any]
    budgets: tuple[Budget, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A verified webhook; ``id`` is the same for each delivery of it, ``type`` is `job.succeeded` etc."""

    id: str
    type: str
    timestamp: datetime
    job: Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """A page of a list; ``next_cursor`` is None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None
