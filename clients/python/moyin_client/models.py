"""Defines what the gateway returns: jobs, files and events.

The members of events are described in docs/reference/events.md, all others in the gateway's
`/docs`.
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

    Only lists of files contain ``job`` (the id of the job that made the file), ``created_at`` and
    ``favourite``; elsewhere these have their defaults.
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
    """A link with which anyone can read a file, until ``expires_at``; ``url`` is absolute."""

    url: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of a job: ``value`` of ``max`` units of the step ``step`` are done.

    Steps count from 0. In a batch the units are its children. ``node`` is the node of the graph
    that is being executed, if it is known.
    """

    value: float = 0.0
    max: float = 1.0
    step: int = 0
    node: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """Reports a new preview of a render.

    Attributes:
        step: the index, from 0, of the step; in a batch, of the child.
        url: the URL of the newest preview, relative to the gateway; it works for a minute.
        node: the node of the graph that is being executed, if it is known.
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
    """A token for the parameter `?token=`, with which a page reads one job's events and files."""

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
    """The user, key, service or operator that cancelled a job; an operator has no id."""

    kind: str
    id: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """An estimate in seconds.

    Attributes:
        p50: the time that half of all renders exceed.
        p90: the time that one render in ten exceeds.
    """

    p50: float
    p90: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Eta:
    """The seconds until a render will probably start, and until it will end; None if unknown."""

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
    """One render of a batch, called a child; ``progress`` is from 0 to 1."""

    index: int
    status: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    progress: float = 0.0
    artifacts: tuple[Artifact, ...] = ()
    error: JobError | None = None
    cached: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmittedStep:
    """A step as it was submitted; members that its kind does not have are None."""

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
    """The request as the client submitted it, without the fields that `Job` already contains."""

    steps: tuple[SubmittedStep, ...] = ()
    deadline: datetime | None = None
    webhook: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job of the gateway.

    Only the methods `job` and `wait` return it with ``outputs``, ``children`` and ``submitted``.

    Attributes:
        node_errors: ComfyUI's errors of invalid nodes, by node id, in a pipeline by
            `steps.<index>.<id>`; the outputs that need these nodes are not rendered.
    """

    id: str
    status: str
    kind: str = ""
    steps: int = 1
    progress: Progress = Progress()
    artifacts: tuple[Artifact, ...] = ()
    error: JobError | None = None
    node_errors: Mapping[str, Any] = field(default_factory=dict)
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
        """True if the job has succeeded, has failed or was cancelled."""
        return self.status in FINAL_STATUSES


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedStep:
    """Reports a finished step, whose result is recorded.

    ``value`` and ``max`` are the progress of the job; both are None after the job's last step.
    """

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
            and None for unknown types. For all other types, the `Job` when it got this status.
        raw: the data as JSON, with the members that this version does not know.
        id: the cursor with which `events` resumes. It is None for a preview, and for a final event
            that Moyin's event store has lost.
    """

    type: str
    data: Job | Progress | Preview | FinishedStep | None
    raw: Mapping[str, Any]
    id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkResult:
    """Counts the jobs that a filter matched, that were changed, and that were left unchanged."""

    matched: int
    done: int
    skipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The summed usage of several calls; costs are exact decimal numbers as text."""

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
    """The usage of a group of calls; only the properties by which calls were grouped are set."""

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
    """A budget in its current period; ``of`` is whose it is: the key, the user or the tenant."""

    limit: str
    of: str
    limit_usd: str
    spent_usd: str
    reserved_usd: str
    left_usd: str
    resets_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageReport:
    """The usage in a period, by groups; ``budgets`` is None while they cannot be read.

    If ``limit`` was given, ``next_cursor`` gets the next page of groups; None: this is the last.

    ``dearest_cost_usd`` is what the calls would have cost with the most expensive models, which
    ``dearest`` names. ``days`` is None unless the query is ``daily``.
    """

    since: datetime
    until: datetime
    group_by: tuple[str, ...]
    total: Usage
    groups: tuple[UsageGroup, ...]
    dearest: Mapping[str, Any]
    next_cursor: str | None = None
    budgets: tuple[Budget, ...] | None = None
    days: tuple[UsageGroup, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """A verified webhook; ``type`` is `job.` and the final status, such as `job.succeeded`.

    ``id`` identifies the webhook; it stays the same if the webhook is delivered again.
    """

    id: str
    type: str
    timestamp: datetime
    job: Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Page(Generic[T]):
    """A page of a list; ``next_cursor`` is None on the last page."""

    items: tuple[T, ...]
    next_cursor: str | None
