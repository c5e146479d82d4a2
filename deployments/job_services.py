"""Opens the services that store and run jobs, for the job worker, render pools and intake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from deployments.job_telemetry import JobTelemetry
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore
from moyin.store.limits import LimitStore
from moyin.store.sql import Database


@dataclass(frozen=True, kw_only=True, slots=True)
class JobServices:
    """The clients of the services that store and run jobs."""

    database: Database
    artifacts: ArtifactStore
    jobs: JobStore
    limits: LimitStore
    blobs: BlobStore
    events: EventStore
    frames: FrameStore
    status_writer: JobStatusWriter
    temporal: TemporalConnection


@asynccontextmanager
async def open_job_services(settings: Settings) -> AsyncIterator[JobServices]:
    """Connect to the database, and yield the clients of all services until the context ends."""
    retention = timedelta(days=settings.job_history_days)
    async with AsyncExitStack() as stack:
        database = Database(settings.sql_url)
        stack.push_async_callback(database.close)
        await database.ensure_schema()
        jobs = JobStore(database)
        events = EventStore(settings.redis_url, retention=retention)
        stack.push_async_callback(events.close)
        frames = FrameStore(settings.redis_url)
        stack.push_async_callback(frames.close)
        telemetry = JobTelemetry()
        exporting = asyncio.create_task(telemetry.keep_exporting())
        stack.push_async_callback(_cancel, exporting)
        yield JobServices(
            database=database,
            artifacts=ArtifactStore(database, max_upload_bytes=settings.max_upload_mib * 2**20),
            jobs=jobs,
            limits=LimitStore(database),
            blobs=BlobStore(settings.blobs_url),
            events=events,
            frames=frames,
            status_writer=JobStatusWriter(
                jobs=jobs, events=events, frames=frames, on_end=telemetry.record
            ),
            temporal=TemporalConnection(
                settings.temporal_address, settings.temporal_namespace, retention=retention
            ),
        )


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
