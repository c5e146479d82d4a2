"""Deletes the files of jobs and artifacts that their owners deleted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any

import sqlalchemy as sa

from moyin.store.blob_references import (
    JOBS_PER_SCAN,
    PAGE,
    REFERENCE_COLUMNS,
    BlobReferences,
    PruneResult,
    iterate_direct_digests,
    split_into_chunks,
)
from moyin.store.schema import artifacts, deleted_jobs
from moyin.store.sql import Database


class DeletionPruner:
    """Deletes the files of deleted jobs, and of artifacts that are hidden from their owners."""

    def __init__(self, database: Database, references: BlobReferences) -> None:
        self._database = database
        self._references = references

    async def run(self, cutoff: datetime) -> PruneResult:
        """Delete the files of jobs and artifacts that their owners deleted before ``cutoff``.

        Files that something else refers to are kept. An interrupted run can be repeated.
        """
        result = PruneResult()
        while True:
            job_rows = await self._database.fetch_all(_build_deleted_jobs_query(cutoff))
            input_ids = await self._references.collect_open_inputs()
            hidden_artifacts = await self._fetch_hidden_artifacts(cutoff, input_ids)
            if not job_rows and not hidden_artifacts:
                return result
            nested_digests = await self._references.gather(
                self._references.read_nested_digests, job_rows
            )
            digests = {*hidden_artifacts.values(), *chain.from_iterable(nested_digests)}
            for row in job_rows:
                digests.update(iterate_direct_digests(row))
            unused_digests = await self._references.find_unreferenced_digests(
                {"": digests}, input_ids, cutoff, keeps_jobs=True, hidden_ids=hidden_artifacts
            )
            result += await self._references.delete_blobs(unused_digests, cutoff)
            ids = [row["id"] for row in job_rows]
            await self._database.write(partial(_mark_cleaned, ids, list(hidden_artifacts)))

    async def _fetch_hidden_artifacts(
        self, cutoff: datetime, input_ids: Collection[str]
    ) -> dict[str, str]:
        """Return the digests, by artifact id, of artifacts that were hidden before ``cutoff``.

        Args:
            input_ids: the ids of artifacts that open jobs use, which are left out.
        """
        hidden_artifacts: dict[str, str] = {}
        last_id = ""
        while len(hidden_artifacts) < JOBS_PER_SCAN:
            query = (
                sa.select(artifacts.c.id, artifacts.c.sha256)
                .where(artifacts.c.deleted_at < cutoff, artifacts.c.id > last_id)
                .order_by(artifacts.c.id)
                .limit(PAGE)
            )
            page = await self._database.fetch_all(query)
            hidden_artifacts.update(
                (row["id"], row["sha256"]) for row in page if row["id"] not in input_ids
            )
            if len(page) < PAGE:
                break
            last_id = page[-1]["id"]
        return hidden_artifacts

    async def free_ids(self, cutoff: datetime) -> None:
        """Delete rows of the table ``deleted_jobs``, so that the jobs' ids can be used again.

        Only rows of jobs that were deleted before ``cutoff`` and have no files left are deleted.
        """
        while await self._database.execute(_build_id_deletion(cutoff)):
            continue


def _build_deleted_jobs_query(cutoff: datetime) -> sa.Select[Any]:
    columns = (deleted_jobs.c[column.name] for column in REFERENCE_COLUMNS)
    return (
        sa.select(deleted_jobs.c.id, *columns)
        .where(deleted_jobs.c.cleaned.is_(False), deleted_jobs.c.deleted_at < cutoff)
        .order_by(deleted_jobs.c.deleted_at)
        .limit(JOBS_PER_SCAN)
    )


def _build_id_deletion(cutoff: datetime) -> sa.Delete:
    """Return the statement that deletes up to `PAGE` rows for `DeletionPruner.free_ids`."""
    cleaned_ids = (
        sa.select(deleted_jobs.c.id)
        .where(deleted_jobs.c.cleaned, deleted_jobs.c.deleted_at < cutoff)
        .limit(PAGE)
    )
    return deleted_jobs.delete().where(deleted_jobs.c.id.in_(cleaned_ids))


def _mark_cleaned(
    job_ids: Sequence[str], artifact_ids: list[str], connection: sa.Connection
) -> None:
    """Record that the files of deleted jobs are gone, and delete the rows of hidden artifacts.

    Artifacts that were restored meanwhile are kept.
    """
    for chunk in split_into_chunks(list(job_ids)):
        update = deleted_jobs.update().where(deleted_jobs.c.id.in_(chunk))
        connection.execute(update.values(cleaned=True, results=[], spec="", record=None))
    for chunk in split_into_chunks(artifact_ids):
        # Unless it was restored meanwhile.
        is_hidden = artifacts.c.deleted_at.is_not(None)
        connection.execute(artifacts.delete().where(artifacts.c.id.in_(chunk), is_hidden))
