"""Contains `JobTelemetry`, which exports metrics of the jobs that end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque

from ray.util import metrics

from deployments.observer import BatchHistogram
from moyin.domain.job import Job

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 1.0
# Bound of the queue: more jobs than a process can end in one interval.
_QUEUE_CAPACITY = 10_000
_BOUNDS_SECONDS = (1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 10_800.0, 86_400.0)


class JobTelemetry:
    """Counts ended jobs and measures how long they took, from submission to the end.

    `record` only adds a job to a queue, because passing one value to Ray takes as long as routing a
    request. `export` passes the values of all queued jobs to Ray together.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque(maxlen=_QUEUE_CAPACITY)
        self._ended = metrics.Counter(
            "moyin_jobs_ended",
            "Attempts of jobs that ended, by kind and status.",
            tag_keys=("kind", "status"),
        )
        self._seconds = BatchHistogram(
            "moyin_job_seconds",
            "Seconds from the submission of an attempt to its end, by kind and status.",
            _BOUNDS_SECONDS,
            ("kind", "status"),
        )

    def record(self, job: Job) -> None:
        """Queue an ended job for the next export."""
        self._jobs.append(job)

    def export(self) -> None:
        """Pass the queued jobs to Ray's metrics."""
        jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        for (kind, status), count in Counter((job.kind, job.status.value) for job in jobs).items():
            self._ended.inc(count, {"kind": kind, "status": status})
        self._seconds.add(
            ((job.kind, job.status.value), (job.finished_at - started_at).total_seconds())
            for job in jobs
            if job.finished_at is not None
            and (started_at := job.queued_at or job.created_at) <= job.finished_at
        )

    async def keep_exporting(self) -> None:
        """Export every second until cancelled, and then the jobs that have ended meanwhile."""
        try:
            while True:
                await asyncio.sleep(_INTERVAL_SECONDS)
                self._try_export()
        finally:
            self._try_export()

    def _try_export(self) -> None:
        try:
            self.export()
        except Exception:
            _log.exception("exporting the metrics of jobs failed")
