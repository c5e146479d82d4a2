"""`Gateway`: the Serve deployment behind ``/``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from deployments.gateway.app import GatewayParts, new_app
from deployments.gateway.validation import PoolValidator
from deployments.logs import configure_logs
from deployments.observer import ServeObserver
from moyin.gatekeeper import Gatekeeper, KeyAuthenticator
from moyin.jobs.feed import JobFeed
from moyin.jobs.service import JobService
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from moyin.webhooks.addresses import Networks
from workflows.client import JobLauncher, Temporal

__all__ = ["Gateway"]


class Gateway:
    """Constructs the gateway's parts inside the replica."""

    def __init__(self, pools: tuple[str, ...]) -> None:
        settings = Settings()
        configure_logs(settings.log_level)
        retention = timedelta(days=settings.job_history_days)
        database = Database(settings.sql_url)
        jobs = JobStore(database)
        blobs = BlobStore(settings.blobs_url)
        events = EventStore(settings.redis_url, retention=retention)
        hub = EventHub(settings.redis_url)
        signing_key = settings.signing_key()
        launcher = JobLauncher(
            jobs=jobs,
            temporal=Temporal(
                settings.temporal_address, settings.temporal_namespace, retention=retention
            ),
        )

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            await database.ready()
            yield
            await hub.close()
            await events.close()
            await database.close()

        self._parts = GatewayParts(
            service=JobService(
                jobs=jobs,
                blobs=blobs,
                events=events,
                launcher=launcher,
                validator=PoolValidator(),
                pools=pools,
                networks=Networks(settings.webhook_networks),
            ),
            jobs=jobs,
            feed=JobFeed(jobs=jobs, events=events, hub=hub),
            artifacts=ArtifactStore(database),
            blobs=blobs,
            authenticator=KeyAuthenticator(KeyStore(database), signing_key),
            observer=ServeObserver(settings.log_level),
            checks={"database": database.ping, "temporal": launcher.ping, "valkey": events.ping},
            signing_key=signing_key,
            max_body_bytes=settings.max_body_bytes,
            lifespan=lifespan,
        )

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._parts).unnamed()
