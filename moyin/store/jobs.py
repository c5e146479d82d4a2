"""Stores the list of jobs: a projection that the workflows write and owners read.

Writes of an attempt carry its number, so that an abandoned attempt cannot change the row of its
successor. The first final status of an attempt stays.
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
from moyin.store.job_steps import restarted_progress, write_progress, write_step
from moyin.store.limits import check_open_jobs
from moyin.store.schema import jobs
from moyin.store.sql import Database, now

__all__ = ["JobStore", "Launch", "NewJob"]

# Built once, since building a statement takes longer than running it.
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
_RECORD_CANCELLER = jobs.update().where(
    *_ATTEMPT, jobs.c.status.in_(OPEN), jobs.c.cancelled_by.is_(None)
)
_IS_OPEN = sa.select(jobs.c.id).where(*_ATTEMPT, jobs.c.status.in_(OPEN))


class JobStore:
    """Reads and writes rows of jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewJob) -> tuple[Job, bool]:
        """Accept a job; return it and whether it is new.

        A repeat returns the earlier job: the same owner and idempotency key with the same
        fingerprint, or the same owner and id with the same spec.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            PromptIdTaken: the id belongs to another job, of any owner.
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
        """Return a job of the owner.

        Raises:
            JobNotFound: the owner has no such job.
        """
        job = job_of_row(await self._row(job_id))
        if job.owner != owner:
            raise _not_found(job_id)
        return job

    async def find(self, job_id: str) -> Job:
        """Return a job of any owner; for workers.

        Raises:
            JobNotFound: the job does not exist.
        """
        return job_of_row(await self._row(job_id))

    async def find_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        """Return the owner's job with this idempotency key; None: there is none."""
        row = await self._row_by_idempotency_key(owner, idempotency_key)
        return None if row is None else job_of_row(row)

    async def submitter(self, job_id: str) -> Identity:
        """Return the identity with whose rights the job's steps run.

        Raises:
            JobNotFound: the job does not exist.
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
        """Return a page of the owner's jobs, newest first, and the cursor of the next page.

        Args:
            labels: only jobs whose metadata contains all of them.
            cursor: the second value of the page before; None: the first page.
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
        page = [job_of_row(row) for row in rows[:limit]]
        has_more = len(rows) > limit
        return page, _cursor(page[-1]) if has_more else None

    async def launch(self, job_id: str) -> Launch:
        """Return what is needed to start the job's present attempt.

        Raises:
            JobNotFound: the job does not exist.
        """
        return launch_of_row(await self._row(job_id))

    async def mark_dispatched(self, *job_ids: str, attempt: int = 1) -> None:
        """Record that the workflows of this attempt were started, so that the sweeper skips them."""
        change = jobs.update().where(
            jobs.c.id.in_(job_ids), jobs.c.attempts == attempt, jobs.c.dispatched.is_(False)
        )
        await self._database.write(lambda c: c.execute(change.values(dispatched=True)))

    async def undispatched(
        self, older_than: timedelta, limit: int = 100
    ) -> list[tuple[str, int, bool]]:
        """Return jobs for the sweeper, oldest first: id, attempt, and whether it has ended.

        The sweeper starts the workflow of open jobs and sends the webhook of ended ones; see
        `finish`.
        """
        query = (
            sa.select(jobs.c.id, jobs.c.attempts, jobs.c.status.not_in(OPEN))
            .where(jobs.c.dispatched.is_(False), jobs.c.created_at < now() - older_than)
            .order_by(jobs.c.created_at)
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [(job_id, attempt, bool(ended)) for job_id, attempt, ended in rows]

    async def start(self, job_id: str, attempt: int) -> Job | None:
        """Mark the queued attempt running; return None if it is not queued or not the present one."""
        values = {"job_id": job_id, "attempt": attempt, "moment": now()}
        row = await self._database.write(lambda c: c.execute(_START, values).mappings().first())
        return None if row is None else job_of_row(row)

    async def is_open(self, job_id: str, attempt: int) -> bool:
        """Return whether the attempt is the present one and has not ended."""
        values = {"job_id": job_id, "attempt": attempt}
        return await self._database.read(lambda c: c.execute(_IS_OPEN, values).first() is not None)

    async def record_progress(
        self, job_id: str, attempt: int | None, progress: Progress
    ) -> Progress | None:
        """Write the newest progress of a step, in a batch that of child ``progress.step``.

        Args:
            attempt: the attempt that progressed; None: the present one.

        Returns:
            The job's progress; None: the attempt has ended.
        """
        return await self._database.write(lambda c: write_progress(c, job_id, attempt, progress))

    async def record_step(self, job_id: str, attempt: int, result: StepResult) -> Progress | None:
        """Write the result of a finished step and its artifacts.

        Returns:
            The job's progress; None: the attempt has ended.
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
        webhook_sent: bool = True,
    ) -> Job | None:
        """Write the final status of an attempt.

        Args:
            results: the results of all steps; empty: those recorded earlier are final.
            webhook_sent: whether the caller sees to the webhook; if False, the sweeper sends it,
                until `mark_dispatched`.

        Returns:
            The ended job; None: an earlier call has ended the attempt.
        """
        values: dict[str, Any] = {
            "job_id": job_id,
            "attempt": attempt,
            "status": status.value,
            "dispatched": webhook_sent,
            "error": None if error is None else to_plain(error),
            "finished_at": now(),
        }
        if results:
            values["results"] = [to_plain(result) for result in results]
            values["progress"] = to_plain(Progress(value=1, max=1, step=results[-1].index))

        def finish(connection: sa.Connection) -> Row | None:
            row = connection.execute(_FINISH, values).mappings().first()
            if row is not None:
                outputs = [artifact for result in results for artifact in result.artifacts]
                insert_artifacts(connection, outputs, owner=row["owner"], job_id=job_id)
            return row

        row = await self._database.write(finish)
        return None if row is None else job_of_row(row)

    async def record_canceller(self, job_id: str, attempt: int, canceller: Canceller) -> None:
        """Record who cancels the attempt, before it is cancelled; the first canceller stays."""
        change = _RECORD_CANCELLER.values(cancelled_by=to_plain(canceller))
        values = {"job_id": job_id, "attempt": attempt}
        await self._database.write(lambda c: c.execute(change, values))

    async def reopen(self, owner: str, job_id: str, limits: Sequence[Limit] = ()) -> Job:
        """Queue another attempt of a failed or cancelled job; finished steps stay finished.

        Args:
            limits: the caller's limits on open jobs.

        Raises:
            JobNotFound: the owner has no such job.
            JobNotFinished: the job is still queued or running.
            JobFinished: the job has succeeded.
            TooManyJobs: too many jobs are open.
        """

        def reopen(connection: sa.Connection) -> None:
            result = connection.execute(_BY_ID.with_for_update(), {"job_id": job_id})
            row = result.mappings().first()
            if row is None or row["owner"] != owner:
                raise _not_found(job_id)
            if row["status"] in OPEN:
                raise JobNotFinished(
                    f"job {job_id} is {row['status']}; only a failed or cancelled job can be retried"
                )
            if row["status"] == JobStatus.SUCCEEDED.value:
                raise JobFinished(
                    f"job {job_id} has succeeded; only a failed or cancelled job can be retried"
                )
            change = jobs.update().where(jobs.c.id == job_id)
            values = {
                "status": JobStatus.QUEUED.value,
                "attempts": row["attempts"] + 1,
                "dispatched": False,
                "error": None,
                "finished_at": None,
                # These belong to the last attempt's renderer.
                "begun_at": None,
                "record": None,
                "cancelled_by": None,
                "progress": restarted_progress(row),
            }
            connection.execute(change.values(values))
            check_open_jobs(connection, limits)

        await self._database.write(reopen)
        return await self.find(job_id)

    async def _repeated(self, new: NewJob) -> Job:
        """Return the earlier job that ``new`` repeats."""
        row = None
        if new.idempotency_key is not None:
            row = await self._row_by_idempotency_key(new.owner, new.idempotency_key)
        if row is None:
            job = await self.find(new.id)
            if (job.owner, job.spec) != (new.owner, new.spec):
                raise PromptIdTaken(
                    "prompt_id is already used; use a new one or leave it out", field="prompt_id"
                )
            return job
        if row["fingerprint"] != new.fingerprint:
            raise IdempotencyMismatch(
                "this Idempotency-Key was used for another request; use a new key",
                field="Idempotency-Key",
            )
        return job_of_row(row)

    async def _row_by_idempotency_key(self, owner: str, idempotency_key: str) -> Row | None:
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
            raise ValueError("PostgreSQL cannot store NUL characters")
        return datetime.fromisoformat(created_at).astimezone(UTC), job_id
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "cursor must be the next_cursor of an earlier page", field="cursor"
        ) from None
