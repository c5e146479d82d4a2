"""What travels through Temporal: small frozen dataclasses; anything large goes by reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from moyin.domain.job import JobError, JobStatus, StepKind, StepResult

JOBS_QUEUE = "jobs"
# Of its own: receivers may be slow, and what waits for them must not take the places of steps.
WEBHOOKS_QUEUE = "webhooks"
# Of its own, with few workers: what the judge does never takes the place of a job's step.
JUDGE_QUEUE = "judge"
# A step's worker that is silent for HEARTBEAT_TIMEOUT counts as lost. Workers must not let the SDK
# hold heartbeats back for longer than HEARTBEAT_INTERVAL (`max_heartbeat_throttle_interval`).
HEARTBEAT_TIMEOUT = timedelta(seconds=5)
HEARTBEAT_INTERVAL = timedelta(seconds=1)


def render_queue(pool: str) -> str:
    """The Temporal task queue that the render pool ``pool`` pulls."""
    return f"render-{pool}"


@dataclass(frozen=True, kw_only=True)
class StepHead:
    """As much of a step as the workflow must know to send it to the right queue."""

    kind: StepKind
    pool: str = "default"


@dataclass(frozen=True, kw_only=True)
class JobInput:
    """Starts one attempt of a job.

    Attributes:
        spec: sha256 of the JobSpec blob.
        done: results of steps that an earlier attempt finished; they are not run again.
        version: of the workflow's course, which must stay as it was for jobs that run already.
            1: activities of their own write down the beginning and every step.
            2: a step's activity writes down the beginning; others the steps and the end.
            3: a step's activity writes both down, and only if it can't, or fails, another does.
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
    version: int = 1
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """One step for an activity.

    Attributes:
        earlier: output blobs of the steps before it, by index.
        begins: number of the attempt that begins with this step; None: it runs already.
        attempt: of the job; None: the workflow is older than version 3.
        last: the job has succeeded when this step is done.
    """

    job_id: str
    owner: str
    index: int
    spec: str
    earlier: tuple[str, ...] = ()
    begins: int | None = None
    attempt: int | None = None
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """What an activity says of its step.

    Attributes:
        recorded: the job's row has the result, and the job's end if it was the last step.
    """

    result: StepResult
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How an attempt ended. ``results`` of all steps, those of earlier attempts too, or none."""

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
    """Tells the owner's webhook how attempt number ``attempt`` ended."""

    job_id: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class JudgeVerdict:
    """What came of the question to the judge.

    Attributes:
        outcome: why there is no verdict; empty: there is one.
        given, other: scores of the answer that the client got, and of the second one.
    """

    outcome: str = ""
    given: float = 0.0
    other: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JudgeRecord:
    """A verdict on its way into the log of signals."""

    comparison_id: str
    given: float
    other: float


@dataclass(frozen=True, kw_only=True)
class JudgeEnd:
    """How a comparison ended; what is kept of it goes."""

    comparison_id: str
    outcome: str
