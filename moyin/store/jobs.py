"""The job list: a projection of the workflows, written by them, read by their owners.

Writes of an attempt carry its number, so that an attempt which was given up can no longer change
what its successor does, and the first final status stays.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from moyin.domain.codec import from_plain, to_plain
from moyin.domain.identity import EVERYTHING, Identity
from moyin.domain.job import Job, JobError, JobStatus, Progress, StepKind, StepResult
from moyin.domain.limits import Limit
from moyin.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    PromptIdTaken,
)
from moyin.store.artifacts import insert_artifacts
from moyin.store.limits import check_open_jobs
from moyin.store.schema import jobs
from moyin.store.sql import Database, aware, now

__all__ = ["JobStore", "Launch", "NewJob", "job_of_row"]

_OPEN = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """A job to accept.

    Attributes:
        heads: kind and pool of every step, in order.
        fingerprint: digest of the request, to tell a repeat from a reused idempotency key.
        key_id, user, scopes: of who submits it; its steps run with these rights.
        limits: those of them that say how many jobs may be open.
        channel: see `moyin.domain.job.Job`.
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
    scopes: frozenset[str] = EVERYTHING
    limits: tuple[Limit, ...] = ()
    channel: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """All that starting the next attempt of a job needs."""

    job_id: str
    owner: str
    attempt: int
    priority: int
    spec: str
    heads: tuple[tuple[StepKind, str], ...]
    done: tuple[StepResult, ...]
    webhook: str | None
    deadline: datetime | None


