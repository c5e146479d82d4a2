"""Stores one row per job, which its workflow writes and its owner reads.

Temporal is authoritative about running jobs. Each write names the attempt it belongs to, so that an
abandoned attempt cannot change the row. Only the first final status of an attempt is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from moyin.domain.identity import Identity
from moyin.domain.job import Canceller, Job, JobError, JobStatus, Progress, StepResult
from moyin.domain.limits import JobReservation, Limit
from moyin.domain.prompt import derive_job_id
from moyin.domain.serialization import to_plain
from moyin.errors import (
    IdempotencyMismatch,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    PromptIdTaken,
)
from moyin.store.artifacts import insert_artifacts
from moyin.store.cancellers import add_canceller, remove_canceller
from moyin.store.job_deletion import Deletion, delete_ended_jobs, is_deleted
from moyin.store.job_filter import JobFilter
from moyin.store.job_rows import (
    OPEN_STATUSES,
    Launch,
    NewJob,
    Row,
    build_row,
    parse_job,
    parse_launch,
)
from moyin.store.job_steps import compute_retry_progress, write_progress, write_step
from moyin.store.job_words import join_words
from moyin.store.limits import enforce_open_job_limits
from moyin.store.pages import Page, count_rows
from moyin.store.reservations import end_reservation, insert_reservation
from moyin.store.schema import job_texts, jobs
from moyin.store.sql import Database, now

__all__ = ["JobStore", "Launch", "NewJob"]

_ANY_JOB = JobFilter()
# A job that is cancelled, or too late, ends before its runs are booked, usually by a second. Its
# reservation covers them until then.
_LATE_RUNS = timedelta(seconds=30)
# These statements are built once, since building one takes longer than executing it.
_ATTEMPT = (jobs.c.id == sa.bindparam("job_id"), jobs.c.attempts == sa.bindparam("attempt"))
_BY_ID = sa.select(jobs).where(jobs.c.id == sa.bindparam("job_id"))
_INSERT = jobs.insert()
_INSERT_WORDS = job_texts.insert().inline()
_START = (
    jobs.update()
    .where(*_ATTEMPT, jobs.c.status == JobStatus.QUEUED.value)
    .values(
        status=JobStatus.RUNNING.value,
        dispatched=True,
        started_at=sa.bindparam("moment", type_=jobs.c.started_at.type),
    )
    .returning(jobs)
)
_FINISH = jobs.update().where(*_ATTEMPT, jobs.c.status.in_(OPEN_STATUSES)).returning(jobs)
# An outage of the database may have prevented the write of the start.
_SUCCEED = _FINISH.values(
    started_at=sa.func.coalesce(
        jobs.c.started_at, sa.bindparam("moment", type_=jobs.c.started_at.type)
    )
)
_IS_OPEN = sa.select(jobs.c.id).where(*_ATTEMPT, jobs.c.status.in_(OPEN_STATUSES))


class JobStore:
    """Reads and writes the rows of jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new_job: NewJob) -> tuple[Job, bool]:
        """Insert a job, or find the job that an earlier identical request has created.

        Two requests of an owner are identical if they have the same idempotency key and
        fingerprint, or the same job id and spec.

        Returns:
            The job, and whether it is new.

        Raises:
            IdempotencyMismatch: the idempotency key was used for a different request.
            PromptIdTaken: the id belongs to another job or to a deleted job.
            TooManyJobs: a limit on open jobs is exceeded.
        """
        row, words = build_row(new_job), join_words(new_job.owner, new_job.text)

        def create(connection: sa.Connection) -> None:
            connection.execute(_INSERT, row)
            if words:
                connection.execute(_INSERT_WORDS, {"job_id": new_job.id, "words": words})
            # After the insertion, which waits for a deletion of the same id.
            if new_job.has_chosen_id and is_deleted(connection, new_job.id):
                raise PromptIdTaken(
                    f"prompt_id {new_job.chosen_id or new_job.id!r} was used by a deleted prompt; "
                    "use a new id or omit it",
                    field="prompt_id",
                )
            enforce_open_job_limits(connection, new_job.limits)
            insert_reservation(connection, new_job.id, new_job.reservation, row["created_at"])

        try:
            await self._database.write(create)
        except IntegrityError:
            return await self._get_identical_job(new_job), False
        return parse_job(row), True

    async def get(self, owner: str, job_id: str) -> Job:
        """Return a job of the owner by its id or chosen prompt id, or raise `JobNotFound`."""
        for possible_id in (job_id, derive_job_id(owner, job_id)):
            row = await self._find_row(possible_id)
            if row is not None and row["owner"] == owner:
                return parse_job(row)
        raise _new_not_found_error(job_id)

    async def find(self, job_id: str) -> Job:
        """Return a job of any owner, or raise `JobNotFound`."""
        return parse_job(await self._fetch_row(job_id))

    async def find_by_idempotency_key(self, owner: str, idempotency_key: str) -> Job | None:
        """Return the owner's job with this idempotency key, or None if there is none."""
        row = await self._fetch_row_by_idempotency_key(owner, idempotency_key)
        return None if row is None else parse_job(row)

    async def find_identical_job(self, new_job: NewJob) -> Job | None:
        """Return the job that an earlier identical request created, or None if there is none.

        Raises:
            IdempotencyMismatch, PromptIdTaken: for the same reasons as `create`.
        """
        try:
            return await self._get_identical_job(new_job)
        except JobNotFound:
            return None

    async def get_submitter(self, job_id: str) -> Identity:
        """Return the identity that submitted a job, with whose rights its steps run."""
        row = await self._fetch_row(job_id)
        return Identity(
            owner=row["owner"],
            key_id=row["key_id"] or "",
            scopes=frozenset(row["scopes"].split()),
            user=row["user_id"],
        )

    async def list_page(
        self,
        owner: str,
        job_filter: JobFilter = _ANY_JOB,
        *,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Job], str | None]:
        """Return a page of the owner's jobs, newest first, and the cursor of the next page.

        A page for a pool, a template, metadata or a search may have fewer jobs than ``limit``, or
        none, although another page follows.

        Args:
            cursor: the cursor that the previous page returned, or None for the first page.
        """

        def fetch(connection: sa.Connection) -> tuple[Sequence[Row], str | None]:
            page = job_filter.fetch_page(connection, owner, limit=limit, cursor=cursor)
            jobs_query = (
                sa.select(jobs)
                .where(jobs.c.id.in_(page.ids))
                .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
            )
            return connection.execute(jobs_query).mappings().all(), page.next_cursor

        rows, next_cursor = await self._database.read(fetch)
        return [parse_job(row) for row in rows], next_cursor

    async def list_ids(
        self, owner: str, job_filter: JobFilter, *, limit: int, cursor: str | None
    ) -> Page:
        """Return a page of the ids of the owner's jobs, in the same order as `list_page`.

        The arguments are those of `list_page`.
        """
        return await self._database.read(
            lambda connection: job_filter.fetch_page(connection, owner, limit=limit, cursor=cursor)
        )

    async def count(self, owner: str, job_filter: JobFilter) -> int:
        """Return the number of the owner's jobs that match a filter whose `is_indexed` is true."""
        return await self._database.read(
            lambda connection: count_rows(
                connection, job_filter.build_query(owner, connection.dialect.name)
            )
        )

    async def delete(self, owner: str, job_ids: Sequence[str]) -> Deletion:
        """Delete those jobs that belong to the owner and have ended.

        Their artifacts are hidden from the owner at once; pruning deletes their files later.

        Returns:
            The ids of the deleted jobs, and of those that are still open.
        """
        return await self._database.write(lambda c: delete_ended_jobs(c, owner, job_ids))

    async def get_launch(self, job_id: str) -> Launch:
        """Return the data that starts the current attempt of a job, or raise `JobNotFound`."""
        return parse_launch(await self._fetch_row(job_id))

    async def mark_dispatched(self, *job_ids: str, attempt: int = 1) -> None:
        """Record, for each job, that its workflow was started or, if it has ended, its webhook."""
        update = jobs.update().where(
            jobs.c.id.in_(job_ids), jobs.c.attempts == attempt, jobs.c.dispatched.is_(False)
        )
        await self._database.write(lambda c: c.execute(update.values(dispatched=True)))

    async def list_undispatched(
        self, min_age: timedelta, limit: int = 100
    ) -> list[tuple[str, int, bool]]:
        """Return the jobs that `mark_dispatched` has not marked, oldest first.

        Perhaps the workflow of an open job, or the webhook of an ended job, was never started. The
        sweeper then starts it.

        Args:
            min_age: the minimum age of the jobs.

        Returns:
            The id and the attempt of each job, and True if the job has ended.
        """
        query = (
            sa.select(jobs.c.id, jobs.c.attempts, jobs.c.status.not_in(OPEN_STATUSES))
            .where(jobs.c.dispatched.is_(False), jobs.c.created_at < now() - min_age)
            .order_by(jobs.c.created_at)
            .limit(limit)
        )
        rows = await self._database.read(lambda c: c.execute(query).all())
        return [(job_id, attempt, bool(has_ended)) for job_id, attempt, has_ended in rows]

    async def start(self, job_id: str, attempt: int) -> Job | None:
        """Mark an attempt as running if it is queued, and return its job; else return None."""
        values = {"job_id": job_id, "attempt": attempt, "moment": now()}
        row = await self._database.write(lambda c: c.execute(_START, values).mappings().first())
        return None if row is None else parse_job(row)

    async def is_open(self, job_id: str, attempt: int) -> bool:
        """Return whether an attempt is the current one of its job and has not ended."""
        values = {"job_id": job_id, "attempt": attempt}
        return await self._database.read(lambda c: c.execute(_IS_OPEN, values).first() is not None)

    async def record_progress(
        self, job_id: str, attempt: int, progress: Progress
    ) -> Progress | None:
        """Write the progress of the running step; in a batch, that of the child ``progress.step``.

        Returns:
            The progress of the job, or None if the attempt has ended.
        """
        return await self._database.write(lambda c: write_progress(c, job_id, attempt, progress))

    async def record_step(self, job_id: str, attempt: int, result: StepResult) -> Progress | None:
        """Write the result of a finished step; return the progress as `record_progress` does."""
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
            results: the results of all steps, or an empty sequence if `record_step` wrote them.
            webhook_sent: True if the caller sends the webhook. If False, the sweeper, a background
                task, sends it unless `mark_dispatched` is called.

        Returns:
            The ended job, or None if the attempt had already ended.
        """
        finished_at = now()
        values: dict[str, Any] = {
            "job_id": job_id,
            "attempt": attempt,
            "status": status.value,
            "dispatched": webhook_sent,
            "error": None if error is None else to_plain(error),
            "finished_at": finished_at,
            "moment": finished_at,
        }
        if results:
            values["results"] = [to_plain(result) for result in results]
            values["progress"] = to_plain(Progress(value=1, max=1, step=results[-1].index))

        def finish(connection: sa.Connection) -> Row | None:
            statement = _SUCCEED if status is JobStatus.SUCCEEDED else _FINISH
            row = connection.execute(statement, values).mappings().first()
            if row is not None:
                if row["reserved"]:
                    is_late = status is not JobStatus.SUCCEEDED and row["started_at"] is not None
                    due_at = finished_at + _LATE_RUNS if is_late else finished_at
                    end_reservation(connection, job_id, due_at)
                outputs = [artifact for result in results for artifact in result.artifacts]
                insert_artifacts(connection, outputs, owner=row["owner"], job_id=job_id)
            return row

        row = await self._database.write(finish)
        return None if row is None else parse_job(row)

    async def record_canceller(self, job_id: str, attempt: int, canceller: Canceller) -> str | None:
        """Record the caller of a cancel request, before the attempt is cancelled.

        The first recorded caller counts as the job's canceller.

        Returns:
            The id of the record, or None if nothing was recorded, because the attempt has ended
            or already has the maximum number of records.
        """
        return await self._database.write(lambda c: add_canceller(c, job_id, attempt, canceller))

    async def clear_canceller(self, job_id: str, attempt: int, record_id: str) -> None:
        """Remove a record of `record_canceller`, whose request failed, if the attempt is open."""
        await self._database.write(lambda c: remove_canceller(c, job_id, attempt, record_id))

    async def reopen(
        self,
        owner: str,
        job_id: str,
        limits: Sequence[Limit] = (),
        reservation: JobReservation | None = None,
    ) -> Job:
        """Queue a new attempt of a failed or cancelled job, and return the job.

        The attempt skips the finished steps.

        Args:
            limits: the caller's limits on open jobs.
            reservation: the money that the caller's budgets reserve for the renders of the attempt.

        Raises:
            JobNotFound: the owner has no such job.
            JobNotFinished: the job is still queued or running.
            JobFinished: the job has succeeded.
            TooManyJobs: a limit on open jobs is exceeded.
        """

        def reopen(connection: sa.Connection) -> None:
            result = connection.execute(_BY_ID.with_for_update(), {"job_id": job_id})
            row = result.mappings().first()
            if row is None or row["owner"] != owner:
                raise _new_not_found_error(job_id)
            if row["status"] in OPEN_STATUSES:
                raise JobNotFinished(
                    f"job {job_id} is {row['status']}; only a failed or cancelled job can be retried"
                )
            if row["status"] == JobStatus.SUCCEEDED.value:
                raise JobFinished(
                    f"job {job_id} has succeeded; only a failed or cancelled job can be retried"
                )
            update = jobs.update().where(jobs.c.id == job_id)
            values = {
                "status": JobStatus.QUEUED.value,
                "attempts": row["attempts"] + 1,
                "dispatched": False,
                "error": None,
                "finished_at": None,
                "queued_at": queued_at,
                "reserved": reservation is not None,
                # These values belong to the last attempt.
                "started_at": None,
                "record": None,
                "cancelled_by": None,
                "progress": compute_retry_progress(row),
            }
            connection.execute(update.values(values))
            enforce_open_job_limits(connection, limits)
            insert_reservation(connection, job_id, reservation, queued_at)

        queued_at = now()
        await self._database.write(reopen)
        return await self.find(job_id)

    async def _get_identical_job(self, new_job: NewJob) -> Job:
        """Return the job that an earlier request, identical to ``new_job``, has created."""
        row = None
        if new_job.idempotency_key is not None:
            row = await self._fetch_row_by_idempotency_key(new_job.owner, new_job.idempotency_key)
        if row is None:
            job = await self.find(new_job.id)
            if (job.owner, job.spec) != (new_job.owner, new_job.spec):
                raise PromptIdTaken(
                    f"prompt_id {new_job.chosen_id or new_job.id!r} is used by another prompt; use a "
                    "new id or omit it",
                    field="prompt_id",
                )
            return job
        if row["fingerprint"] != new_job.fingerprint:
            raise IdempotencyMismatch(
                "Idempotency-Key was already used for a different request; use a new key",
                field="Idempotency-Key",
            )
        return parse_job(row)

    async def _fetch_row_by_idempotency_key(self, owner: str, idempotency_key: str) -> Row | None:
        query = sa.select(jobs).where(
            jobs.c.owner == owner, jobs.c.idempotency_key == idempotency_key
        )
        return await self._database.fetch_first(query)

    async def _fetch_row(self, job_id: str) -> Row:
        row = await self._find_row(job_id)
        if row is None:
            raise _new_not_found_error(job_id)
        return row

    async def _find_row(self, job_id: str) -> Row | None:
        values = {"job_id": job_id}
        return await self._database.read(lambda c: c.execute(_BY_ID, values).mappings().first())


def _new_not_found_error(job_id: str) -> JobNotFound:
    return JobNotFound(f"job {job_id!r} does not exist, or you may not see it")
