"""Builds rows of the table ``jobs`` and reads jobs from them."""

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
from moyin.domain.limits import Limit
from moyin.domain.serialization import from_plain, to_plain
from moyin.store.sql import ensure_utc, now

__all__ = ["OPEN", "Launch", "NewJob", "Row", "job_of_row", "launch_of_row", "new_row"]

Row = Mapping[Any, Any]
OPEN = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
# Columns that are null until the job has run.
_INITIALLY_NULL = ("started_at", "finished_at", "begun_at", "record", "cancelled_by")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """Describes a job to accept.

    Attributes:
        spec: the sha256 of the blob with the job's spec.
        heads: the kind and pool of each step, in order.
        fingerprint: a digest of the request, which tells a repeat from a reused idempotency key.
        key_id, user, scopes: of the submitter; the steps run with these rights.
        limits: the submitter's limits on open jobs.
        channel: see `moyin.domain.job.Job`.
        children: the number of renders of a batch; None: not a batch.
        comfyui: whether it is a prompt of ComfyUI's own API.
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

    @property
    def launch(self) -> Launch:
        """The launch of the first attempt."""
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
    """Holds what is needed to start an attempt of a job."""

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


def new_row(new: NewJob) -> dict[str, Any]:
    """Return the row of a job that is accepted now."""
    return {
        "id": new.id,
        "owner": new.owner,
        "kind": new.kind,
        "status": JobStatus.QUEUED.value,
        "spec": new.spec,
        "heads": [[kind.value, pool] for kind, pool in new.heads],
        "children": new.children,
        "results": [],
        "progress": to_plain(Progress(max=new.children or 1)),
        "error": None,
        "attempts": 1,
        "priority": new.priority,
        "metadata": dict(new.metadata),
        "webhook": new.webhook,
        "deadline": new.deadline,
        "idempotency_key": new.idempotency_key,
        "fingerprint": new.fingerprint,
        "dispatched": False,
        "created_at": now(),
        "key_id": new.key_id,
        "user_id": new.user,
        "scopes": " ".join(sorted(new.scopes)),
        "channel": new.channel,
        "comfyui": new.comfyui,
        **dict.fromkeys(_INITIALLY_NULL),
    }


def job_of_row(row: Row) -> Job:
    """Return the job in a row with all columns."""
    created_at = ensure_utc(row["created_at"])
    assert created_at is not None
    return Job(
        id=row["id"],
        owner=row["owner"],
        kind=row["kind"],
        status=JobStatus(row["status"]),
        spec=row["spec"],
        steps=len(row["heads"]),
        progress=from_plain(Progress, row["progress"]),
        results=_results(row),
        error=None if row["error"] is None else from_plain(JobError, row["error"]),
        attempts=row["attempts"],
        priority=row["priority"],
        metadata=row["metadata"],
        created_at=created_at,
        started_at=ensure_utc(row["started_at"]),
        finished_at=ensure_utc(row["finished_at"]),
        begun_at=ensure_utc(row["begun_at"]),
        channel=row["channel"],
        record=row["record"],
        children=row["children"],
        fingerprint=row["fingerprint"],
        cancelled_by=_canceller(row),
    )


def launch_of_row(row: Row) -> Launch:
    """Return the launch of the row's present attempt."""
    return Launch(
        job_id=row["id"],
        owner=row["owner"],
        attempt=row["attempts"],
        priority=row["priority"],
        spec=row["spec"],
        heads=tuple((StepKind(kind), pool) for kind, pool in row["heads"]),
        done=_results(row),
        webhook=row["webhook"],
        deadline=ensure_utc(row["deadline"]),
        children=row["children"],
    )


def _canceller(row: Row) -> Canceller | None:
    if row["status"] != JobStatus.CANCELLED.value:
        return None
    if row["cancelled_by"] is None:
        return Canceller(kind=CancellerKind.OPERATOR)
    return from_plain(Canceller, row["cancelled_by"])


def _results(row: Row) -> tuple[StepResult, ...]:
    return tuple(from_plain(StepResult, result) for result in row["results"])
