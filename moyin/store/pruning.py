"""Deletes jobs that ended long ago, and the blobs to which nothing else refers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa

from moyin.store.blob_references import (
    JOBS_PER_SCAN,
    REFERENCE_COLUMNS,
    BlobReferences,
    PruneResult,
    split_into_chunks,
)
from moyin.store.blobs import BlobStore
from moyin.store.deletion_pruning import DeletionPruner
from moyin.store.job_rows import OPEN_STATUSES
from moyin.store.schema import artifacts, jobs
from moyin.store.sql import Database, now
from moyin.store.text_pruning import TextPruner, count_prunable_batches

__all__ = ["PruneResult", "Pruner"]

_log = logging.getLogger(__name__)
_PAUSE_SECONDS = 3_600.0
# The age at which deleted or expired files of text models are removed.
_FILES_KEPT = timedelta(days=1)


class Pruner:
    """Deletes ended jobs and their blobs; several may run concurrently, while jobs start and end.

    Blobs that were stored or renewed after the time ``cutoff`` are not deleted, because a new job
    may be about to refer to them. So ``cutoff`` should be at least a day ago. An output that an
    open job uses as an input is kept. Only a job that is submitted in the seconds between the query
    for open jobs and the deletion may lose its input.
    """

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._references = BlobReferences(database, blobs)
        self._deletions = DeletionPruner(database, self._references)

    async def count_prunable(self, cutoff: datetime) -> int:
        """Return the number of jobs that ended before ``cutoff``."""
        query = sa.select(sa.func.count()).select_from(jobs).where(_has_ended_before(cutoff))
        return int(await self._database.fetch_value(query))

    async def count_prunable_batches(self, cutoff: datetime) -> int:
        """Return the number of batches that ended before ``cutoff``."""
        return await count_prunable_batches(self._database, cutoff)

    async def run(self, cutoff: datetime) -> AsyncIterator[PruneResult]:
        """Delete jobs that ended before ``cutoff``, and yield the counts of each transaction.

        Then delete batches and files of text models, and free the ids of jobs that were deleted
        before ``cutoff``.

        Raises:
            ServiceUnavailable: the artifact store is unavailable; the next run deletes the rest.
        """
        while oldest_jobs := await self._fetch_oldest_jobs(cutoff):
            digests_by_job = await self._references.collect_digests(oldest_jobs)
            input_ids = await self._references.collect_open_inputs()
            deletable_digests = await self._references.find_unreferenced_digests(
                digests_by_job, input_ids, cutoff
            )
            reference_counts = Counter(
                digest for digests in digests_by_job.values() for digest in digests
            )
            for chunk in split_into_chunks(list(digests_by_job)):
                deleted_count, kept_ids = await self._database.write(
                    partial(_delete_jobs, chunk, cutoff, input_ids)
                )
                # Jobs that were retried meanwhile are in `kept_ids`; others may have deleted the rest.
                deleted_ids = [job_id for job_id in chunk if job_id not in kept_ids]
                reference_counts.subtract(
                    digest for job_id in deleted_ids for digest in digests_by_job[job_id]
                )
                unused_digests = {
                    digest
                    for job_id in deleted_ids
                    for digest in digests_by_job[job_id]
                    if digest in deletable_digests and not reference_counts[digest]
                }
                yield PruneResult(jobs=deleted_count) + await self._references.delete_blobs(
                    unused_digests, cutoff
                )

        async def find_unreferenced(digests: Collection[str]) -> set[str]:
            open_input_ids = await self._references.collect_open_inputs()
            return await self._references.find_unreferenced_digests(
                {"": set(digests)}, open_input_ids, cutoff
            )

        pruned_text = await TextPruner(self._database, find_unreferenced).run(cutoff)
        result = await self._references.delete_blobs(pruned_text.blobs, cutoff)
        if result := result + PruneResult(batches=pruned_text.batches):
            yield result
        await self._deletions.free_ids(cutoff)

    async def prune_expired_files(self, cutoff: datetime) -> PruneResult:
        """Delete no jobs, only text models' files that expired or were deleted before ``cutoff``."""

        async def find_unreferenced(digests: Collection[str]) -> set[str]:
            input_ids = await self._references.collect_open_inputs()
            digests_by_job = {"": set(digests)}
            return await self._references.find_unreferenced_digests(
                digests_by_job, input_ids, cutoff, keeps_jobs=True
            )

        unused_digests = await TextPruner(self._database, find_unreferenced).delete_files(cutoff)
        return await self._references.delete_blobs(unused_digests, cutoff)

    async def prune_deleted_files(self, cutoff: datetime) -> PruneResult:
        """Delete the files of jobs and artifacts that their owners deleted before ``cutoff``."""
        return await self._deletions.run(cutoff)

    async def prune_once(self, days: int, *, with_files: bool) -> PruneResult | None:
        """Delete jobs that ended long ago, and files that were deleted or expired a day ago.

        Args:
            days: the minimum number of days since a job's end; 0 keeps all jobs.
            with_files: True to delete files, too, which may require reading the blobs of all jobs.

        Returns:
            The counts of all deletions, or None if another process is pruning the database.
        """
        result = PruneResult()
        async with self._database.advisory_lock("pruning") as has_lock:
            if not has_lock:
                return None
            if days:
                async for chunk_result in self.run(now() - timedelta(days=days)):
                    result += chunk_result
            if with_files:
                result += await self.prune_expired_files(now() - _FILES_KEPT)
                result += await self.prune_deleted_files(now() - _FILES_KEPT)
        return result

    async def keep_pruning(self, days: int) -> None:
        """Call `prune_once` every hour until cancelled, but delete files only once a day.

        A lock ensures that only one process at a time prunes a database.

        Args:
            days: the minimum number of days since a job's end; 0 keeps all jobs.
        """
        files_due_at = now()
        while True:
            try:
                with_files = now() >= files_due_at
                if await self.prune_once(days, with_files=with_files) is not None and with_files:
                    files_due_at = now() + _FILES_KEPT
            except Exception:
                _log.exception("pruning failed; retrying in an hour")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _fetch_oldest_jobs(self, cutoff: datetime) -> Sequence[Mapping[Any, Any]]:
        query = (
            sa.select(jobs.c.id, *REFERENCE_COLUMNS)
            .where(_has_ended_before(cutoff))
            .order_by(jobs.c.finished_at)
            .limit(JOBS_PER_SCAN)
        )
        return await self._database.fetch_all(query)


