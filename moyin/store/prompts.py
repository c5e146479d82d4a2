"""Render jobs as ComfyUI's queue and history show them: rows of `moyin.store.jobs`, read anew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobStatus, StepKind
from moyin.domain.prompt import channel_name
from moyin.store.job_rows import job_of_row
from moyin.store.schema import jobs
from moyin.store.sql import Database

__all__ = ["PromptStore", "asked_by"]

_EVERY_PROMPT: sa.ColumnElement[bool] = sa.true()

_OPEN = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
# As many ids as any database takes in one statement.
_CHUNK = 500


class PromptStore:
    """Render jobs, always read through their owner or their client's channel."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, owner: str, only: sa.ColumnElement[bool] = _EVERY_PROMPT) -> list[Job]:
        """What waits or runs, in the order in which it may be expected to end.

        Args:
            only: see `asked_by`.
        """
        query = (
            sa.select(jobs)
            .where(_renders(owner), jobs.c.status.in_(_OPEN), only)
            .order_by(jobs.c.begun_at.is_(None), jobs.c.priority, jobs.c.created_at, jobs.c.id)
        )
        return await self._jobs(query)

    async def open_count(self, owner: str) -> int:
        query = sa.select(sa.func.count()).where(_renders(owner), jobs.c.status.in_(_OPEN))
        return int(await self._database.read(lambda c: c.execute(query).scalar_one()))

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

    async def get(self, owner: str, ids: Sequence[str], *, hidden: bool = False) -> list[Job]:
        """Those of the renders that are the owner's, in no order.

        Args:
            hidden: also those that have been taken out of the history.
        """
        found: list[Job] = []
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            query = sa.select(jobs).where(_renders(owner), jobs.c.id.in_(part))
            found += await self._jobs(query if hidden else query.where(jobs.c.hidden.is_(False)))
        return found

    async def running(self, channel: str) -> list[Job]:
        """What is rendered for a client."""
        return await self._jobs(
            sa.select(jobs)
            .where(
                jobs.c.channel == channel,
                jobs.c.finished_at.is_(None),
                jobs.c.begun_at.is_not(None),
            )
            .order_by(jobs.c.begun_at)
        )

    async def ended_since(self, channel: str, moment: datetime) -> list[Job]:
        """What has ended for a client, the first first."""
        return await self._jobs(
            sa.select(jobs)
            .where(jobs.c.channel == channel, jobs.c.finished_at >= moment)
            .order_by(jobs.c.finished_at)
        )

    async def hide(
        self,
        owner: str,
        ids: Sequence[str] | None,
        only: sa.ColumnElement[bool] = _EVERY_PROMPT,
    ) -> None:
        """Take ended renders (all of them: None) out of the history. They stay jobs.

        Args:
            only: see `asked_by`.
        """
        change = jobs.update().values(hidden=True)
        change = change.where(_renders(owner), jobs.c.status.not_in(_OPEN), only)
        async with self._database.writing() as connection:
            if ids is None:
                await connection.execute(change)
                return
            for start in range(0, len(ids), _CHUNK):
                part = ids[start : start + _CHUNK]
                await connection.execute(change.where(jobs.c.id.in_(part)))

    async def record(self, job_id: str, sha256: str, attempt: int | None) -> None:
        """Keep which blob holds what ComfyUI's history says of it.

        Args:
            attempt: whose prompt it was, nothing if that has a successor; None: not known.
        """
        change = jobs.update().where(jobs.c.id == job_id).values(record=sha256)
        if attempt is not None:
            change = change.where(jobs.c.attempts == attempt)
        await self._database.write(lambda c: c.execute(change))

    async def _jobs(self, query: sa.Select[Any]) -> list[Job]:
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [job_of_row(row) for row in rows]


def asked_by(caller: Identity, client_id: str | None = None) -> sa.ColumnElement[bool]:
    """Return the condition for prompts that came through ComfyUI's API and are the caller's own.

    They are those of the caller's key and of the caller's account, whichever key or session that
    used; with ``client_id`` instead those of one client of the tenant's.
    """
    if client_id is not None:
        return sa.and_(jobs.c.comfyui, jobs.c.channel == channel_name(caller.owner, client_id))
    own = jobs.c.key_id == caller.key_id
    if caller.user is not None:
        own = sa.or_(own, jobs.c.user_id == caller.user)
    return sa.and_(jobs.c.comfyui, own)


def _renders(owner: str) -> sa.ColumnElement[bool]:
    # A batch is a render in our own list, and many in ComfyUI's words: it is not shown as one.
    return sa.and_(
        jobs.c.owner == owner, jobs.c.kind == StepKind.RENDER.value, jobs.c.children.is_(None)
    )