class JobStore:
    """Job rows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        """Accept ``new``; returns the job and whether it was made now.

        The same owner and idempotency key with the same fingerprint give the job made before, and
        so do the same owner and id with the same spec.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            PromptIdTaken: the id belongs to another job, whoever owns that.
            RateLimited: too many jobs are open.
        """
        values = {
            "id": new.id,
            "owner": new.owner,
            "kind": new.kind,
            "status": JobStatus.QUEUED.value,
            "spec": new.spec,
            "heads": [[kind.value, pool] for kind, pool in new.heads],
            "results": [],
            "progress": to_plain(Progress()),
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
        }
        try:
            async with self._database.writing() as connection:
                await connection.execute(jobs.insert().values(values))
                await check_open_jobs(connection, new.limits)
        except IntegrityError:
            return await self._repeated(new), False
        return await self.find(new.id), True

    async def get(self, owner: str, job_id: str) -> Job:
        """The job, if ``owner`` owns it.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
        """
        job = job_of_row(await self._row(job_id))
        if job.owner != owner:
            raise _not_found(job_id)
        return job

    async def find(self, job_id: str) -> Job:
        """The job whoever owns it: for workers.

        Raises:
            JobNotFound: there is none.
        """
        return job_of_row(await self._row(job_id))

    async def submitter(self, job_id: str) -> Identity:
        """Who the job's steps act for, and what they may do.

        Raises:
            JobNotFound: there is none.
        """
        row = await self._row(job_id)
        return Identity(
            owner=row["owner"],
            key_id=row["key_id"] or "",
            scopes=frozenset(row["scopes"].split()),
            user=row["user_id"],
        )

    async def page(
        self,
        owner: str,
        *,
        status: JobStatus | None = None,
        kind: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """Newest first; ``cursor`` is what the page before returned as its second value."""
        query = sa.select(jobs).where(jobs.c.owner == owner)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if cursor is not None:
            created_at, job_id = _parse_cursor(cursor)
            query = query.where(
                sa.tuple_(jobs.c.created_at, jobs.c.id)
                < sa.tuple_(sa.literal(created_at, jobs.c.created_at.type), sa.literal(job_id))
            )
        query = query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        found = [job_of_row(row) for row in rows[:limit]]
        more = len(rows) > limit
        return found, _cursor(found[-1]) if more else None

    async def launch(self, job_id: str) -> Launch:
        """What the next attempt starts from.

        Raises:
            JobNotFound: there is none.
        """
        row = await self._row(job_id)
        return Launch(
            job_id=row["id"],
            owner=row["owner"],
            attempt=row["attempts"],
            priority=row["priority"],
            spec=row["spec"],
            heads=tuple((StepKind(kind), pool) for kind, pool in row["heads"]),
            done=_results(row),
            webhook=row["webhook"],
            deadline=aware(row["deadline"]),
        )

    async def mark_dispatched(self, job_id: str) -> None:
        """The workflow has been started: nothing for the sweeper any more."""
        await self._update(job_id, dispatched=True)

    async def undispatched(self, older_than: timedelta, limit: int = 100) -> list[str]:
        """Accepted jobs without a workflow, oldest first."""
        query = (
            sa.select(jobs.c.id)
            .where(
                jobs.c.dispatched.is_(False),
                jobs.c.created_at < now() - older_than,
                jobs.c.status.in_(_OPEN),
            )
            .order_by(jobs.c.created_at)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            return list((await connection.execute(query)).scalars())

    async def start(self, job_id: str, attempt: int) -> bool:
        """Mark the attempt running; False when it is over or not the current one."""
        return await self._update_attempt(
            job_id,
            attempt,
            status=JobStatus.RUNNING.value,
            dispatched=True,
            started_at=sa.func.coalesce(jobs.c.started_at, now()),
        )

    async def progress(self, job_id: str, attempt: int | None, progress: Progress) -> bool:
        """Keep the newest progress for those who poll; ``attempt`` None: the current one."""
        return await self._update_attempt(
            job_id,
            attempt,
            progress=to_plain(progress),
            begun_at=sa.func.coalesce(jobs.c.begun_at, now()),
        )

    async def record_step(self, job_id: str, attempt: int, result: StepResult) -> bool:
        """Write the checkpoint of one finished step, once, with its artifacts."""
        async with self._database.writing() as connection:
            row = await _current(connection, job_id, attempt)
            if row is None:
                return False
            results = [r for r in row["results"] if r["index"] != result.index]
            results.append(to_plain(result))
            done = Progress(value=1, max=1, step=result.index)
            await connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id)
                .values(results=sorted(results, key=lambda r: r["index"]), progress=to_plain(done))
            )
            await insert_artifacts(connection, result.artifacts, owner=row["owner"], job_id=job_id)
        return True

    async def finish(
        self, job_id: str, attempt: int, status: JobStatus, error: JobError | None
    ) -> bool:
        """Give the attempt its final status; True only for the call that did it."""
        return await self._update_attempt(
            job_id,
            attempt,
            status=status.value,
            dispatched=True,
            error=None if error is None else to_plain(error),
            finished_at=now(),
        )

    async def reopen(self, owner: str, job_id: str) -> Job:
        """Queue another attempt of a failed or cancelled job; finished steps stay finished.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobNotFinished: it is still queued or running.
            JobFinished: it has succeeded.
        """
        async with self._database.writing() as connection:
            query = sa.select(jobs).where(jobs.c.id == job_id, jobs.c.owner == owner)
            row = (await connection.execute(query)).mappings().first()
            if row is None:
                raise _not_found(job_id)
            if row["status"] in _OPEN:
                raise JobNotFinished(f"job {job_id} is {row['status']}; only an ended one retries")
            if row["status"] == JobStatus.SUCCEEDED.value:
                raise JobFinished(f"job {job_id} has succeeded; there is nothing to retry")
            await connection.execute(
                jobs.update()
                .where(jobs.c.id == job_id)
                .values(
                    status=JobStatus.QUEUED.value,
                    attempts=row["attempts"] + 1,
                    dispatched=False,
                    error=None,
                    finished_at=None,
                )
            )
        return await self.find(job_id)

    async def _repeated(self, new: NewJob) -> Job:
        query = sa.select(jobs).where(
            jobs.c.owner == new.owner, jobs.c.idempotency_key == new.idempotency_key
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            job = await self.find(new.id)
            if (job.owner, job.spec) != (new.owner, new.spec):
                raise PromptIdTaken(
                    "this prompt_id is taken; use a new one or none", field="prompt_id"
                )
            return job
        if row["fingerprint"] != new.fingerprint:
            raise IdempotencyMismatch(
                "this Idempotency-Key was used for another request; use a new key",
                field="Idempotency-Key",
            )
        return job_of_row(row)

    async def _row(self, job_id: str) -> Mapping[Any, Any]:
        async with self._database.reading() as connection:
            query = sa.select(jobs).where(jobs.c.id == job_id)
            row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise _not_found(job_id)
        return row

    async def _update(self, job_id: str, **values: Any) -> None:
        async with self._database.writing() as connection:
            await connection.execute(jobs.update().where(jobs.c.id == job_id).values(**values))

    async def _update_attempt(self, job_id: str, attempt: int | None, **values: Any) -> bool:
        """Change an open job; False when it has ended or ``attempt`` is not the current one."""
        statement = jobs.update().where(jobs.c.id == job_id, jobs.c.status.in_(_OPEN))
        if attempt is not None:
            statement = statement.where(jobs.c.attempts == attempt)
        async with self._database.writing() as connection:
            changed = await connection.execute(statement.values(**values))
        return changed.rowcount == 1


async def _current(
    connection: AsyncConnection, job_id: str, attempt: int
) -> Mapping[Any, Any] | None:
    query = (
        sa.select(jobs.c.owner, jobs.c.results)
        .where(jobs.c.id == job_id, jobs.c.attempts == attempt, jobs.c.status.in_(_OPEN))
        .with_for_update()
    )
    return (await connection.execute(query)).mappings().first()


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id!r}")


def _cursor(job: Job) -> str:
    plain = f"{job.created_at.isoformat()}_{job.id}"
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def _parse_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        plain = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        created_at, _, job_id = plain.partition("_")
        return datetime.fromisoformat(created_at), job_id
    except ValueError:
        raise InvalidRequest(
            "cursor must be the next_cursor of an earlier page", field="cursor"
        ) from None


def _results(row: Mapping[Any, Any]) -> tuple[StepResult, ...]:
    return tuple(from_plain(StepResult, result) for result in row["results"])


def job_of_row(row: Mapping[Any, Any]) -> Job:
    """The job in a whole row of the table ``jobs``."""
    created_at = aware(row["created_at"])
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
        started_at=aware(row["started_at"]),
        finished_at=aware(row["finished_at"]),
        begun_at=aware(row["begun_at"]),
        channel=row["channel"],
        record=row["record"],
    )
