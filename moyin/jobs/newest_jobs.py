"""Reads the newest jobs of a tenant as its lists show them, for clients that follow the lists."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy.exc import SQLAlchemyError

from moyin.domain.job import Job, JobStatus
from moyin.jobs.protocol import wire
from moyin.jobs.protocol.response import QueueView, render_job
from moyin.jobs.queue_places import QueuePlaceCache
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore

_log = logging.getLogger(__name__)
# The default size of a page of jobs.
_LIMIT = 50


class NewestJobsReader:
    """Reads the first page of a tenant's jobs, and counts the open jobs.

    Args:
        places: the cache from which the queue places of open renders are read.
    """

    def __init__(self, jobs: JobStore, places: QueuePlaceCache) -> None:
        self._jobs = jobs
        self._places = places

    async def read(self, owner: str) -> str | None:
        """Return a `wire.NewestJobs` as JSON, or None if the database is unavailable."""
        try:
            page, next_cursor = await self._jobs.list_page(owner, limit=_LIMIT)
            queued_count, running_count = [
                await self._jobs.count(owner, JobFilter(statuses=(status,)))
                for status in (JobStatus.QUEUED, JobStatus.RUNNING)
            ]
        except (SQLAlchemyError, OSError) as error:
            _log.warning("the newest jobs could not be read: %r", error)
            return None
        queue = await view_queue(self._places, page)
        body = wire.NewestJobs(
            jobs=[render_job(job, queue) for job in page],
            next_cursor=next_cursor,
            queued=queued_count,
            running=running_count,
        )
        return body.model_dump_json(ensure_ascii=True)


async def view_queue(places: QueuePlaceCache, jobs: Sequence[Job]) -> QueueView:
    """Return the `QueueView` for a response that contains ``jobs``.

    The queue places are read only if one of the jobs is an open render.
    """
    has_open = any(job.render_steps and not job.status.is_final for job in jobs)
    return QueueView(now=datetime.now(UTC), places=await places.read() if has_open else {})
