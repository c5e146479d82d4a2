"""Defines the arguments and results of workflows and activities, and the names of task queues.

Large values are stored as blobs, and the types contain only their sha256. Members must not be
renamed, because the histories of running workflows contain their names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from moyin.domain.job import JobError, JobStatus, StepKind, StepResult

JOBS_QUEUE = "jobs"
# The task queues. Webhooks and the judge have their own, so that they never occupy workers of
# steps.
WEBHOOKS_QUEUE = "webhooks"
JUDGE_QUEUE = "judge"
# A worker that sends no heartbeat for HEARTBEAT_TIMEOUT counts as lost. Workers must not let the SDK
# delay heartbeats for longer than HEARTBEAT_INTERVAL (`max_heartbeat_throttle_interval`).
HEARTBEAT_TIMEOUT = timedelta(seconds=5)
HEARTBEAT_INTERVAL = timedelta(seconds=1)


def get_render_queue(pool: str) -> str:
    """Return the name of the task queue of a render pool."""
    return f"render-{pool}"


@dataclass(frozen=True, kw_only=True)
class StepRouting:
    """The kind and the render pool of a step, which determine its task queue."""

    kind: StepKind
    pool: str = "default"


@dataclass(frozen=True, kw_only=True)
class JobInput:
    """The argument of `JobWorkflow`, which runs one attempt of a job.

    Attributes:
        spec: the sha256 of the JobSpec blob.
        done: the results of steps that earlier attempts finished, which do not run again.
        webhook: True if the job has a webhook.
        version: the version of the workflow's code with which the job started. A change of the
            order of the workflow's commands needs a new version, because Temporal replays a
            running job with the old order.
        parallel: True if the steps are children of a batch.
    """

    job_id: str
    owner: str
    attempt: int
    spec: str
    steps: tuple[StepRouting, ...]
    done: tuple[StepResult, ...] = ()
    webhook: bool = False
    deadline: datetime | None = None
    version: int = 3
    parallel: bool = False


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """The argument of the activity that runs one step.

    Attributes:
        earlier: the sha256 of the outputs of earlier steps, by index.
        begins: the number of the attempt if the attempt begins with this step, else None.
        attempt: the number of the job's attempt.
        last: True if the job succeeds when this step is done.
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
class StepOutcome:
    """The result of the activity that ran one step.

    Attributes:
        recorded: True if the activity wrote the result to the job's row and, after the last step,
            also the job's end.
    """

    result: StepResult
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """The result of `JobWorkflow`; if the job succeeded, ``results`` has its steps' results."""

    job_id: str
    owner: str
    attempt: int
    status: JobStatus
    error: JobError | None = None
    results: tuple[StepResult, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The argument of the activity that writes the checkpoint of a finished step."""

    job_id: str
    attempt: int
    result: StepResult


@dataclass(frozen=True, kw_only=True)
class WebhookInput:
    """The argument of `WebhookWorkflow`, which delivers the webhook for the end of one attempt."""

    job_id: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class JudgeVerdict:
    """The verdict of the judge on two answers.

    Attributes:
        outcome: the outcome of a comparison that has ended without a verdict; empty if there is a
            verdict.
        given: the score of the answer that the client received.
        other: the score of the second model's answer.
    """

    outcome: str = ""
    given: float = 0.0
    other: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JudgeRecord:
    """The argument of the activity that writes the judge's verdict to the log of signals."""

    comparison_id: str
    given: float
    other: float


@dataclass(frozen=True, kw_only=True)
class JudgeEnd:
    """The argument of the activity that ends a comparison and deletes its stored answers."""

    comparison_id: str
    outcome: str