def _has_ended_before(cutoff: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.status.not_in(OPEN_STATUSES), jobs.c.finished_at < cutoff)


def _delete_jobs(
    job_ids: Sequence[str], cutoff: datetime, input_ids: Collection[str], connection: sa.Connection
) -> tuple[int, set[str]]:
    """Delete jobs, except those that were retried since the caller selected them.

    Artifacts in ``input_ids`` are only marked as deleted: their owner no longer sees them, but the
    jobs that use them still read them.

    Returns:
        The number of deleted jobs, and the ids of the jobs that were retried.
    """
    query = (
        sa.select(jobs.c.id, _has_ended_before(cutoff))
        .where(jobs.c.id.in_(job_ids))
        .order_by(jobs.c.id)
    )
    rows = connection.execute(query.with_for_update()).all()
    ended_ids = [job_id for job_id, has_ended in rows if has_ended]
    is_output = artifacts.c.job_id.in_(ended_ids)
    ids = connection.execute(sa.select(artifacts.c.id).where(is_output)).scalars()
    for chunk in split_into_chunks([artifact for artifact in ids if artifact in input_ids]):
        update = artifacts.update().where(artifacts.c.id.in_(chunk))
        connection.execute(update.values(job_id=None, deleted_at=now()))
    connection.execute(artifacts.delete().where(is_output))
    connection.execute(jobs.delete().where(jobs.c.id.in_(ended_ids)))
    return len(ended_ids), {job_id for job_id, has_ended in rows if not has_ended}
