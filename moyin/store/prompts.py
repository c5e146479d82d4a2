"""Render jobs as ComfyUI's queue and history show them: rows of `moyin.store.jobs`, read anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa

from moyin.domain.job import Job, JobStatus, StepKind
from moyin.store.jobs import job_of_row
from moyin.store.schema import jobs
from moyin.store.sql import Database

__all__ = ["PromptStore"]

_OPEN = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
# As many ids as any database takes in one statement.
_CHUNK = 500


class PromptStore:
    """Render jobs, always read through their owner or their client's channel."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, owner: str) -> list[Job]:
        """What waits or runs, in the order in which it may be expected to end."""
        query = (
            sa.select(jobs)
            .where(_renders(owner), jobs.c.status.in_(_OPEN))
            .order_by(jobs.c.begun_at.is_(None), jobs.c.priority, jobs.c.created_at, jobs.c.id)
        )
        return await self._jobs(query)

    async def open_count(self, owner: str) -> int:
        query = sa.select(sa.func.count()).where(_renders(owner), jobs.c.status.in_(_OPEN))
        async with self._database.reading() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def ended(
        self, owner: str, *, limit: int, offset: int | None = None, newest_first: bool = False
    ) -> list[Job]:
        """A part of the history: from place ``offset`` on; None: the newest.

        Args:
            newest_first: the order that ``offset`` counts in.
        """
        descending = newest_first or offset is None
        columns = (jobs.c.finished_at, jobs.c.id)
        query = (
            sa.select(jobs)
            .where(_renders(owner), jobs.c.status.not_in(_OPEN), jobs.c.hidden.is_(False))
            .order_by(*(c.desc() if descending else c for c in columns))
            .limit(limit)
            .offset(offset or 0)
        )
        return await self._jobs(query)

    async def get(self, owner: str, ids: Sequence[str]) -> list[Job]:
        """Those of the renders that are the owner's and not hidden, in no order."""
        found: list[Job] = []
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            found += await self._jobs(
                sa.select(jobs).where(
                    _renders(owner), jobs.c.id.in_(part), jobs.c.hidden.is_(False)
                )
            )
        return found

    async def of_channel(self, channel: str, also: Collection[str] = ()) -> list[Job]:
        """What a client has open, and what has become of ``also``."""
        open_or_asked = sa.or_(jobs.c.status.in_(_OPEN), jobs.c.id.in_(list(also)))
        query = sa.select(jobs).where(jobs.c.channel == channel, open_or_asked)
        return await self._jobs(query.order_by(jobs.c.created_at))

    async def hide(self, owner: str, ids: Sequence[str] | None) -> None:
        """Take ended renders (all of them: None) out of the history. They stay jobs."""
        change = jobs.update().values(hidden=True)
        change = change.where(_renders(owner), jobs.c.status.not_in(_OPEN))
        async with self._database.writing() as connection:
            if ids is None:
                await connection.execute(change)
                return
            for start in range(0, len(ids), _CHUNK):
                part = ids[start : start + _CHUNK]
                await connection.execute(change.where(jobs.c.id.in_(part)))

    async def record(self, job_id: str, sha256: str) -> None:
        """Keep which blob holds what ComfyUI's history says of it."""
        async with self._database.writing() as connection:
            await connection.execute(jobs.update().where(jobs.c.id == job_id).values(record=sha256))

    async def _jobs(self, query: sa.Select[Any]) -> list[Job]:
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [job_of_row(row) for row in rows]


def _renders(owner: str) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.owner == owner, jobs.c.kind == StepKind.RENDER.value)
