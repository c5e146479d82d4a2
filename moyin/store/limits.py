"""Stores the limits of keys, users and tenants. Valkey counts what is used of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.errors import TooManyJobs
from moyin.store.schema import jobs, limits
from moyin.store.sql import Database, Transaction

__all__ = ["LimitStore", "check_open_jobs", "list_limit_subjects"]

_NANO = 10**9
_LISTS = ("pools", "allowed_nodes", "denied_nodes")
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_OPEN = ("queued", "running")
_OPEN_JOBS_RETRY_SECONDS = 5
# The column of a job that holds the subject of each kind.
_SUBJECT_COLUMNS = {"key": jobs.c.key_id, "user": jobs.c.user_id, "owner": jobs.c.owner}


def list_limit_subjects(identity: Identity) -> list[str]:
    """Return the subjects whose limits apply to a caller: its key, its user, its tenant."""
    users = [f"user:{identity.user}"] if identity.user is not None else []
    return [f"key:{identity.key_id}", *users, f"owner:{identity.owner}"]


def check_open_jobs(connection: sa.Connection, applicable: Sequence[Limit]) -> None:
    """Refuse a job just inserted that exceeds a limit on open jobs; the transaction rolls back.

    A batch counts as many jobs as it has children. Concurrent submissions wait: SQLite has only one
    writer, and on PostgreSQL each subject has a lock.

    Raises:
        TooManyJobs: naming the limit.
    """
    # Sorted, so that concurrent transactions take the locks in the same order.
    limited = sorted(
        (limit for limit in applicable if limit.open_jobs is not None),
        key=lambda limit: limit.subject,
    )
    for limit in limited:
        kind, _, name = limit.subject.partition(":")
        if connection.dialect.name == "postgresql":
            connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(limit.subject)))
            )
        query = (
            sa.select(sa.func.sum(sa.func.coalesce(jobs.c.children, 1)))
            .select_from(jobs)
            .where(_SUBJECT_COLUMNS[kind] == name, jobs.c.status.in_(_OPEN))
        )
        if (connection.execute(query).scalar_one() or 0) > (limit.open_jobs or 0):
            raise TooManyJobs(
                f"at most {limit.open_jobs} jobs may be open, counting each child of a batch "
                f"(limit of the {kind})",
                retry_after=_OPEN_JOBS_RETRY_SECONDS,
                details={"limit": "open_jobs", "of": kind},
            )


class LimitStore:
    """Reads and writes rows of limits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_for(self, subjects: Sequence[str]) -> tuple[Limit, ...]:
        """Return the limits of those subjects that have one, in the order of ``subjects``."""
        query = sa.select(limits).where(limits.c.subject.in_(subjects))
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        by_subject = {row["subject"]: _limit(row) for row in rows}
        return tuple(by_subject[subject] for subject in subjects if subject in by_subject)

    async def set(self, limit: Limit, *, within: Transaction | None = None) -> None:
        """Replace the limit of its subject."""
        async with self._database.within(within) as connection:
            await connection.run_sync(partial(_replace, _values(limit)))

    async def clear(self, subject: str, *, within: Transaction | None = None) -> None:
        """Delete the limit of a subject."""
        async with self._database.within(within) as connection:
            await connection.execute(limits.delete().where(limits.c.subject == subject))


def _replace(row: dict[str, Any], connection: sa.Connection) -> None:
    """Insert or update in one statement; concurrent deletes and inserts would conflict."""
    insert = _INSERT[connection.dialect.name](limits).values(row)
    connection.execute(insert.on_conflict_do_update(index_elements=["subject"], set_=row))


def _values(limit: Limit) -> dict[str, Any]:
    return {
        "subject": limit.subject,
        "requests_per_minute": limit.requests_per_minute,
        "tokens_per_minute": limit.tokens_per_minute,
        "concurrent_requests": limit.concurrent_requests,
        "open_jobs": limit.open_jobs,
        "best_priority": limit.best_priority,
        "nano_usd_per_day": _nano(limit.usd_per_day),
        "nano_usd_per_month": _nano(limit.usd_per_month),
        **{name: getattr(limit, name) for name in _LISTS},
    }


def _limit(row: Mapping[Any, Any]) -> Limit:
    return Limit(
        subject=row["subject"],
        requests_per_minute=row["requests_per_minute"],
        tokens_per_minute=row["tokens_per_minute"],
        concurrent_requests=row["concurrent_requests"],
        open_jobs=row["open_jobs"],
        best_priority=row["best_priority"],
        usd_per_day=_usd(row["nano_usd_per_day"]),
        usd_per_month=_usd(row["nano_usd_per_month"]),
        **{name: None if row[name] is None else tuple(row[name]) for name in _LISTS},
    )


def _nano(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd * _NANO)


def _usd(nano: int | None) -> Decimal | None:
    return None if nano is None else Decimal(nano) / _NANO
