"""Who is limited to what. What is used of it is counted in Valkey."""

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

__all__ = ["LimitStore", "check_open_jobs", "subjects_of"]

_NANO = 10**9
_LISTS = ("pools", "allowed_nodes", "denied_nodes")
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_OPEN = ("queued", "running")
_OPEN_JOBS_RETRY_SECONDS = 5
# The column of a job that says whether it counts against a subject.
_COUNTED = {"key": jobs.c.key_id, "user": jobs.c.user_id, "owner": jobs.c.owner}


def subjects_of(identity: Identity) -> list[str]:
    """Whose limits hold for the caller: the key's, the user's, the tenant's."""
    users = [f"user:{identity.user}"] if identity.user is not None else []
    return [f"key:{identity.key_id}", *users, f"owner:{identity.owner}"]


def check_open_jobs(connection: sa.Connection, found: Sequence[Limit]) -> None:
    """Raise when a job that was just inserted is one too many; its transaction then rolls back.

    A batch counts as many jobs as it has children.

    Who submits at the same time waits: SQLite has one writer anyway, PostgreSQL a lock a subject.

    Raises:
        TooManyJobs: naming the limit.
    """
    counted = sorted(
        (one for one in found if one.open_jobs is not None), key=lambda one: one.subject
    )
    for limit in counted:
        kind, _, name = limit.subject.partition(":")
        if connection.dialect.name == "postgresql":
            connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(limit.subject)))
            )
        query = (
            sa.select(sa.func.sum(sa.func.coalesce(jobs.c.children, 1)))
            .select_from(jobs)
            .where(_COUNTED[kind] == name, jobs.c.status.in_(_OPEN))
        )
        if (connection.execute(query).scalar_one() or 0) > (limit.open_jobs or 0):
            raise TooManyJobs(
                f"no more than {limit.open_jobs} jobs may be open, and each child of a batch is "
                f"one (limit of the {kind})",
                retry_after=_OPEN_JOBS_RETRY_SECONDS,
                details={"limit": "open_jobs", "of": kind},
            )


class LimitStore:
    """Rows of limits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, subjects: Sequence[str]) -> tuple[Limit, ...]:
        """The limits that there are, in the order of ``subjects``."""
        query = sa.select(limits).where(limits.c.subject.in_(subjects))
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        found = {row["subject"]: _limit(row) for row in rows}
        return tuple(found[subject] for subject in subjects if subject in found)

    async def set(self, limit: Limit, *, within: Transaction | None = None) -> None:
        """Put ``limit`` in the place of the subject's former one."""
        async with self._database.within(within) as connection:
            await connection.run_sync(partial(_replace, _values(limit)))

    async def clear(self, subject: str, *, within: Transaction | None = None) -> None:
        async with self._database.within(within) as connection:
            await connection.execute(limits.delete().where(limits.c.subject == subject))


def _replace(row: dict[str, Any], connection: sa.Connection) -> None:
    """In one step: of two who delete what was there, the second would find its place taken."""
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
