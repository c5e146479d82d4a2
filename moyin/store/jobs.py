"""The job list: a projection of the workflows, written by them, read by their owners.

Writes of an attempt carry its number, so that an attempt which was given up can no longer change
what its successor does, and the first final status stays.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.identity import Identity
from moyin.domain.job import Canceller, Job, JobError, JobStatus, Progress, StepResult
from moyin.domain.limits import Limit
from moyin.domain.serialization import to_plain
from moyin.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    PromptIdTaken,
)
from moyin.store.artifacts import insert_artifacts
from moyin.store.job_rows import OPEN, Launch, NewJob, Row, job_of_row, launch_of_row, new_row
from moyin.store.job_steps import progress_anew, write_progress, write_step
from moyin.store.limits import check_open_jobs
from moyin.store.schema import jobs
from moyin.store.sql import Database, now

__all__ = ["JobStore", "Launch", "NewJob"]

# Each of every job: made once, because making a statement costs more than running it.
_ATTEMPT = (jobs.c.id == sa.bindparam("job_id"), jobs.c.attempts == sa.bindparam("attempt"))
_BY_ID = sa.select(jobs).where(jobs.c.id == sa.bindparam("job_id"))
_INSERT = jobs.insert()
_START = (
    jobs.update()
    .where(*_ATTEMPT, jobs.c.status == JobStatus.QUEUED.value)
    .values(
        status=JobStatus.RUNNING.value,
        dispatched=True,
        started_at=sa.func.coalesce(
            jobs.c.started_at, sa.bindparam("moment", type_=jobs.c.started_at.type)
        ),
    )
    .returning(jobs)
)
_FINISH = jobs.update().where(*_ATTEMPT, jobs.c.status.in_(OPEN)).returning(jobs)
_NOTE_CANCELLER = jobs.update().where(
    *_ATTEMPT, jobs.c.status.in_(OPEN), jobs.c.cancelled_by.is_(None)
)
_IS_OPEN = sa.select(jobs.c.id).where(*_ATTEMPT, jobs.c.status.in_(OPEN))


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
        row = new_row(new)

        def create(connection: sa.Connection) -> None:
            connection.execute(_INSERT, row)
            check_open_jobs(connection, new.limits)

        try:
            await self._database.write(create)
        except IntegrityError:
            return await self._repeated(new), False
        return job_of_row(row), True

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

    async def by_key(self, owner: str, idempotency_key: str) -> Job | None:
        """The job that was accepted under the owner's key."""
        row = await self._keyed(owner, idempotency_key)
        return None if row is None else job_of_row(row)

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
        rows = await self._database.read(lambda c: c.execute(query).mappings().all())
        found = [job_of_row(row) for row in rows[:limit]]
        more = len(rows) > limit
        return found, _cursor(found[-1]) if more else None

    async def launch(self, job_id: str) -> Launch:
        """What the next attempt starts from.

        Raises:
            JobNotFound: there is none.
        """
        return launch_of_row(await self._row(job_id))

    async def mark_dispatched(self, *job_ids: str, attempt: int = 1) -> None:
        """The workflows of this attempt have been started: nothing for the sweeper any more."""
        change = jobs.update().where(
            jobs.c.id.in_(job_ids), jobs.c.attempts == attempt, jobs.c.dispatched.is_(False)
        )
        await self._database.write(lambda c: c.execute(change.values(dispatched=True)))

    async def undispatched(
        self, older_than: timedelta, limit: int = 100
    ) -> list[tuple[str, int, bool]]:
        """What the sweeper has to see to, oldest first: id, attempt, and whether that has ended.

        Those that have not want their workflow, those that have (see `finish`) their webhook.
        """
        query = (
            sa.select(jobs.c.id, jobs.c.attempts, jobs.c.status.not_in(OPEN))
            .where(jobs.c.dispatched.is_(False), jobs.c.created_at < now() - older_than)
            .order_by(jobs.c.created_at)
            .limit(limit)
        )
        found = await self._database.read(lambda c: c.execute(query).all())
        return [(job_id, attempt, bool(ended)) for job_id, attempt, ended in found]

    async def start(self, job_id: str, attempt: int) -> Job | None:
        """Mark the queued attempt running; None when it is not queued, or not the current one."""
        values = {"job_id": job_id, "attempt": attempt, "moment": now()}
        row = await self._database.write(lambda c: c.execute(_START, values).mappings().first())
        return None if row is None else job_of_row(row)

    async def is_open(self, job_id: str, attempt: int) -> bool:
        """Whether the attempt is the current one and has not ended."""
        values = {"job_id": job_id, "attempt": attempt}
        return await self._database.read(lambda c: c.execute(_IS_OPEN, values).first() is not None)

    async def progress(
        self, job_id: str, attempt: int | None, progress: Progress
    ) -> Progress | None:
        """Keep the newest progress for those who poll; ``attempt`` None: the current one.

        In a batch it is that of child number ``progress.step``.

        Returns:
            The job's progress; None when the attempt is over.
        """
        return await self._database.write(lambda c: write_progress(c, job_id, attempt, progress))

    async def record_step(self, job_id: str, attempt: int, result: StepResult) -> Progress | None:
        """Write the checkpoint of one finished step, once, with its artifacts.

        Returns:
            The job's progress; None when the attempt is over.
        """
        return await self._database.write(lambda c: write_step(c, job_id, attempt, result))

    async def finish(
        self,
        job_id: str,
        attempt: int,
        status: JobStatus,
        error: JobError | None,
        *,
        results: Sequence[StepResult] = (),
        announced: bool = True,
    ) -> Job | None:
        """Give the attempt its final status; the ended job only for the call that did it.

        Args:
            results: of all steps; none: those that were recorded stay as they are.
            announced: False: nobody else sends the webhook, so the sweeper does, until
                `mark_dispatched`.
        """
        values: dict[str, Any] = {
            "job_id": job_id,
            "attempt": attempt,
            "status": status.value,
            "dispatched": announced,
            "error": None if error is None else to_plain(error),
            "finished_at": now(),
        }
        if results:
            values["results"] = [to_plain(result) for result in results]
            values["progress"] = to_plain(Progress(value=1, max=1, step=results[-1].index))

        def finish(connection: sa.Connection) -> Row | None:
            row = connection.execute(_FINISH, values).mappings().first()
            if row is not None:
                made = [artifact for result in results for artifact in result.artifacts]
                insert_artifacts(connection, made, owner=row["owner"], job_id=job_id)
            return row

        row = await self._database.write(finish)
        return None if row is None else job_of_row(row)

    async def note_canceller(self, job_id: str, attempt: int, canceller: Canceller) -> None:
        """Write down who asks for the attempt's end, before it is asked for. The first one stays."""
        change = _NOTE_CANCELLER.values(cancelled_by=to_plain(canceller))
        values = {"job_id": job_id, "attempt": attempt}
        await self._database.write(lambda c: c.execute(change, values))

    async def reopen(self, owner: str, job_id: str, limits: Sequence[Limit] = ()) -> Job:
        """Queue another attempt of a failed or cancelled job; finished steps stay finished.

        Args:
            limits: of who asks, which say how many jobs may be open.

        Raises:
            JobNotFound: there is none, or it is somebody else's.
            JobNotFinished: it is still queued or running.
            JobFinished: it has succeeded.
            TooManyJobs: too many jobs are open.
        """

        def reopen(connection: sa.Connection) -> None:
            found = connection.execute(_BY_ID.with_for_update(), {"job_id": job_id})
            row = found.mappings().first()
            if row is None or row["owner"] != owner:
                raise _not_found(job_id)
            if row["status"] in OPEN:
                raise JobNotFinished(f"job {job_id} is {row['status']}; only an ended one retries")
            if row["status"] == JobStatus.SUCCEEDED.value:
                raise JobFinished(f"job {job_id} has succeeded; there is nothing to retry")
            change = jobs.update().where(jobs.c.id == job_id)
            values = {
                "status": JobStatus.QUEUED.value,
                "attempts": row["attempts"] + 1,
                "dispatched": False,
                "error": None,
                "finished_at": None,
                # It waits for a renderer again, and what the last one said was of the last attempt.
                "begun_at": None,
                "record": None,
                "cancelled_by": None,
                "progress": progress_anew(row),
            }
            connection.execute(change.values(values))
            check_open_jobs(connection, limits)

        await self._database.write(reopen)
        return await self.find(job_id)

    async def _repeated(self, new: NewJob) -> Job:
        row = None
        if new.idempotency_key is not None:
            row = await self._keyed(new.owner, new.idempotency_key)
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

    async def _keyed(self, owner: str, idempotency_key: str) -> Row | None:
        query = sa.select(jobs).where(
            jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key
        )
        return await self._database.read(lambda c: c.execute(query).mappings().first())

    async def _row(self, job_id: str) -> Row:
        values = {"job_id": job_id}
        row = await self._database.read(lambda c: c.execute(_BY_ID, values).mappings().first())
        if row is None:
            raise _not_found(job_id)
        return row


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"there is no job {job_id!r}")


def _cursor(job: Job) -> str:
    plain = f"{job.created_at.isoformat()}_{job.id}"
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def _parse_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        plain = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        created_at, _, job_id = plain.partition("_")
        if "\0" in job_id:
            raise ValueError("PostgreSQL has no character NUL")
        return datetime.fromisoformat(created_at).astimezone(UTC), job_id
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "cursor must be the next_cursor of an earlier page", field="cursor"
        ) from None
