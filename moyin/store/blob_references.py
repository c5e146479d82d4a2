"""Finds the blobs that jobs and artifacts refer to, so that all other blobs can be deleted."""

from __future__ import annotations

import asyncio
import re
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
from typing import Any, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json

from moyin.domain.job import JobSpec, StepKind
from moyin.domain.serialization import decode
from moyin.store.blobs import BlobStore
from moyin.store.job_rows import OPEN_STATUSES
from moyin.store.schema import artifacts, jobs
from moyin.store.sql import Database
from moyin.store.text_pruning import find_file_digests

# The digests of so many jobs are held in memory while all other rows are read once.
JOBS_PER_SCAN = 10_000
# Rows per statement, and jobs per transaction: if the process dies or S3 fails after one, their blobs
# are never deleted.
CHUNK = 100
PAGE = 2_000
_CONCURRENCY = 8
# The longest time between storing a job's blobs and its row.
_STORE_MARGIN = timedelta(hours=1)
_ARTIFACT_ID = re.compile(rb"art_[0-9a-f]{32}")
T = TypeVar("T")
R = TypeVar("R")
# The columns of a job that contain, or decide about, the digests of its blobs.
REFERENCE_COLUMNS = (jobs.c.kind, jobs.c.spec, jobs.c.record, jobs.c.results)


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneResult:
    """Counts the deleted rows and files; ``size`` is the total of the deleted files in bytes."""

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


