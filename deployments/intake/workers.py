"""Builds the intake's workers from its configuration, without Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from deployments.intake.config import IntakeArgs, RabbitConfig, StreamConfig
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.domain.identity import Identity
from moyin.domain.limits import Limit
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.feed import JobFeed
from moyin.jobs.intake import Broker, IntakeWorker
from moyin.jobs.intake.streams import StreamBroker
from moyin.jobs.ports import GraphValidator
from moyin.jobs.service import JobService
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.render.comfyui.pool_client import PoolClient
from moyin.render.templates.catalog import create_catalog
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore
from moyin.store.limits import LimitStore
from moyin.store.sql import Database

__all__ = ["open_workers"]


@asynccontextmanager
async def open_workers(
    args: IntakeArgs,
    settings: Settings,
    environ: Mapping[str, str],
    validator: GraphValidator,
    pool_client: PoolClient,
) -> AsyncIterator[list[IntakeWorker]]:
    """Open the stores and yield one worker per source, for the caller to run.

    Raises:
        ValueError: the URL of a broker, or the library for it, is missing.
    """
    brokers = [_broker(source, environ) for source in args.sources]
    async with AsyncExitStack() as closing:
        database = Database(settings.sql_url)
        closing.push_async_callback(database.close)
        await database.ensure_schema()
        retention = timedelta(days=settings.job_history_days)
        jobs = JobStore(database)
        events = EventStore(settings.redis_url, retention=retention)
        closing.push_async_callback(events.close)
        frames = FrameStore(settings.redis_url)
        closing.push_async_callback(frames.close)
        hub = EventHub(settings.redis_url)
        closing.push_async_callback(hub.close)
        temporal = TemporalConnection(
            settings.temporal_address, settings.temporal_namespace, retention=retention
        )
        launcher = JobLauncher(jobs=jobs, temporal=temporal)
        closing.push_async_callback(launcher.close)
        facts = NodeInfoCache(pool_client)
        closing.push_async_callback(facts.close)
        service = JobService(
            jobs=jobs,
            artifacts=ArtifactStore(database),
            blobs=BlobStore(settings.blobs_url),
            events=events,
            frames=frames,
            launcher=launcher,
            validator=validator,
            guard=GraphAdmission(facts),
            pools=args.pools,
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
                limits=LimitStore(database),
                templates=templates,
                max_deliveries=source.max_deliveries,
                max_body_bytes=settings.max_body_bytes,
            )
            for source, broker in zip(args.sources, brokers, strict=True)
        ]


def _broker(source: RabbitConfig | StreamConfig, environ: Mapping[str, str]) -> Broker:
    url = environ.get(source.url_env)
    if not url:
        raise ValueError(
            f"the environment variable {source.url_env} must be set to the URL of the {source.type} broker"
        )
    if isinstance(source, StreamConfig):
        return StreamBroker(
            url,
            stream=source.stream,
            results=source.results,
            dead_letters=source.dead_letters,
            group=source.group,
            concurrency=source.concurrency,
            claim_after=source.claim_after,
            kept=source.kept,
        )
    try:
        from moyin.jobs.intake.rabbit import RabbitBroker
    except ImportError:
        raise ValueError(
            "RabbitMQ needs the package aio-pika: pip install -e '.[intake]'"
        ) from None
    return RabbitBroker(
        url,
        queue=source.queue,
        results=source.results,
        dead_letters=source.dead_letters,
        declare=source.declare,
        concurrency=source.concurrency,
        max_deliveries=source.max_deliveries,
    )
