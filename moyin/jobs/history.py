"""Defines `JobHistory`, which deletes jobs, and cancels or deletes the jobs that match a filter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from moyin.domain.identity import Identity
from moyin.domain.job import Job, StepKind, apply_batch_patch
from moyin.errors import (
    InvalidRequest,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    Overloaded,
)
from moyin.jobs.service import JobService
from moyin.store.job_filter import JobFilter
from moyin.store.job_rows import OPEN_JOB_STATUSES
from moyin.store.jobs import JobStore
from moyin.system.heavy_work import run_aside

# Jobs per transaction. During a transaction, no other job can be submitted to SQLite.
_CHUNK = 100
# The most jobs that a request changes, and the most that a dry run counts.
MAX_CHANGED = 10_000
MAX_COUNTED = 1_000_000
# The usual size of a node's JSON.
_BYTES_PER_NODE = 256
_COUNTED_PER_QUERY = 5_000
# The most pages that a request reads. Some pages may have few matching jobs.
_MAX_PAGES = 500
_CONCURRENT_CANCELLATIONS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkResult:
    """The numbers of jobs that a bulk operation has matched and changed.

    Attributes:
        matched: the number of jobs that match the filter.
        done: the number of jobs that were cancelled or deleted.
        skipped: the number of matching jobs that could not be changed: deleting skips jobs that
            have not ended, and cancelling skips jobs that have ended.
        next_cursor: the position where another request continues, or None if all jobs were checked.
    """

    matched: int
    done: int
    skipped: int
    next_cursor: str | None


class JobHistory:
    """Deletes jobs, and cancels or deletes many jobs by a filter.

    Only one request with a filter is processed at a time for each tenant.
    """

    def __init__(self, service: JobService, jobs: JobStore) -> None:
        self._service = service
        self._jobs = jobs
        self._busy_owners: set[str] = set()

    async def delete(self, owner: str, job_id: str) -> None:
        """Delete an ended job with its events and files.

        Raises:
            JobNotFound: the owner has no job with this id.
            JobNotFinished: the job is queued or running.
        """
        job = await self._jobs.get(owner, job_id)
        deletion = await self._service.delete(owner, [job.id])
        if deletion.still_open:
            raise JobNotFinished(
                f"job {job_id} has not ended; cancel it first with POST /jobs/{job_id}/cancel"
            )
        if not deletion.deleted:
            raise JobNotFound(f"job {job_id!r} does not exist, or you may not see it")

    async def delete_matching(
        self, caller: Identity, where: JobFilter, *, dry_run: bool, cursor: str | None
    ) -> BulkResult:
        """Delete the ended jobs that match ``where``, or with ``dry_run`` only count them.

        Raises the errors of `cancel_matching`.
        """

        async def delete(job_ids: Sequence[str]) -> int:
            return len((await self._service.delete(caller.owner, job_ids)).deleted)

        return await self._change_matching(
            caller.owner, where, delete, dry_run=dry_run, cursor=cursor
        )

    async def cancel_matching(
        self, caller: Identity, where: JobFilter, *, dry_run: bool, cursor: str | None
    ) -> BulkResult:
        """Request the cancellation of the queued and running jobs that match ``where``.

        Args:
            dry_run: True to count the jobs and change nothing.
            cursor: the ``next_cursor`` of the previous result, or None to begin.

        Raises:
            InvalidRequest: the filter has no condition, or the cursor is invalid.
            Overloaded: another such request of the tenant is in progress.
            ServiceUnavailable: Temporal is unavailable; some jobs may have been cancelled.
        """

        async def cancel(job_ids: Sequence[str]) -> int:
            cancelled_count = 0
            for start in range(0, len(job_ids), _CONCURRENT_CANCELLATIONS):
                job_id_chunk = job_ids[start : start + _CONCURRENT_CANCELLATIONS]
                results = await asyncio.gather(
                    *(self._try_cancel_job(caller, job_id) for job_id in job_id_chunk),
                    return_exceptions=True,
                )
                for result in results:
                    if isinstance(result, BaseException):
                        raise result
                    cancelled_count += result
            return cancelled_count

        _require_condition(where)
        statuses = tuple(
            status for status in OPEN_JOB_STATUSES if status in (where.statuses or (status,))
        )
        if not statuses:
            return BulkResult(matched=0, done=0, skipped=0, next_cursor=None)
        where = replace(where, statuses=statuses)
        return await self._change_matching(
            caller.owner, where, cancel, dry_run=dry_run, cursor=cursor
        )

    async def encode_graph(self, job: Job, step_index: int) -> bytes:
        """Return the JSON of `get_graph`, whose errors are raised."""
        graph = await self.get_graph(job, step_index)
        async with self._service.work.admit(job.owner, len(graph) * _BYTES_PER_NODE):
            return await run_aside(to_json, graph)

    async def get_graph(self, job: Job, step_index: int) -> Mapping[str, Any]:
        """Return the graph of a step or a batch's child, in the format that ``POST /jobs`` accepts.

        Raises:
            JobNotFound: the step does not exist or is not a render, or its graph has been deleted.
        """
        spec = await self._service.load_spec(job)
        if spec is None:
            raise JobNotFound(f"the graph of job {job.id} was deleted from the artifact store")
        if step_index >= len(spec.steps) or spec.steps[step_index].kind is not StepKind.RENDER:
            raise JobNotFound(
                f"step must be the index of a render of job {job.id}; step {step_index} is not one"
            )
        payload = spec.steps[step_index].payload
        return payload if spec.base is None else apply_batch_patch(spec.base, payload)

    async def _try_cancel_job(self, caller: Identity, job_id: str) -> bool:
        try:
            await self._service.cancel(caller, job_id)
        except (JobNotFound, JobFinished):
            return False
        return True

    async def _change_matching(
        self,
        owner: str,
        where: JobFilter,
        change: Callable[[Sequence[str]], Awaitable[int]],
        *,
        dry_run: bool,
        cursor: str | None,
    ) -> BulkResult:
        _require_condition(where)
        if dry_run and where.is_indexed and cursor is None:
            count = await self._jobs.count(owner, where)
            return BulkResult(matched=count, done=0, skipped=0, next_cursor=None)
        matched_count = done_count = 0
        page_size, max_matched = (
            (_COUNTED_PER_QUERY, MAX_COUNTED) if dry_run else (_CHUNK, MAX_CHANGED)
        )
        with self._lock_tenant(owner):
            for _ in range(_MAX_PAGES):
                page = await self._jobs.list_ids(owner, where, limit=page_size, cursor=cursor)
                matched_count, cursor = matched_count + len(page.ids), page.next_cursor
                if page.ids and not dry_run:
                    done_count += await change(page.ids)
                if cursor is None or matched_count >= max_matched:
                    break
        skipped = 0 if dry_run else matched_count - done_count
        return BulkResult(
            matched=matched_count, done=done_count, skipped=skipped, next_cursor=cursor
        )

    @contextmanager
    def _lock_tenant(self, owner: str) -> Iterator[None]:
        if owner in self._busy_owners:
            raise Overloaded(
                "another request that changes many of your jobs is in progress; try again in a few seconds",
                retry_after=5,
            )
        self._busy_owners.add(owner)
        try:
            yield
        finally:
            self._busy_owners.discard(owner)


def _require_condition(where: JobFilter) -> None:
    if where.is_empty:
        raise InvalidRequest(
            "filter must have at least one condition, such as status or created_before",
            field="filter",
        )
