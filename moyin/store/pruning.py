"""Deletes jobs that ended long ago, and blobs of these and of deleted jobs that nothing else needs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json

from moyin.domain.job import JobSpec, StepKind
from moyin.domain.serialization import decode
from moyin.store.blobs import BlobStore
from moyin.store.job_rows import OPEN_STATUSES
from moyin.store.schema import artifacts, deleted_jobs, jobs
from moyin.store.sql import Database, now
from moyin.store.text_pruning import TextPruner, count_prunable_batches, find_file_blobs

_log = logging.getLogger(__name__)
# The number of jobs whose digests are held in memory, and for which all other rows are read once.
_JOBS_PER_SCAN = 10_000
# Jobs per transaction. If the process dies or S3 fails after one, their blobs are never deleted.
_CHUNK = 100
_PAGE = 2_000
_CONCURRENCY = 8
_PAUSE_SECONDS = 3_600.0
# Files of text models that were deleted, or have expired, are deleted after so long.
_FILES_KEPT = timedelta(days=1)
# The longest time between storing a job's blobs and its row.
_STORE_MARGIN = timedelta(hours=1)
_ARTIFACT_ID = re.compile(rb"art_[0-9a-f]{32}")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneResult:
    """Counts what was deleted; ``size`` is that of the blobs, ``files``, in bytes."""

    jobs: int = 0
    batches: int = 0
    files: int = 0
    size: int = 0

    def __bool__(self) -> bool:
        return bool(self.jobs or self.batches or self.files)

    def __add__(self, other: PruneResult) -> PruneResult:
        return PruneResult(
            jobs=self.jobs + other.jobs,
            batches=self.batches + other.batches,
            files=self.files + other.files,
            size=self.size + other.size,
        )


class Pruner:
    """Deletes ended jobs and their blobs; several may run concurrently, while jobs start and end.

    Blobs that were stored or renewed after the given time are not deleted, since a new job may be
    about to refer to them. So that time should be at least a day ago. An output that an open job
    uses as an input is not deleted, unless that job is submitted in the seconds between the query
    for open jobs and the deletion.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    async def count_prunable(self, before: datetime) -> int:
        """Return the number of jobs that ended before ``before``."""
        query = sa.select(sa.func.count()).select_from(jobs).where(_has_ended_before(before))
        return int(await self._database.fetch_value(query))

    async def count_prunable_batches(self, before: datetime) -> int:
        """Return the number of batches that ended before ``before``."""
        return await count_prunable_batches(self._database, before)

    async def run(self, before: datetime) -> AsyncIterator[PruneResult]:
        """Delete jobs that ended before ``before``, and yield the counts of each transaction.

        Batches and files of text models follow. Ids of jobs that were deleted before ``before``
        become free.

        If the artifact store is unavailable, raise `ServiceUnavailable`; another run continues.
        """
        while oldest := await self._fetch_oldest(before):
            files = await self._collect_files(oldest)
            inputs = await self._collect_open_inputs()
            deletable = await self._find_unreferenced_files(files, inputs, before)
            references = Counter(file for job_files in files.values() for file in job_files)
            for chunk in _split_into_chunks(list(files)):
                count, kept = await self._database.write(
                    partial(_delete_jobs, chunk, before, inputs)
                )
                # Jobs that were retried meanwhile are in `kept`; others may have deleted the rest.
                deleted = [job for job in chunk if job not in kept]
                references.subtract(file for job in deleted for file in files[job])
                unused = {
                    file
                    for job in deleted
                    for file in files[job]
                    if file in deletable and not references[file]
                }
                yield PruneResult(jobs=count) + await self._delete_files(unused, before)

        async def find_unreferenced(digests: Collection[str]) -> set[str]:
            inputs = await self._collect_open_inputs()
            return await self._find_unreferenced_files({"": set(digests)}, inputs, before)

        pruned = await TextPruner(self._database, find_unreferenced).run(before)
        result = await self._delete_files(pruned.blobs, before)
        if result := result + PruneResult(batches=pruned.batches):
            yield result
        while await self._database.execute(_free_ids(before)):
            continue

    async def run_files(self, before: datetime) -> PruneResult:
        """Delete files of text models that expired or were deleted before ``before``; jobs stay."""

        async def find_unreferenced(digests: Collection[str]) -> set[str]:
            inputs = await self._collect_open_inputs()
            files = {"": set(digests)}
            return await self._find_unreferenced_files(files, inputs, before, keeps_jobs=True)

        blobs = await TextPruner(self._database, find_unreferenced).delete_files(before)
        return await self._delete_files(blobs, before)

    async def run_deleted(self, before: datetime) -> PruneResult:
        """Delete the files of jobs and artifacts that their owners deleted before ``before``.

        Files to which something else refers stay. If this is interrupted, the next run repeats it.
        """
        result = PruneResult()
        while True:
            deleted = await self._database.fetch_all(_select_deleted_jobs(before))
            inputs = await self._collect_open_inputs()
            hidden = await self._fetch_hidden_artifacts(before, inputs)
            if not deleted and not hidden:
                return result
            nested = await self._gather(self._read_nested_files, deleted)
            digests = {*hidden.values(), *(file for files in nested for file in files)}
            for row in deleted:
                digests.update(_iterate_direct_files(row))
            unused = await self._find_unreferenced_files(
                {"": digests}, inputs, before, keeps_jobs=True, hidden=hidden
            )
            result += await self._delete_files(unused, before)
            ids = [row["id"] for row in deleted]
            await self._database.write(partial(_forget_deleted, ids, list(hidden)))

    async def keep_pruning(self, days: int) -> None:
        """Delete jobs that ended ``days`` ago, once an hour until cancelled; if it is 0, none.

        Files of text models that were deleted or have expired, and those of deleted jobs and
        artifacts, are always deleted, once a day, since that may read the blobs of all jobs. A lock ensures that only one process prunes a database
        at a time.
        """
        files_due = now()
        while True:
            try:
                async with self._database.advisory_lock("pruning") as acquired:
                    if acquired and days:
                        async for _ in self.run(now() - timedelta(days=days)):
                            pass
                    if acquired and now() >= files_due:
                        await self.run_files(now() - _FILES_KEPT)
                        await self.run_deleted(now() - _FILES_KEPT)
                        files_due = now() + _FILES_KEPT
            except Exception:
                _log.exception("pruning failed; retrying in an hour")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _fetch_oldest(self, before: datetime) -> Sequence[Mapping[Any, Any]]:
        query = (
            sa.select(jobs.c.id, *_REFERENCE_COLUMNS)
            .where(_has_ended_before(before))
            .order_by(jobs.c.finished_at)
            .limit(_JOBS_PER_SCAN)
        )
        return await self._database.fetch_all(query)

    async def _collect_files(self, rows: Sequence[Mapping[Any, Any]]) -> dict[str, set[str]]:
        """Return the digests of all blobs that the jobs in ``rows`` refer to, by job id."""
        nested = await self._gather(self._read_nested_files, rows)
        files = {
            row["id"]: {*_iterate_direct_files(row), *more}
            for row, more in zip(rows, nested, strict=True)
        }
        for chunk in _split_into_chunks(list(files)):
            query = sa.select(artifacts.c.job_id, artifacts.c.sha256).where(
                artifacts.c.job_id.in_(chunk)
            )
            for row in await self._database.fetch_all(query):
                files[row["job_id"]].add(row["sha256"])
        return files

    async def _read_nested_files(self, row: Mapping[Any, Any]) -> list[str]:
        """Return the digests of the blobs that a job refers to in its other blobs.

        These are bodies of deferred HTTP requests (`moyin.domain.job.Step`), and files of renders
        that are not outputs, such as previews.
        """
        kind, files = row["kind"], []
        if kind != StepKind.RENDER.value and (spec := await self._read_blob(row["spec"])):
            steps = decode(JobSpec, spec).steps
            files += [step.payload.get("blob") for step in steps if step.kind is StepKind.HTTP]
        if kind not in (StepKind.CHAT.value, StepKind.HTTP.value):
            for output in list(_iterate_direct_files(row))[1:]:
                files += _list_recorded_files(await self._read_blob(output))
        return [file for file in files if isinstance(file, str)]

    async def _read_blob(self, sha256: str) -> bytes | None:
        try:
            return await self._blobs.get(sha256)
        except FileNotFoundError:
            return None

    async def _collect_open_inputs(self) -> set[str]:
        """Return the ids of the artifacts in the specs of open jobs, such as outputs of other jobs."""
        query = sa.select(jobs.c.spec).where(jobs.c.status.in_(OPEN_STATUSES)).distinct()
        specs = await self._database.fetch_values(query)
        contents = await self._gather(self._read_blob, specs)
        return {i.decode() for spec in contents for i in _ARTIFACT_ID.findall(spec or b"")}

    async def _find_unreferenced_files(
        self,
        files: Mapping[str, set[str]],
        inputs: Collection[str],
        before: datetime,
        *,
        keeps_jobs: bool = False,
        hidden: Collection[str] = (),
    ) -> set[str]:
        """Return those blobs of ``files`` (digests by job id) that nothing but these jobs refers to.

        Args:
            keeps_jobs: True if jobs that ended before ``before`` are not deleted.
            hidden: the ids of artifacts that are deleted, too.
        """
        deletable = set().union(*files.values())
        async for row in self._iterate_rows(artifacts.c.id, artifacts.c.job_id, artifacts.c.sha256):
            if row["id"] not in hidden and (row["job_id"] not in files or row["id"] in inputs):
                deletable.discard(row["sha256"])
        is_read = (_was_created_by if keeps_jobs else _was_open_at)(before).label("is_read")
        async for row in self._iterate_rows(jobs.c.id, *_REFERENCE_COLUMNS, is_read):
            if row["id"] not in files:
                deletable.difference_update(_iterate_direct_files(row))
                if row["is_read"]:
                    deletable.difference_update(await self._read_nested_files(row))
        return deletable - await find_file_blobs(self._database, deletable)

    async def _fetch_hidden_artifacts(
        self, before: datetime, inputs: Collection[str]
    ) -> dict[str, str]:
        """Return the digests of artifacts that were deleted before ``before``, by id.

        Those that open jobs use are left out.
        """
        hidden: dict[str, str] = {}
        after = ""
        while len(hidden) < _JOBS_PER_SCAN:
            query = (
                sa.select(artifacts.c.id, artifacts.c.sha256)
                .where(artifacts.c.deleted_at < before, artifacts.c.id > after)
                .order_by(artifacts.c.id)
                .limit(_PAGE)
            )
            page = await self._database.fetch_all(query)
            hidden.update((row["id"], row["sha256"]) for row in page if row["id"] not in inputs)
            if len(page) < _PAGE:
                break
            after = page[-1]["id"]
        return hidden

    async def _iterate_rows(
        self, key: sa.Column[Any], *columns: Any
    ) -> AsyncIterator[Mapping[Any, Any]]:
        """Yield all rows of a table, which are read in pages, so that other queries need not wait."""
        after = ""
        while True:
            query = sa.select(key, *columns).where(key > after).order_by(key).limit(_PAGE)
            page = await self._database.fetch_all(query)
            for row in page:
                yield row
            if len(page) < _PAGE:
                return
            after = page[-1][key.name]

    async def _delete_files(self, files: Collection[str], before: datetime) -> PruneResult:
        results = await self._gather(lambda file: self._blobs.delete(file, before), list(files))
        sizes = [size for size in results if size is not None]
        return PruneResult(files=len(sizes), size=sum(sizes))

    async def _gather(self, call: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """Return the results of ``call`` for all items; a few calls run concurrently."""
        limit = asyncio.Semaphore(_CONCURRENCY)

        async def limited(item: T) -> R:
            async with limit:
                return await call(item)

        return await asyncio.gather(*map(limited, items))


# The columns of a job that contain, or decide about, the digests of its blobs.
_REFERENCE_COLUMNS = (jobs.c.kind, jobs.c.spec, jobs.c.record, jobs.c.results)


def _iterate_direct_files(row: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the digests of the blobs in a job's row: first the spec."""
    yield row["spec"]
    if row["record"] is not None:
        yield row["record"]
    for result in row["results"]:
        yield result["output"]


def _list_recorded_files(output: bytes | None) -> list[str]:
    """Return the digests of the files in ComfyUI's history entry, which a step's output contains."""
    record = (from_json(output) if output else {}).get("record") or {}
    return [file["sha256"] for file in record.get("files", ())]


def _split_into_chunks(items: list[str]) -> Iterator[list[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _has_ended_before(before: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.status.not_in(OPEN_STATUSES), jobs.c.finished_at < before)


def _was_created_by(before: datetime) -> sa.ColumnElement[bool]:
    """Return the SQL condition for jobs that were submitted before ``before``, or soon after.

    Blobs of jobs that were submitted later are too new to be deleted.
    """
    return jobs.c.created_at < before + _STORE_MARGIN


def _was_open_at(before: datetime) -> sa.ColumnElement[bool]:
    """Return the SQL condition for jobs that were open at ``before``."""
    return sa.and_(
        _was_created_by(before),
        sa.or_(jobs.c.status.in_(OPEN_STATUSES), jobs.c.finished_at >= before),
    )


def _select_deleted_jobs(before: datetime) -> sa.Select[Any]:
    columns = (deleted_jobs.c[column.name] for column in _REFERENCE_COLUMNS)
    return (
        sa.select(deleted_jobs.c.id, *columns)
        .where(deleted_jobs.c.cleaned.is_(False), deleted_jobs.c.deleted_at < before)
        .order_by(deleted_jobs.c.deleted_at)
        .limit(_JOBS_PER_SCAN)
    )


def _free_ids(before: datetime) -> sa.Delete:
    """Return the statement that forgets some deleted jobs, whose ids can be used again."""
    oldest = (
        sa.select(deleted_jobs.c.id)
        .where(deleted_jobs.c.cleaned, deleted_jobs.c.deleted_at < before)
        .limit(_PAGE)
    )
    return deleted_jobs.delete().where(deleted_jobs.c.id.in_(oldest))


def _forget_deleted(
    job_ids: Sequence[str], artifact_ids: list[str], connection: sa.Connection
) -> None:
    """Record that the files of deleted jobs are gone, and delete the rows of hidden artifacts."""
    for chunk in _split_into_chunks(list(job_ids)):
        cleaned = deleted_jobs.update().where(deleted_jobs.c.id.in_(chunk))
        connection.execute(cleaned.values(cleaned=True, results=[], spec="", record=None))
    for chunk in _split_into_chunks(artifact_ids):
        # Unless it was restored meanwhile.
        is_hidden = artifacts.c.deleted_at.is_not(None)
        connection.execute(artifacts.delete().where(artifacts.c.id.in_(chunk), is_hidden))


def _delete_jobs(
    chunk: Sequence[str], before: datetime, inputs: Collection[str], connection: sa.Connection
) -> tuple[int, set[str]]:
    """Delete those jobs of ``chunk`` that were not retried meanwhile.

    Artifacts in ``inputs`` are only marked as deleted: their owner no longer sees them, but the
    jobs that use them still read them.

    Returns:
        The number of deleted jobs, and the ids of the jobs that were retried.
    """
    query = (
        sa.select(jobs.c.id, _has_ended_before(before))
        .where(jobs.c.id.in_(chunk))
        .order_by(jobs.c.id)
    )
    rows = connection.execute(query.with_for_update()).all()
    deleted = [job for job, ended in rows if ended]
    outputs = artifacts.c.job_id.in_(deleted)
    ids = connection.execute(sa.select(artifacts.c.id).where(outputs)).scalars()
    for part in _split_into_chunks([artifact for artifact in ids if artifact in inputs]):
        used = artifacts.update().where(artifacts.c.id.in_(part))
        connection.execute(used.values(job_id=None, deleted_at=now()))
    connection.execute(artifacts.delete().where(outputs))
    connection.execute(jobs.delete().where(jobs.c.id.in_(deleted)))
    return len(deleted), {job for job, ended in rows if not ended}
