"""Stores the limits of keys, users and tenants, and enforces their limits on open jobs.

For limits on requests, tokens and money, `moyin.access.gatekeeper.limits` counts them in Valkey.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.errors import TooManyJobs
from moyin.store.job_rows import OPEN_STATUSES
from moyin.store.schema import inherited_limits, jobs, limits
from moyin.store.sql import Database, Transaction

_NANO = 10**9
_NUMBERS = (
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "open_jobs",
    "best_priority",
    "graph_nodes",
    "graph_links",
    "graph_bytes",
)
_LISTS = ("pools", "allowed_nodes", "denied_nodes")
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_OPEN_JOBS_RETRY_SECONDS = 5
# The column of the table `jobs` with the name of the subject, by the kind of the subject.
_SUBJECT_COLUMNS = {"key": jobs.c.key_id, "user": jobs.c.user_id, "owner": jobs.c.owner}


def list_limit_subjects(identity: Identity) -> list[str]:
    """Return the key, user and tenant of a caller, whose limits apply to it.

    A key also has the limits that it has inherited from the key that created it.
    """
    users = [f"user:{identity.user}"] if identity.user is not None else []
    return [f"key:{identity.key_id}", *users, f"owner:{identity.owner}"]


def enforce_open_job_limits(connection: sa.Connection, applicable_limits: Sequence[Limit]) -> None:
    """Raise `TooManyJobs` if a new job exceeds a limit; this rolls back the transaction.

    Each render of a batch counts as a job. Concurrent transactions wait for each other: SQLite has
    only one writer, and on PostgreSQL a lock is taken for the subject of each limit.
    """
    # Sorted, so that concurrent transactions acquire the locks in the same order.
    job_limits = sorted(
        (limit for limit in applicable_limits if limit.open_jobs is not None),
        key=lambda limit: limit.subject,
    )
    for limit in job_limits:
        kind = limit.subject.partition(":")[0]
        if connection.dialect.name == "postgresql":
            connection.execute(
                sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(limit.subject)))
            )
        query = (
            sa.select(sa.func.sum(sa.func.coalesce(jobs.c.children, 1)))
            .select_from(jobs)
            .where(_is_limited_job(limit.subject), jobs.c.status.in_(OPEN_STATUSES))
        )
        if (connection.execute(query).scalar_one() or 0) > (limit.open_jobs or 0):
            raise TooManyJobs(
                f"at most {limit.open_jobs} jobs of the {kind} may be open, counting each render of a "
                f"batch; wait until jobs end",
                retry_after=_OPEN_JOBS_RETRY_SECONDS,
                details={"limit": "open_jobs", "of": kind},
            )


def _is_limited_job(subject: str) -> sa.ColumnElement[bool]:
    """Return the condition for jobs of a subject, and of the keys that inherit its limits."""
    kind, _, subject_id = subject.partition(":")
    condition = _SUBJECT_COLUMNS[kind] == subject_id
    if kind == "owner":
        return condition
    heirs = sa.select(inherited_limits.c.key_id).where(inherited_limits.c.subject == subject)
    return condition | jobs.c.key_id.in_(heirs)


class LimitStore:
    """Reads and writes limits by their subject, which is a key, a user or a tenant."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_for(self, subjects: Sequence[str]) -> tuple[Limit, ...]:
        """Return the limits of subjects in the given order, without subjects that have none."""
        query = sa.select(limits).where(limits.c.subject.in_(subjects))
        rows = await self._database.fetch_all(query)
        limits_by_subject = {row["subject"]: _parse_limit(row) for row in rows}
        return tuple(
            limits_by_subject[subject] for subject in subjects if subject in limits_by_subject
        )

    async def list_for_callers(self, callers: Collection[Identity]) -> list[tuple[Limit, ...]]:
        """Return the limits that apply to each caller, inherited ones included."""
        direct_subjects = {subject for caller in callers for subject in list_limit_subjects(caller)}
        key_ids = {caller.key_id for caller in callers if not caller.is_session}
        inherited = (
            sa.select(inherited_limits.c.key_id, limits)
            .join(limits, limits.c.subject == inherited_limits.c.subject)
            .where(inherited_limits.c.key_id.in_(key_ids))
            .order_by(limits.c.subject)
        )
        limits_by_subject = {
            limit.subject: limit for limit in await self.list_for(sorted(direct_subjects))
        }
        inherited_by_key: dict[str, list[Limit]] = {}
        for row in await self._database.fetch_all(inherited) if key_ids else ():
            inherited_by_key.setdefault(row["key_id"], []).append(_parse_limit(row))
        return [
            _join_limits(caller, limits_by_subject, inherited_by_key.get(caller.key_id, ()))
            for caller in callers
        ]

    async def set(self, limit: Limit, *, transaction: Transaction | None = None) -> None:
        """Store the limits of the subject ``limit.subject``; they replace its earlier limits."""
        async with self._database.join_or_begin(transaction) as connection:
            await connection.run_sync(partial(_insert_or_replace, _build_row(limit)))

    async def clear(self, subject: str, *, transaction: Transaction | None = None) -> None:
        """Delete the limits of a subject: a key, a user or a tenant."""
        await self._database.execute(
            limits.delete().where(limits.c.subject == subject), transaction=transaction
        )


def _join_limits(
    caller: Identity, limits_by_subject: Mapping[str, Limit], inherited: Iterable[Limit]
) -> tuple[Limit, ...]:
    """Return the limits of a caller's key, user and tenant, then inherited ones, each once."""
    subjects = list_limit_subjects(caller)
    applicable = {subject: limits_by_subject.get(subject) for subject in subjects}
    applicable |= {limit.subject: limit for limit in inherited}
    return tuple(limit for limit in applicable.values() if limit is not None)


def _insert_or_replace(row: dict[str, Any], connection: sa.Connection) -> None:
    """Insert or replace a row in one statement; separate ones could conflict with other writers."""
    insert = _INSERT[connection.dialect.name](limits).values(row)
    connection.execute(insert.on_conflict_do_update(index_elements=["subject"], set_=row))


def _build_row(limit: Limit) -> dict[str, Any]:
    return {
        "subject": limit.subject,
        "nano_usd_per_day": _to_nano(limit.usd_per_day),
        "nano_usd_per_month": _to_nano(limit.usd_per_month),
        **{name: getattr(limit, name) for name in (*_NUMBERS, *_LISTS)},
    }


def _parse_limit(row: Mapping[Any, Any]) -> Limit:
    values: dict[str, Any] = {name: row[name] for name in _NUMBERS}
    values |= {name: None if row[name] is None else tuple(row[name]) for name in _LISTS}
    return Limit(
        subject=row["subject"],
        usd_per_day=_to_usd(row["nano_usd_per_day"]),
        usd_per_month=_to_usd(row["nano_usd_per_month"]),
        **values,
    )


def _to_nano(usd: Decimal | None) -> int | None:
    return None if usd is None else int(usd * _NANO)


def _to_usd(nano_usd: int | None) -> Decimal | None:
    return None if nano_usd is None else Decimal(nano_usd) / _NANO
