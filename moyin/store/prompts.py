"""Reads render jobs as ComfyUI's queue and history show them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobStatus, StepKind
from moyin.domain.prompt import build_channel_name
from moyin.store.job_rows import job_of_row
from moyin.store.schema import jobs
from moyin.store.sql import Database

__all__ = ["PromptStore", "submitted_by"]

_EVERY_PROMPT: sa.ColumnElement[bool] = sa.true()
_OPEN = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)
# The number of ids that every database accepts in one statement.
_CHUNK = 500


class PromptStore:
    """Reads render jobs of one owner or of one client's channel."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_open(
        self, owner: str, condition: sa.ColumnElement[bool] = _EVERY_PROMPT
    ) -> list[Job]:
        """Return queued and running renders, in the order in which they are likely to end.

        Args:
            condition: see `submitted_by`.
        """
        query = (
            sa.select(jobs)
            .where(_renders(owner), jobs.c.status.in_(_OPEN), condition)
            .order_by(jobs.c.begun_at.is_(None), jobs.c.priority, jobs.c.created_at, jobs.c.id)
        )
        return await self._jobs(query)

    async def count_open(self, owner: str) -> int:
        """Return the number of queued and running renders."""
        query = sa.select(sa.func.count()).where(_renders(owner), jobs.c.status.in_(_OPEN))
        return int(await self._database.read(lambda c: c.execute(query).scalar_one()))

    async def list_ended(
        self, owner: str, *, limit: int, offset: int | None = None, newest_first: bool = False
    ) -> list[Job]:
        """Return a part of the history.

        Args:
            offset: the position of the first render to return; None: return the newest ones.
            newest_first: whether ``offset`` counts from the newest render.
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
        """Return the owner's renders with these ids, in no order.

        Args:
            hidden: include those that were removed from the history.
        """
        renders: list[Job] = []
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            query = sa.select(jobs).where(_renders(owner), jobs.c.id.in_(part))
            renders += await self._jobs(query if hidden else query.where(jobs.c.hidden.is_(False)))
        return renders

    async def list_running(self, channel: str) -> list[Job]:
        """Return the renders of a client that a renderer has begun."""
        return await self._jobs(
            sa.select(jobs)
            .where(
                jobs.c.channel == channel,
                jobs.c.finished_at.is_(None),
                jobs.c.begun_at.is_not(None),
            )
            .order_by(jobs.c.begun_at)
        )

    async def list_ended_since(self, channel: str, moment: datetime) -> list[Job]:
        """Return the renders of a client that ended since ``moment``, earliest first."""
        return await self._jobs(
            sa.select(jobs)
            .where(jobs.c.channel == channel, jobs.c.finished_at >= moment)
            .order_by(jobs.c.finished_at)
        )

    async def hide(
        self,
        owner: str,
        ids: Sequence[str] | None,
        condition: sa.ColumnElement[bool] = _EVERY_PROMPT,
    ) -> None:
        """Remove ended renders (None: all) from the history; the jobs remain.

        Args:
            condition: see `submitted_by`.
        """
        change = jobs.update().values(hidden=True)
        change = change.where(_renders(owner), jobs.c.status.not_in(_OPEN), condition)
        async with self._database.writing() as connection:
            if ids is None:
                await connection.execute(change)
                return
            for start in range(0, len(ids), _CHUNK):
                part = ids[start : start + _CHUNK]
                await connection.execute(change.where(jobs.c.id.in_(part)))

    async def set_record(self, job_id: str, sha256: str, attempt: int | None) -> None:
        """Store the sha256 of the blob with ComfyUI's history entry of a job.

        Args:
            attempt: the attempt that made it, ignored if there is a later one; None: unknown.
        """
        change = jobs.update().where(jobs.c.id == job_id).values(record=sha256)
        if attempt is not None:
            change = change.where(jobs.c.attempts == attempt)
        await self._database.write(lambda c: c.execute(change))

    async def _jobs(self, query: sa.Select[Any]) -> list[Job]:
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        return [job_of_row(row) for row in rows]


def submitted_by(caller: Identity, client_id: str | None = None) -> sa.ColumnElement[bool]:
    """Return the condition for prompts that the caller submitted through ComfyUI's API.

    These are the prompts of the caller's key and of the caller's user through any key or session;
    with ``client_id``, those of that client of the tenant instead.
    """
    if client_id is not None:
        return sa.and_(
            jobs.c.comfyui, jobs.c.channel == build_channel_name(caller.owner, client_id)
        )
    own = jobs.c.key_id == caller.key_id
    if caller.user is not None:
        own = sa.or_(own, jobs.c.user_id == caller.user)
    return sa.and_(jobs.c.comfyui, own)


def _renders(owner: str) -> sa.ColumnElement[bool]:
    # ComfyUI has no batches of many renders, so they are not shown.
    return sa.and_(
        jobs.c.owner == owner, jobs.c.kind == StepKind.RENDER.value, jobs.c.children.is_(None)
    )
