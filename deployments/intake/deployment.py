"""Contains `Intake`, the Serve deployment that accepts jobs from message queues."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from deployments.gateway.pools import PoolValidator, ServePoolClient
from deployments.intake.config import IntakeArgs, RabbitConfig, StreamConfig
from deployments.job_services import open_job_services
from deployments.logs import configure_logs
from moyin.access.gatekeeper.limits import create_meter
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.domain.cluster import IntakeSourceSummary
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.budgets import RenderBudgets
from moyin.jobs.feed import JobFeed
from moyin.jobs.intake import Broker, IntakeWorker
from moyin.jobs.intake.streams import StreamBroker
from moyin.jobs.ports import GraphValidator
from moyin.jobs.service import JobService
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.render.comfyui.pool_client import PoolClient
from moyin.render.templates.catalog import create_catalog
from moyin.settings import Settings
from moyin.store.comfy_file_names import UploadStore
from moyin.store.hub import EventHub
from moyin.store.prompts import PromptStore
from moyin.system.ranks import Rank, take_rank


class Intake:
    """Runs a worker for each configured message queue. It serves no HTTP."""

    # Serve awaits constructors.
    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]
        settings = Settings()
        take_rank(Rank.REPLICA)
        configure_logs(settings.log_level)
        self._resources = AsyncExitStack()
        config = self._config = IntakeArgs.model_validate(args)
        self._workers = await self._resources.enter_async_context(
            open_workers(
                config, settings, os.environ, PoolValidator(), ServePoolClient(config.pools)
            )
        )
        self._running = [asyncio.create_task(worker.run()) for worker in self._workers]

    async def check_health(self) -> None:
        """Raise RuntimeError if a worker has crashed, so that Serve replaces the replica.

        An outage of a broker does not count as a crash.
        """
        for worker, task in zip(self._workers, self._running, strict=True):
            if task.done() or worker.error is not None:
                raise RuntimeError(
                    "an intake worker has crashed, so Serve replaces the replica, whose log has the "
                    "cause"
                ) from worker.error

    async def read_sources(self) -> list[IntakeSourceSummary]:
        """Return the state of each configured source, without secrets."""
        return [
            summarize_source(source, worker, os.environ)
            for source, worker in zip(self._config.sources, self._workers, strict=True)
        ]

    async def __del__(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._resources.aclose()


@asynccontextmanager
async def open_workers(
    args: IntakeArgs,
    settings: Settings,
    environment: Mapping[str, str],
    validator: GraphValidator,
    pool_client: PoolClient,
) -> AsyncIterator[list[IntakeWorker]]:
    """Open the stores that workers need, and yield one worker per source; none is started yet.

    Raises:
        ValueError: the URL of a broker, or the library for it, is missing.
    """
    brokers = [_new_broker(source, environment) for source in args.sources]
    async with AsyncExitStack() as exit_stack:
        services = await exit_stack.enter_async_context(open_job_services(settings))
        jobs, events = services.jobs, services.events
        hub = EventHub(settings.redis_url)
        exit_stack.push_async_callback(hub.close)
        launcher = JobLauncher(jobs=jobs, temporal=services.temporal)
        exit_stack.push_async_callback(launcher.close)
        meter = create_meter(settings)
        exit_stack.push_async_callback(meter.close)
        node_info = NodeInfoCache(pool_client, folder=settings.data / "comfyui" / "nodes")
        exit_stack.push_async_callback(node_info.close)
        files = ComfyFiles(
            uploads=UploadStore(
                services.database, max_upload_bytes=settings.max_upload_mib * 2**20
            ),
            artifacts=services.artifacts,
            prompts=PromptStore(services.database),
            blobs=services.blobs,
            frames=services.frames,
        )
        service = JobService(
            jobs=jobs,
            artifacts=services.artifacts,
            files=files,
            blobs=services.blobs,
            events=events,
            frames=services.frames,
            launcher=launcher,
            validator=validator,
            guard=GraphAdmission(node_info, settings.graph_bounds),
            budgets=RenderBudgets(meter, node_info),
            networks=AllowedNetworks(settings.webhook_networks),
        )
        templates = create_catalog(settings)
        yield [
            IntakeWorker(
                broker,
                name=source.source_name,
                service=service,
                jobs=jobs,
                feed=JobFeed(jobs=jobs, events=events, hub=hub),
                submitter=Identity(
                    owner=source.owner,
                    key_id=f"intake:{source.source_name}"[:64],
                    scopes=source.scopes,
                    limits=(
                        Limit(
                            subject=f"key:{source.source_name}", best_priority=source.best_priority
                        ),
                    ),
                ),
                limits=services.limits,
                templates=templates,
                max_deliveries=source.max_deliveries,
                max_body_bytes=settings.max_body_bytes,
            )
            for source, broker in zip(args.sources, brokers, strict=True)
        ]


def summarize_source(
    source: RabbitConfig | StreamConfig, worker: IntakeWorker, environment: Mapping[str, str]
) -> IntakeSourceSummary:
    """Return the state of a source and of its worker."""
    counts = worker.counts
    return IntakeSourceSummary(
        name=source.source_name,
        owner=source.owner,
        kind=source.type,
        address=find_address(environment.get(source.url_env, "")),
        queue=source.stream if isinstance(source, StreamConfig) else source.queue,
        is_connected=worker.is_connected,
        started=counts.started,
        last_message=counts.last_message,
        accepted=counts.accepted,
        refused=counts.refused,
        open=counts.open,
    )


def find_address(url: str) -> str | None:
    """Return the host and port in the URL of a broker, or None if they are not certain.

    In a URL that is not valid, a part of the password could look like the host.
    """
    try:
        url_parts = urlsplit(url)
        port = url_parts.port
    except ValueError:
        return None
    if url_parts.hostname is None or url_parts.netloc.count("@") != url.count("@"):
        return None
    host = f"[{url_parts.hostname}]" if ":" in url_parts.hostname else url_parts.hostname
    return host if port is None else f"{host}:{port}"


def _new_broker(source: RabbitConfig | StreamConfig, environment: Mapping[str, str]) -> Broker:
    url = environment.get(source.url_env)
    if not url:
        raise ValueError(
            f"the environment variable {source.url_env} must be set to the URL of the {source.type} broker"
        )
    if isinstance(source, StreamConfig):
        option_names = {
            "stream",
            "results",
            "dead_letters",
            "group",
            "concurrency",
            "claim_after",
            "kept",
        }
        return StreamBroker(url, **source.model_dump(include=option_names))
    try:
        from moyin.jobs.intake.rabbit import RabbitBroker
    except ImportError:
        raise ValueError(
            "a source of type rabbitmq needs the package aio-pika: pip install -e '.[intake]'"
        ) from None
    option_names = {"queue", "results", "dead_letters", "declare", "concurrency", "max_deliveries"}
    return RabbitBroker(url, **source.model_dump(include=option_names))
