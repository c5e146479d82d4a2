"""Queries render jobs for the queue and the history in ComfyUI's API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from moyin.domain.identity import Identity
from moyin.domain.job import Job, StepKind
from moyin.domain.prompt import build_channel_name, derive_job_id
from moyin.store.job_rows import OPEN_STATUSES, parse_job
from moyin.store.schema import jobs
from moyin.store.sql import Database

_ANY_RENDER: sa.ColumnElement[bool] = sa.true()
# A number of ids that SQLite and PostgreSQL accept in one statement.
_CHUNK = 250


class PromptStore:
    """Queries the render jobs of a tenant, or of one ComfyUI client, which a channel identifies."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_open(
        self, owner: str, condition: sa.ColumnElement[bool] = _ANY_RENDER
    ) -> list[Job]:
        """Return open renders that match ``condition``, ordered by their likely end."""
        query = (
            sa.select(jobs)
            .where(_is_render_of(owner), jobs.c.status.in_(OPEN_STATUSES), condition)
            .order_by(jobs.c.started_at.is_(None), jobs.c.priority, jobs.c.created_at, jobs.c.id)
        )
        return await self._fetch_jobs(query)

    async def count_open(self, owner: str) -> int:
        """Return the number of the owner's queued and running renders."""
        query = sa.select(sa.func.count()).where(
            _is_render_of(owner), jobs.c.status.in_(OPEN_STATUSES)
        )
        return int(await self._database.fetch_value(query))

    async def list_ended(
        self, owner: str, *, limit: int, offset: int | None = None, newest_first: bool = False
    ) -> list[Job]:
        """Return a page of the owner's history: the renders that ended and are not hidden.

        Args:
            offset: the number of renders to skip, counted in the order of the page. If None, the
                page begins with the newest render, even if ``newest_first`` is False.
            newest_first: True to begin with the newest render, False with the oldest.
        """
        is_descending = newest_first or offset is None
        columns = (jobs.c.finished_at, jobs.c.id)
        query = (
            sa.select(jobs)
            .where(
                _is_render_of(owner), jobs.c.status.not_in(OPEN_STATUSES), jobs.c.hidden.is_(False)
            )
            .order_by(*(c.desc() if is_descending else c for c in columns))
            .limit(limit)
            .offset(offset or 0)
        )
        return await self._fetch_jobs(query)

    async def get(self, owner: str, ids: Sequence[str], *, with_hidden: bool = False) -> list[Job]:
        """Return the owner's renders with these ids, which are those of jobs or chosen prompt ids.

        ``with_hidden`` includes those that were removed from the history.
        """
        renders: list[Job] = []
        for chunk in _list_possible_ids(owner, ids):
            query = sa.select(jobs).where(_is_render_of(owner), jobs.c.id.in_(chunk))
            renders += await self._fetch_jobs(
                query if with_hidden else query.where(jobs.c.hidden.is_(False))
            )
        return renders

    async def list_running(self, channel: str) -> list[Job]:
        """Return the running renders of a client, in the order in which they started to run."""
        return await self._fetch_jobs(
            sa.select(jobs)
            .where(
                jobs.c.channel == channel,
                jobs.c.finished_at.is_(None),
                jobs.c.started_at.is_not(None),
            )
            .order_by(jobs.c.started_at)
        )

    async def list_ended_since(self, channel: str, since: datetime) -> list[Job]:
        """Return the renders of a client that ended at the time ``since`` or later, oldest first."""
        return await self._fetch_jobs(
            sa.select(jobs)
            .where(jobs.c.channel == channel, jobs.c.finished_at >= since)
            .order_by(jobs.c.finished_at)
        )

    async def hide(
        self, owner: str, ids: Sequence[str] | None, condition: sa.ColumnElement[bool] = _ANY_RENDER
    ) -> None:
        """Remove ended renders from the history: those with ``ids``, or all if it is None.

        Only renders that match ``condition`` are removed.
        """
        update = jobs.update().values(hidden=True)
        update = update.where(_is_render_of(owner), jobs.c.status.not_in(OPEN_STATUSES), condition)
        async with self._database.writing() as connection:
            if ids is None:
                await connection.execute(update)
                return
            for chunk in _list_possible_ids(owner, ids):
                await connection.execute(update.where(jobs.c.id.in_(chunk)))

    async def set_record(self, job_id: str, sha256: str, attempt: int | None) -> None:
        """Store the SHA-256 of the blob with ComfyUI's history entry of a job.

        Args:
            attempt: the attempt of the entry, which is not stored if a later attempt exists; if
                None, the entry is stored in any case.
        """
        update = jobs.update().where(jobs.c.id == job_id).values(record=sha256)
        if attempt is not None:
            update = update.where(jobs.c.attempts == attempt)
        await self._database.write(lambda c: c.execute(update))

    async def _fetch_jobs(self, query: sa.Select[Any]) -> list[Job]:
        return [parse_job(row) for row in await self._database.fetch_all(query)]


def build_submitter_condition(
    caller: Identity, client_id: str | None = None
) -> sa.ColumnElement[bool]:
    """Return the SQL condition for prompts that a caller submitted through ComfyUI's API.

    Those are the prompts of the caller's key, and of the caller's user with any key or session.
    With a ``client_id``, they are the prompts of that client of the tenant instead.
    """
    if client_id is not None:
        return sa.and_(
            jobs.c.comfyui, jobs.c.channel == build_channel_name(caller.owner, client_id)
        )
    is_own = jobs.c.key_id == caller.key_id
    if caller.user is not None:
        is_own = sa.or_(is_own, jobs.c.user_id == caller.user)
    return sa.and_(jobs.c.comfyui, is_own)


def _list_possible_ids(owner: str, ids: Sequence[str]) -> Iterator[list[str]]:
    """Yield, in chunks, the ids of the jobs that may be meant by ids or by chosen prompt ids."""
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        yield [*chunk, *(derive_job_id(owner, prompt_id) for prompt_id in chunk)]


def _is_render_of(owner: str) -> sa.ColumnElement[bool]:
    # Batches are excluded, since ComfyUI's API has no prompts with many renders.
    return sa.and_(
        jobs.c.owner == owner, jobs.c.kind == StepKind.RENDER.value, jobs.c.children.is_(None)
    )
