"""`JobWorker`: the Serve deployment that runs job workflows and their light steps. No HTTP."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

from deployments.logs import configure_logs
from moyin.access.gatekeeper import acting_for
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.gateway_client import DoorClient
from moyin.jobs.webhooks.sender import WebhookSender
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.client import JobLauncher, Temporal
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.worker import JobRunner, Sweeper
from moyin.settings import Settings
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore
from moyin.store.pruning import Pruner
from moyin.store.sql import Database
from moyin.system.garbage import freeze_startup_objects

__all__ = ["JobWorker"]


class JobWorker:
    """A Temporal worker of the queue ``jobs`` and a sweeper, side by side with its replicas."""

    # Serve awaits constructors.
    async def __init__(self, concurrency: int) -> None:  # type: ignore[misc]
        settings = Settings()
        configure_logs(settings.log_level)
        retention = timedelta(days=settings.job_history_days)
        signing_key = settings.signing_key()
        self._closing = AsyncExitStack()
        database = Database(settings.sql_url)
        self._closing.push_async_callback(database.close)
        await database.ready()
        jobs = JobStore(database)
        events = EventStore(settings.redis_url, retention=retention)
        self._closing.push_async_callback(events.close)
        frames = FrameStore(settings.redis_url)
        self._closing.push_async_callback(frames.close)
        temporal = Temporal(
            settings.temporal_address, settings.temporal_namespace, retention=retention
        )
        door = DoorClient(settings.door, acting_for(signing_key, "jobs"))
        webhooks = WebhookSender(
            signing_key=signing_key, networks=AllowedNetworks(settings.webhook_networks)
        )
        blobs = BlobStore(settings.blobs_url)
        activities = JobActivities(
            jobs=jobs,
            blobs=blobs,
            record=JobStatusWriter(jobs=jobs, events=events, frames=frames),
            door=await self._closing.enter_async_context(door),
            webhooks=await self._closing.enter_async_context(webhooks),
        )
        self._runner = JobRunner(
            temporal=temporal,
            activities=activities,
            sweeper=Sweeper(jobs=jobs, launcher=JobLauncher(jobs=jobs, temporal=temporal)),
            concurrency=concurrency,
        )
        self._running = asyncio.create_task(self._runner.run())
        self._pruning = asyncio.create_task(
            Pruner(database, blobs).keep_pruning(settings.keep_jobs_days)
        )
        freeze_startup_objects()

    async def check_health(self) -> None:
        """Tell Serve to replace a replica whose worker has crashed; Temporal's absence is fine.

        Raises:
            RuntimeError: the worker is not running any more.
        """
        if self._running.done() or self._runner.error is not None:
            raise RuntimeError("the job worker has stopped") from self._runner.error

    async def __del__(self) -> None:
        await self._runner.stop()
        for task in (self._running, self._pruning):
            task.cancel()
        await asyncio.gather(self._running, self._pruning, return_exceptions=True)
        await self._closing.aclose()