class BlobReferences:
    """Finds the blobs that jobs and artifacts refer to, and deletes given blobs."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    async def collect_digests(self, rows: Sequence[Mapping[Any, Any]]) -> dict[str, set[str]]:
        """Return the digests of all blobs that the jobs in ``rows`` refer to, by job id."""
        nested_lists = await self.gather(self.read_nested_digests, rows)
        digests_by_job = {
            row["id"]: {*iterate_direct_digests(row), *nested_digests}
            for row, nested_digests in zip(rows, nested_lists, strict=True)
        }
        for chunk in split_into_chunks(list(digests_by_job)):
            query = sa.select(artifacts.c.job_id, artifacts.c.sha256).where(
                artifacts.c.job_id.in_(chunk)
            )
            for row in await self._database.fetch_all(query):
                digests_by_job[row["job_id"]].add(row["sha256"])
        return digests_by_job

    async def read_nested_digests(self, row: Mapping[Any, Any]) -> list[str]:
        """Return the digests of the blobs that are named inside the job's other blobs.

        These are bodies of deferred HTTP requests (`moyin.domain.job.Step`), and files of renders
        that are not outputs, such as previews.
        """
        kind, digests = row["kind"], []
        if kind != StepKind.RENDER.value and (spec := await self._read_blob(row["spec"])):
            steps = decode(JobSpec, spec).steps
            digests += [step.payload.get("blob") for step in steps if step.kind is StepKind.HTTP]
        if kind not in (StepKind.CHAT.value, StepKind.HTTP.value):
            for output_digest in list(iterate_direct_digests(row))[1:]:
                digests += _list_recorded_digests(await self._read_blob(output_digest))
        return [digest for digest in digests if isinstance(digest, str)]

    async def _read_blob(self, sha256: str) -> bytes | None:
        try:
            return await self._blobs.get(sha256)
        except FileNotFoundError:
            return None

    async def collect_open_inputs(self) -> set[str]:
        """Return the ids of all artifacts that the specs of open jobs name as inputs."""
        query = sa.select(jobs.c.spec).where(jobs.c.status.in_(OPEN_STATUSES)).distinct()
        specs = await self._database.fetch_values(query)
        contents = await self.gather(self._read_blob, specs)
        return {i.decode() for spec in contents for i in _ARTIFACT_ID.findall(spec or b"")}

    async def find_unreferenced_digests(
        self,
        digests_by_job: Mapping[str, set[str]],
        input_ids: Collection[str],
        cutoff: datetime,
        *,
        keeps_jobs: bool = False,
        hidden_ids: Collection[str] = (),
    ) -> set[str]:
        """Return those blobs in ``digests_by_job`` to which no kept job, artifact or file refers.

        Args:
            digests_by_job: the digests of blobs, by the id of the job that is to be deleted; by ""
                if they are not those of a job.
            input_ids: the ids of artifacts that open jobs use, which are kept.
            cutoff: the time before which the jobs to delete have ended.
            keeps_jobs: True if all jobs are kept that are not in ``digests_by_job``. If False,
                those that ended before ``cutoff`` will be deleted, too.
            hidden_ids: the ids of artifacts that are to be deleted.
        """
        deletable_digests = set().union(*digests_by_job.values())
        async for row in self._iterate_rows(artifacts.c.id, artifacts.c.job_id, artifacts.c.sha256):
            if row["id"] not in hidden_ids and (
                row["job_id"] not in digests_by_job or row["id"] in input_ids
            ):
                deletable_digests.discard(row["sha256"])
        is_read = (_was_created_by if keeps_jobs else _was_open_at)(cutoff).label("is_read")
        async for row in self._iterate_rows(jobs.c.id, *REFERENCE_COLUMNS, is_read):
            if row["id"] not in digests_by_job:
                deletable_digests.difference_update(iterate_direct_digests(row))
                if row["is_read"]:
                    deletable_digests.difference_update(await self.read_nested_digests(row))
        return deletable_digests - await find_file_digests(self._database, deletable_digests)

    async def _iterate_rows(
        self, key: sa.Column[Any], *columns: Any
    ) -> AsyncIterator[Mapping[Any, Any]]:
        """Yield ``key`` and ``columns`` of all rows of their table, sorted by the primary ``key``.

        The rows are read in pages, so that other queries need not wait.
        """
        last_key = ""
        while True:
            query = sa.select(key, *columns).where(key > last_key).order_by(key).limit(PAGE)
            page = await self._database.fetch_all(query)
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            last_key = page[-1][key.name]

    async def delete_blobs(self, digests: Collection[str], cutoff: datetime) -> PruneResult:
        """Delete blobs, except those that were stored or renewed since ``cutoff``."""
        results = await self.gather(
            lambda digest: self._blobs.delete(digest, cutoff), list(digests)
        )
        sizes = [size for size in results if size is not None]
        return PruneResult(files=len(sizes), size=sum(sizes))

    async def gather(self, call: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """Call ``call`` for all items, a few of them concurrently, and return the results."""
        semaphore = asyncio.Semaphore(_CONCURRENCY)

        async def call_limited(item: T) -> R:
            async with semaphore:
                return await call(item)

        return await asyncio.gather(*map(call_limited, items))


def iterate_direct_digests(row: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the digests of the blobs that a job's row names, first that of the job's spec."""
    yield row["spec"]
    if row["record"] is not None:
        yield row["record"]
    for result in row["results"]:
        yield result["output"]


def _list_recorded_digests(output: bytes | None) -> list[str]:
    """Return the digests of the files in the ComfyUI history entry of a step's output."""
    record = (from_json(output) if output else {}).get("record") or {}
    return [file["sha256"] for file in record.get("files", ())]


def split_into_chunks(items: list[str]) -> Iterator[list[str]]:
    """Yield the items in lists of at most `CHUNK` items."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def _was_created_by(cutoff: datetime) -> sa.ColumnElement[bool]:
    """Return the SQL condition for jobs that were submitted before ``cutoff`` or shortly after it.

    Later jobs need no check, because their blobs are too new to be deleted.
    """
    return jobs.c.created_at < cutoff + _STORE_MARGIN


def _was_open_at(cutoff: datetime) -> sa.ColumnElement[bool]:
    """Return the SQL condition for jobs that were open at ``cutoff``."""
    return sa.and_(
        _was_created_by(cutoff),
        sa.or_(jobs.c.status.in_(OPEN_STATUSES), jobs.c.finished_at >= cutoff),
    )
