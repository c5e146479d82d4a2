"""Contains `JobWorker`, the Serve deployment that runs job workflows and their light steps."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from deployments.job_services import open_job_services
from deployments.logs import configure_logs
from moyin.access.gatekeeper.identity import create_service_token_factory
from moyin.access.gatekeeper.limits import create_meter
from moyin.client.gateway import GatewayClient
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.budgets import BudgetSettler
from moyin.jobs.step_client import StepClient
from moyin.jobs.webhooks import WebhookSender
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.jobs.workflows.text_batches import (
    TextBatchActivities,
    TextBatchSweeper,
    new_text_batch_worker,
)
from moyin.jobs.workflows.worker import JobRunner, Sweeper
from moyin.settings import Settings
from moyin.store.batch_lines import BatchLineStore
from moyin.store.files import FileStore
from moyin.store.pruning import Pruner
from moyin.store.text_batches import TextBatchStore
from moyin.system.processes import freeze_startup_objects
from moyin.system.ranks import Rank, take_rank


class JobWorker:
    """Runs a Temporal worker of the queue ``jobs``. It serves no HTTP.

    It also starts accepted jobs whose gateway died before it started them (`Sweeper`), and deletes
    old jobs (`Pruner`).
    """

    # Serve awaits constructors.
    async def __init__(self, concurrency: int) -> None:  # type: ignore[misc]
        settings = Settings()
        take_rank(Rank.REPLICA)
        configure_logs(settings.log_level)
        signing_key = settings.signing_key()
        self._resources = AsyncExitStack()
        services = await self._resources.enter_async_context(open_job_services(settings))
        jobs, temporal = services.jobs, services.temporal
        gateway = GatewayClient(
            settings.door,
            token_for=create_service_token_factory(signing_key, "jobs"),
            silence_seconds=600,
        )
        webhooks = WebhookSender(
            signing_key=signing_key, networks=AllowedNetworks(settings.webhook_networks)
        )
        gateway = await self._resources.enter_async_context(gateway)
        meter = create_meter(settings)
        self._resources.push_async_callback(meter.close)
        batches = TextBatchStore(services.database)
        batch_activities = TextBatchActivities(
            batches=batches,
            lines=BatchLineStore(services.database),
            files=FileStore(services.database, max_bytes=settings.max_upload_mib * 2**20),
            blobs=services.blobs,
            gateway=gateway,
            max_line_bytes=settings.max_body_bytes,
        )
        activities = JobActivities(
            jobs=jobs,
            blobs=services.blobs,
            status_writer=services.status_writer,
            step_client=StepClient(gateway),
            webhooks=await self._resources.enter_async_context(webhooks),
        )
        self._runner = JobRunner(
            temporal=temporal,
            activities=activities,
            sweeper=Sweeper(jobs=jobs, launcher=JobLauncher(jobs=jobs, temporal=temporal)),
            concurrency=concurrency,
            extra_worker_factories=[lambda client: new_text_batch_worker(client, batch_activities)],
            extra_sweepers=[
                TextBatchSweeper(batches, temporal),
                BudgetSettler(services.database, meter.job_reservations),
            ],
        )
        self._running = asyncio.create_task(self._runner.run())
        self._pruning = asyncio.create_task(
            Pruner(services.database, services.blobs).keep_pruning(settings.keep_jobs_days)
        )
        freeze_startup_objects()

    async def check_health(self) -> None:
        """Raise RuntimeError if the worker has crashed, so that Serve replaces the replica.

        An outage of Temporal does not count as a crash.
        """
        if self._running.done() or self._runner.error is not None:
            raise RuntimeError(
                "the job worker has crashed, so Serve replaces the replica, whose log has the cause"
            ) from self._runner.error

    async def __del__(self) -> None:
        await self._runner.stop()
        for task in (self._running, self._pruning):
            task.cancel()
        await asyncio.gather(self._running, self._pruning, return_exceptions=True)
        await self._resources.aclose()
