"""The job list: a projection of the workflows, written by them, read by their owners.

Writes of an attempt carry its number, so that an attempt which was given up can no longer change
what its successor does, and the first final status stays.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
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
        children: how many a batch has.
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
    children: int | None = None


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
    children: int | None = None


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
            TooManyJobs: too many jobs are open.
        """
        values = {
            "id": new.id,
            "owner": new.owner,
            "kind": new.kind,
            "status": JobStatus.QUEUED.value,
            "spec": new.spec,
            "heads": [[kind.value, pool] for kind, pool in new.heads],
            "children": new.children,
            "results": [],
            "progress": to_plain(Progress(max=new.children or 1)),
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
                made = await connection.execute(jobs.insert().values(values).returning(jobs))
                job = job_of_row(made.mappings().one())
                await check_open_jobs(connection, new.limits)
        except IntegrityError:
            return await self._repeated(new), False
        return job, True

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
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """Newest first; ``cursor`` is what the page before returned as its second value.

        ``labels``: only jobs whose metadata hold all of them.
        """
        query = sa.select(jobs).where(jobs.c.owner == owner)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        for label, value in (labels or {}).items():
            query = query.where(jobs.c.metadata[label].as_string() == value)
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
            children=row["children"],
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

    async def start(self, job_id: str, attempt: int) -> Job | None:
        """Mark the queued attempt running; None when it is not queued, or not the current one."""
        return await self._change(
            job_id,
            jobs.c.attempts == attempt,
            jobs.c.status == JobStatus.QUEUED.value,
            status=JobStatus.RUNNING.value,
            dispatched=True,
            started_at=sa.func.coalesce(jobs.c.started_at, now()),
        )

    async def is_open(self, job_id: str, attempt: int) -> bool:
        """Whether the attempt is the current one and has not ended."""
        query = sa.select(jobs.c.id).where(
            jobs.c.id == job_id, jobs.c.attempts == attempt, jobs.c.status.in_(_OPEN)
        )
        async with self._database.reading() as connection:
            return (await connection.execute(query)).first() is not None

    async def progress(
        self, job_id: str, attempt: int | None, progress: Progress
    ) -> Progress | None:
        """Keep the newest progress for those who poll; ``attempt`` None: the current one.

        In a batch it is that of child number ``progress.step``.

        Returns:
            The job's progress; None when the attempt is over.
        """
        statement = _change(job_id, jobs.c.status.in_(_OPEN), jobs.c.children.is_(None))
        if attempt is not None:
            statement = statement.where(jobs.c.attempts == attempt)
        async with self._database.writing() as connection:
            changed = await connection.execute(
                statement.values(
                    progress=to_plain(progress),
                    begun_at=sa.func.coalesce(jobs.c.begun_at, now()),
                )
            )
            if changed.rowcount == 1:
                return progress
            row = await _current(connection, job_id, attempt)
            if row is None or row["children"] is None:
                return None
            share = progress.value / progress.max if progress.max else 0.0
            return await _write_overall(connection, row, progress.step, share)

    async def record_step(self, job_id: str, attempt: int, result: StepResult) -> Progress | None:
        """Write the checkpoint of one finished step, once, with its artifacts.

        Returns:
            The job's progress; None when the attempt is over.
        """
        async with self._database.writing() as connection:
            row = await _current(connection, job_id, attempt)
            if row is None:
                return None
            results = [r for r in row["results"] if r["index"] != result.index]
            results.append(to_plain(result))
            results.sort(key=lambda r: r["index"])
            await connection.execute(
                jobs.update().where(jobs.c.id == job_id).values(results=results)
            )
            await insert_artifacts(connection, result.artifacts, owner=row["owner"], job_id=job_id)
            return await _write_overall(connection, {**row, "results": results}, result.index, None)

    async def finish(
        self,
        job_id: str,
        attempt: int,
        status: JobStatus,
        error: JobError | None,
        *,
        results: Sequence[StepResult] = (),
    ) -> Job | None:
        """Give the attempt its final status; the ended job only for the call that did it.

        Args:
            results: of all steps; none: those that were recorded stay as they are.
        """
        values: dict[str, Any] = {
            "status": status.value,
            "dispatched": True,
            "error": None if error is None else to_plain(error),
            "finished_at": now(),
        }
        if results:
            values["results"] = [to_plain(result) for result in results]
            values["progress"] = to_plain(Progress(value=1, max=1, step=results[-1].index))
        statement = _change(job_id, jobs.c.attempts == attempt, jobs.c.status.in_(_OPEN))
        async with self._database.writing() as connection:
            changed = await connection.execute(statement.values(values).returning(jobs))
            row = changed.mappings().first()
            if row is None:
                return None
            made = [artifact for result in results for artifact in result.artifacts]
            await insert_artifacts(connection, made, owner=row["owner"], job_id=job_id)
        return job_of_row(row)

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
                    progress=_without_parts(row),
                )
            )
        return await self.find(job_id)

    async def _repeated(self, new: NewJob) -> Job:
        row = None
        if new.idempotency_key is not None:
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

    async def _change(
        self, job_id: str, *conditions: sa.ColumnElement[bool], **values: Any
    ) -> Job | None:
        """The changed job; None when it does not meet the conditions."""
        statement = _change(job_id, *conditions).values(**values).returning(jobs)
        async with self._database.writing() as connection:
            row = (await connection.execute(statement)).mappings().first()
        return None if row is None else job_of_row(row)


def _change(job_id: str, *conditions: sa.ColumnElement[bool]) -> sa.Update:
    return jobs.update().where(jobs.c.id == job_id, *conditions)


async def _current(
    connection: AsyncConnection, job_id: str, attempt: int | None
) -> Mapping[Any, Any] | None:
    """What a step of an open job changes; None when it has ended or the attempt is not current."""
    columns = (jobs.c.id, jobs.c.owner, jobs.c.results, jobs.c.progress, jobs.c.children)
    query = (
        sa.select(*columns).where(jobs.c.id == job_id, jobs.c.status.in_(_OPEN)).with_for_update()
    )
    if attempt is not None:
        query = query.where(jobs.c.attempts == attempt)
    return (await connection.execute(query)).mappings().first()


async def _write_overall(
    connection: AsyncConnection, row: Mapping[Any, Any], index: int, share: float | None
) -> Progress:
    """Step ``index`` is done by ``share``; None: wholly. In a batch that is a part of the whole."""
    if row["children"] is None:
        overall = Progress(value=1, max=1, step=index)
    else:
        done = {str(result["index"]) for result in row["results"]}
        parts = dict(row["progress"].get("parts") or {})
        if share is not None:
            parts[str(index)] = min(1.0, max(0.0, share))
        parts = {child: part for child, part in parts.items() if child not in done}
        overall = Progress(
            value=round(len(done) + sum(parts.values()), 4),
            max=row["children"],
            step=index,
            parts=parts,
        )
    await connection.execute(
        jobs.update().where(jobs.c.id == row["id"]).values(progress=to_plain(overall))
    )
    return overall


def _without_parts(row: Mapping[Any, Any]) -> Any:
    """For another attempt: what was at work begins anew."""
    if row["children"] is None:
        return row["progress"]
    return to_plain(Progress(value=len(row["results"]), max=row["children"]))


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
        children=row["children"],
    )
