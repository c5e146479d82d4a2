"""Defines `JobWorker`, the Serve deployment that runs job workflows and their light steps."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta

from deployments.logs import configure_logs
from moyin.access.gatekeeper import create_service_token_factory
from moyin.client.gateway import GatewayClient
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.step_client import StepClient
from moyin.jobs.webhooks import WebhookSender
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.worker import JobRunner, Sweeper
from moyin.settings import Settings
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore
from moyin.store.pruning import Pruner
from moyin.store.sql import Database
from moyin.system.processes import freeze_startup_objects

__all__ = ["JobWorker"]


class JobWorker:
    """Runs a Temporal worker of the queue ``jobs`` and a sweeper in each replica; serves no HTTP."""

    # Serve awaits constructors.
    async def __init__(self, concurrency: int) -> None:  # type: ignore[misc]
        settings = Settings()
        configure_logs(settings.log_level)
        retention = timedelta(days=settings.job_history_days)
        signing_key = settings.signing_key()
        self._closing = AsyncExitStack()
        database = Database(settings.sql_url)
        self._closing.push_async_callback(database.close)
        await database.ensure_schema()
        jobs = JobStore(database)
        events = EventStore(settings.redis_url, retention=retention)
        self._closing.push_async_callback(events.close)
        frames = FrameStore(settings.redis_url)
        self._closing.push_async_callback(frames.close)
        temporal = TemporalConnection(
            settings.temporal_address, settings.temporal_namespace, retention=retention
        )
        gateway = GatewayClient(
            settings.door,
            token_for=create_service_token_factory(signing_key, "jobs"),
            silence_seconds=600,
        )
        webhooks = WebhookSender(
            signing_key=signing_key, networks=AllowedNetworks(settings.webhook_networks)
        )
        blobs = BlobStore(settings.blobs_url)
        activities = JobActivities(
            jobs=jobs,
            blobs=blobs,
            status_writer=JobStatusWriter(jobs=jobs, events=events, frames=frames),
            step_client=StepClient(await self._closing.enter_async_context(gateway)),
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
        """Check that the worker has not crashed; Serve replaces the replica if it has.

        An outage of Temporal is no reason to replace it.

        Raises:
            RuntimeError: the worker has crashed.
        """
        if self._running.done() or self._runner.error is not None:
            raise RuntimeError("the job worker has stopped") from self._runner.error

    async def __del__(self) -> None:
        await self._runner.stop()
        for task in (self._running, self._pruning):
            task.cancel()
        await asyncio.gather(self._running, self._pruning, return_exceptions=True)
        await self._closing.aclose()
