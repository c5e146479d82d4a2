"""Deletes the rows of ended jobs at the request of their owners, in the caller's transaction.

Each deleted job leaves a row in `deleted_jobs`, by which `moyin.store.deletion_pruning` finds and
deletes its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from moyin.store.job_rows import OPEN_STATUSES
from moyin.store.schema import artifacts, deleted_jobs, jobs
from moyin.store.sql import now

_KEPT_COLUMNS = ("id", "kind", "spec", "record", "results")
_IS_DELETED = sa.select(deleted_jobs.c.id).where(deleted_jobs.c.id == sa.bindparam("job_id"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """The ids of the deleted jobs, and of the jobs that were kept because they are open."""

    deleted: Sequence[str]
    still_open: Sequence[str]


def delete_ended_jobs(connection: sa.Connection, owner: str, job_ids: Sequence[str]) -> Deletion:
    """Delete those jobs among ``job_ids`` that belong to the owner and have ended.

    Their artifacts are only hidden, because open jobs that use them still read them.

    Returns:
        The ids of the deleted jobs, and of the owner's jobs that are still open.
    """
    query = (
        sa.select(jobs.c.id, jobs.c.owner, jobs.c.status)
        # Without the owner: SQLite would otherwise read the index of all the owner's jobs.
        .where(jobs.c.id.in_(job_ids))
        .order_by(jobs.c.id)
        .with_for_update()
    )
    statuses = {row.id: row.status for row in connection.execute(query) if row.owner == owner}
    ended_ids = [job_id for job_id, status in statuses.items() if status not in OPEN_STATUSES]
    open_ids = [job_id for job_id, status in statuses.items() if status in OPEN_STATUSES]
    if not ended_ids:
        return Deletion(deleted=(), still_open=open_ids)
    deleted_at = sa.literal(now(), deleted_jobs.c.deleted_at.type)
    # Where an id was used again in spite of its deletion, the later job counts.
    connection.execute(deleted_jobs.delete().where(deleted_jobs.c.id.in_(ended_ids)))
    kept_rows = sa.select(*(jobs.c[name] for name in _KEPT_COLUMNS), deleted_at).where(
        jobs.c.id.in_(ended_ids)
    )
    connection.execute(deleted_jobs.insert().from_select([*_KEPT_COLUMNS, "deleted_at"], kept_rows))
    outputs = artifacts.update().where(
        artifacts.c.job_id.in_(ended_ids), artifacts.c.deleted_at.is_(None)
    )
    connection.execute(outputs.values(job_id=None, deleted_at=deleted_at))
    connection.execute(jobs.delete().where(jobs.c.id.in_(ended_ids)))
    return Deletion(deleted=ended_ids, still_open=open_ids)


def is_deleted(connection: sa.Connection, job_id: str) -> bool:
    """Return whether the id belonged to a job that was deleted."""
    return connection.execute(_IS_DELETED, {"job_id": job_id}).first() is not None
