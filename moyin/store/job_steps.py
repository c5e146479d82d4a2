"""Writes the progress and results of steps into the rows of jobs, in the caller's transaction.

The steps of a job run one after the other. The renders of a batch run in parallel and share a row.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from moyin.domain.job import JobStatus, Progress, StepResult
from moyin.domain.serialization import to_plain
from moyin.store.artifacts import insert_artifacts
from moyin.store.job_rows import OPEN_STATUSES, Row
from moyin.store.schema import jobs
from moyin.store.sql import now

# The columns that a step of an open job reads or changes.
_STEP_COLUMNS = (jobs.c.id, jobs.c.owner, jobs.c.results, jobs.c.progress, jobs.c.children)


def write_progress(
    connection: sa.Connection, job_id: str, attempt: int, progress: Progress
) -> Progress | None:
    """Write the progress of a step; see `moyin.store.jobs.JobStore.record_progress`.

    Returns:
        The progress of the whole job, or None if the attempt has ended.
    """
    update = jobs.update().where(
        jobs.c.id == job_id,
        jobs.c.attempts == attempt,
        jobs.c.status.in_(OPEN_STATUSES),
        jobs.c.children.is_(None),
    )
    result = connection.execute(update.values(progress=to_plain(progress)))
    if result.rowcount == 1:
        return progress
    row = _lock_row(connection, job_id, attempt)
    if row is None or row["children"] is None:
        return None
    share = progress.value / progress.max if progress.max else 0.0
    return _write_job_progress(connection, row, progress.step, share)


def write_step(
    connection: sa.Connection, job_id: str, attempt: int, result: StepResult
) -> Progress | None:
    """Write the result of a finished step; see `moyin.store.jobs.JobStore.record_step`.

    Returns:
        The progress of the whole job, or None if the attempt has ended.
    """
    row = _lock_row(connection, job_id, attempt)
    if row is None:
        return None
    results = [r for r in row["results"] if r["index"] != result.index]
    results.append(to_plain(result))
    results.sort(key=lambda r: r["index"])
    connection.execute(
        jobs.update()
        .where(jobs.c.id == job_id)
        .values(
            results=results,
            # An outage of the database may have prevented the write of the start.
            status=JobStatus.RUNNING.value,
            started_at=sa.func.coalesce(jobs.c.started_at, now()),
        )
    )
    insert_artifacts(connection, result.artifacts, owner=row["owner"], job_id=job_id)
    return _write_job_progress(connection, {**row, "results": results}, result.index, None)


def compute_retry_progress(row: Row) -> Any:
    """Return the progress at the start of a new attempt, in which only finished steps count."""
    if row["children"] is None:
        return to_plain(Progress(step=len(row["results"])))
    return to_plain(Progress(value=len(row["results"]), max=row["children"]))


def _lock_row(connection: sa.Connection, job_id: str, attempt: int) -> Row | None:
    """Lock a job's row and return the columns that steps need.

    Returns:
        None if the job has ended, or if a later attempt has begun.
    """
    query = (
        sa.select(*_STEP_COLUMNS)
        .where(jobs.c.id == job_id, jobs.c.attempts == attempt, jobs.c.status.in_(OPEN_STATUSES))
        .with_for_update()
    )
    return connection.execute(query).mappings().first()


def _write_job_progress(
    connection: sa.Connection, row: Row, index: int, share: float | None
) -> Progress:
    """Compute and write the progress of a job, and return it.

    Args:
        index: the position of the step that has made progress.
        share: the finished part of that step (0 to 1), or None if the step has finished.
    """
    if row["children"] is None:
        job_progress = Progress(value=1, max=1, step=index)
    else:
        finished_indices = {str(result["index"]) for result in row["results"]}
        shares = dict(row["progress"].get("parts") or {})
        if share is not None:
            shares[str(index)] = min(1.0, max(0.0, share))
        shares = {
            child: child_share
            for child, child_share in shares.items()
            if child not in finished_indices
        }
        job_progress = Progress(
            value=round(len(finished_indices) + sum(shares.values()), 4),
            max=row["children"],
            step=index,
            parts=shares,
        )
    connection.execute(
        jobs.update().where(jobs.c.id == row["id"]).values(progress=to_plain(job_progress))
    )
    return job_progress
