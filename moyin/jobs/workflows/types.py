"""Defines the payloads that travel through Temporal: small frozen dataclasses.

Anything large is stored as a blob, and the payload has its sha256. Members keep their names: running
workflows have them in their histories.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from moyin.domain.job import JobError, JobStatus, StepKind, StepResult

JOBS_QUEUE = "jobs"
# Webhooks have a queue of their own, so that slow receivers do not occupy the slots of steps.
WEBHOOKS_QUEUE = "webhooks"
# The judge has a queue of its own with few slots, so that it never delays a job's step.
JUDGE_QUEUE = "judge"
# A worker that sends no heartbeat for HEARTBEAT_TIMEOUT counts as lost. Workers must not let the SDK
# hold heartbeats back for longer than HEARTBEAT_INTERVAL (`max_heartbeat_throttle_interval`).
HEARTBEAT_TIMEOUT = timedelta(seconds=5)
HEARTBEAT_INTERVAL = timedelta(seconds=1)


def render_queue(pool: str) -> str:
    """Return the name of the task queue that the render pool ``pool`` polls."""
    return f"render-{pool}"


@dataclass(frozen=True, kw_only=True)
class StepHead:
    """The part of a step that the workflow needs to choose a task queue."""

    kind: StepKind
    pool: str = "default"


@dataclass(frozen=True, kw_only=True)
class JobInput:
    """Starts one attempt of a job.

    Attributes:
        spec: sha256 of the JobSpec blob.
        done: results of the steps that an earlier attempt finished; they do not run again.
        version: of the order of commands in the workflow. Running jobs must replay with the version
            that they were started with, so a change of that order needs a new version.
        parallel: the steps are children of a batch.
    """

    job_id: str
    owner: str
    attempt: int
    spec: str
    steps: tuple[StepHead, ...]
    done: tuple[StepResult, ...] = ()
    webhook: bool = False
    deadline: datetime | None = None
    version: int = 3
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """Starts the activity of one step.

    Attributes:
        earlier: sha256 of the outputs of the steps before it, by index.
        begins: number of the attempt that begins with this step; None: it has begun already.
        attempt: number of the job's attempt.
        last: the job has succeeded when this step is done.
    """

    job_id: str
    owner: str
    index: int
    spec: str
    earlier: tuple[str, ...] = ()
    begins: int | None = None
    attempt: int
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """The result of a step's activity.

    Attributes:
        recorded: the job's row has the result; after the last step, also the job's end.
    """

    result: StepResult
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """Describes how an attempt ended.

    Attributes:
        results: of all steps, including those of earlier attempts; empty unless it succeeded.
    """

    job_id: str
    owner: str
    attempt: int
    status: JobStatus
    error: JobError | None = None
    results: tuple[StepResult, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The checkpoint of one finished step."""

    job_id: str
    attempt: int
    result: StepResult


@dataclass(frozen=True, kw_only=True)
class WebhookInput:
    """Starts the delivery of the webhook for the end of one attempt."""

    job_id: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class JudgeVerdict:
    """The result of asking the judge.

    Attributes:
        outcome: the reason why there is no verdict; empty if there is one.
        given, other: scores of the answer that the client received, and of the second one.
    """

    outcome: str = ""
    given: float = 0.0
    other: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JudgeRecord:
    """A verdict to be written to the log of signals."""

    comparison_id: str
    given: float
    other: float


@dataclass(frozen=True, kw_only=True)
class JudgeEnd:
    """Describes how a comparison ended; its stored answers are deleted."""

    comparison_id: str
    outcome: str
