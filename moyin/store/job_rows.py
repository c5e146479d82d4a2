"""Converts between rows of the table ``jobs`` and the dataclasses of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from moyin.domain.identity import ALL_SCOPES
from moyin.domain.job import (
    Canceller,
    CancellerKind,
    Job,
    JobError,
    JobStatus,
    Progress,
    StepKind,
    StepResult,
)
from moyin.domain.limits import JobReservation, Limit
from moyin.domain.serialization import from_plain, to_plain
from moyin.store.sql import ensure_utc, now
from moyin.store.usage import nano_to_usd

Row = Mapping[Any, Any]
OPEN_JOB_STATUSES = (JobStatus.QUEUED, JobStatus.RUNNING)
OPEN_STATUSES = tuple(status.value for status in OPEN_JOB_STATUSES)
# Columns with the same name and value as attributes of all dataclasses of jobs, or of some.
_COMMON_COLUMNS = ("owner", "spec", "priority", "children")
_LAUNCH_COLUMNS = (*_COMMON_COLUMNS, "webhook")
_DESCRIPTION_COLUMNS = (*_COMMON_COLUMNS, "id", "kind", "channel", "fingerprint")
_JOB_COLUMNS = (*_DESCRIPTION_COLUMNS, "attempts", "metadata", "record", "chosen_id")
_NEW_JOB_COLUMNS = (
    *_DESCRIPTION_COLUMNS,
    "webhook",
    "deadline",
    "idempotency_key",
    "key_id",
    "comfyui",
    "chosen_id",
)
# Columns that are null until the job runs.
_INITIALLY_NULL = ("started_at", "finished_at", "record", "cancelled_by")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """Describes a job that is being submitted.

    Attributes:
        spec: the SHA-256 of the blob with the job's spec.
        heads: the kind and pool of each step, in order.
        fingerprint: a digest of the request. A second request with the same idempotency key counts
            as a repetition only if its fingerprint is the same.
        key_id: the API key or session of the submitter, with whose rights the steps run.
        user: the id of the submitting user, or None for a tenant's own key.
        scopes: the scopes of the submitter.
        limits: the submitter's limits on open jobs.
        channel: the name of the ComfyUI client's event stream, or None.
        children: the number of renders of a batch, or None if the job is not a batch.
        comfyui: whether the job was submitted through ComfyUI's own API.
        templates: the names of the templates of the steps.
        has_chosen_id: whether the client, or another system, chose the id.
        chosen_id: the prompt's id that a client of ComfyUI's API chose, or None; ``id`` is derived
            from it (`moyin.domain.prompt.derive_job_id`).
        text: the text that is searched when a client searches for jobs.
        reservation: the money that the submitter's budgets reserve for the renders, or None.
        node_errors: the nodes that ComfyUI's validation found invalid; see `Job.node_errors`.
    """

    id: str
    owner: str
    kind: str
    spec: str
    heads: tuple[tuple[StepKind, str], ...]
    priority: int = 3
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook: str | None = None
    deadline: datetime | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    key_id: str | None = None
    user: str | None = None
    scopes: frozenset[str] = ALL_SCOPES
    limits: tuple[Limit, ...] = ()
    channel: str | None = None
    children: int | None = None
    comfyui: bool = False
    templates: tuple[str, ...] = ()
    has_chosen_id: bool = False
    chosen_id: str | None = None
    text: str = ""
    reservation: JobReservation | None = None
    node_errors: Mapping[str, Any] = field(default_factory=dict)

    @property
    def launch(self) -> Launch:
        """The data that starts the job's first attempt."""
        return Launch(
            job_id=self.id,
            owner=self.owner,
            attempt=1,
            priority=self.priority,
            spec=self.spec,
            heads=self.heads,
            done=(),
            webhook=self.webhook,
            deadline=self.deadline,
            children=self.children,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """Holds the input of the workflow that runs an attempt of a job.

    Attributes:
        heads: the kind and pool of each step, in order.
        done: the results of steps that earlier attempts finished.
        children: the number of renders of a batch, or None if the job is not a batch.
    """

    job_id: str
    owner: str
    attempt: int
    priority: int
    spec: str
    heads: tuple[tuple[StepKind, str], ...]
    done: tuple[StepResult, ...]
    webhook: str | None
    deadline: datetime | None
    children: int | None = None


def build_row(new_job: NewJob) -> dict[str, Any]:
    """Return the table row of a job that is submitted now."""
    created_at = now()
    return {
        **{name: getattr(new_job, name) for name in _NEW_JOB_COLUMNS},
        "status": JobStatus.QUEUED.value,
        "heads": [[kind.value, pool] for kind, pool in new_job.heads],
        "results": [],
        "progress": to_plain(Progress(max=new_job.children or 1)),
        "error": None,
        "attempts": 1,
        "metadata": dict(new_job.metadata),
        "templates": list(new_job.templates) or None,
        "node_errors": dict(new_job.node_errors) or None,
        "dispatched": False,
        "render_nano_usd": 0,
        "reserved": new_job.reservation is not None,
        "created_at": created_at,
        "queued_at": created_at,
        "user_id": new_job.user,
        "scopes": " ".join(sorted(new_job.scopes)),
        **dict.fromkeys(_INITIALLY_NULL),
    }


def parse_job(row: Row) -> Job:
    """Return the job that a row with all columns describes."""
    values = {name: row[name] for name in _JOB_COLUMNS}
    return Job(
        status=JobStatus(row["status"]),
        steps=len(row["heads"]),
        progress=from_plain(Progress, row["progress"]),
        results=_parse_results(row),
        error=None if row["error"] is None else from_plain(JobError, row["error"]),
        created_at=ensure_utc(row["created_at"]),
        started_at=ensure_utc(row["started_at"]),
        finished_at=ensure_utc(row["finished_at"]),
        queued_at=ensure_utc(row["queued_at"]),
        cancelled_by=_parse_canceller(row),
        render_cost_usd=nano_to_usd(row["render_nano_usd"]),
        render_steps=tuple(
            index for index, (kind, _) in enumerate(row["heads"]) if kind == StepKind.RENDER
        ),
        cancel_requested_by=_parse_requester(row),
        node_errors=row["node_errors"] or {},
        **values,
    )


def parse_launch(row: Row) -> Launch:
    """Return the data that starts the current attempt of the job in a row."""
    values = {name: row[name] for name in _LAUNCH_COLUMNS}
    return Launch(
        job_id=row["id"],
        attempt=row["attempts"],
        heads=tuple((StepKind(kind), pool) for kind, pool in row["heads"]),
        done=_parse_results(row),
        deadline=ensure_utc(row["deadline"]),
        **values,
    )


def _parse_canceller(row: Row) -> Canceller | None:
    if row["status"] != JobStatus.CANCELLED.value:
        return None
    return _parse_requester(row) or Canceller(kind=CancellerKind.OPERATOR)


def _parse_requester(row: Row) -> Canceller | None:
    """Return the caller that first requested the cancellation, or None without such a request.

    The job may have succeeded or failed nevertheless.
    """
    entries = get_canceller_entries(row)
    return from_plain(Canceller, entries[0]["by"]) if entries else None


def get_canceller_entries(row: Row) -> list[dict[str, Any]]:
    """Return the cancel requests that `moyin.store.cancellers` recorded in a row, oldest first."""
    entries = row["cancelled_by"]
    if isinstance(entries, dict):
        # Earlier versions wrote one canceller instead of a list.
        entries = [{"id": "", "by": entries}]
    return list(entries or [])


def _parse_results(row: Row) -> tuple[StepResult, ...]:
    return tuple(from_plain(StepResult, result) for result in row["results"])
