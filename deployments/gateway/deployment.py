"""`Gateway`: the Serve deployment behind ``/``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from deployments.gateway.app import GatewayParts, new_app
from deployments.gateway.config import GatewayConfig
from deployments.gateway.frontend import FrontendFiles
from deployments.gateway.pools import ServePoolClient
from deployments.gateway.validation import PoolValidator
from deployments.hot import HotConfig
from deployments.logs import configure_logs
from deployments.observer import ServeObserver
from moyin.access.gatekeeper import Gatekeeper, new_authenticator
from moyin.access.gatekeeper.addresses import TrustedProxies
from moyin.access.gatekeeper.limits import new_meter
from moyin.comfy_api import Farm
from moyin.comfy_api.admission import Admission
from moyin.comfy_api.files import FarmFiles
from moyin.comfy_api.frontend import find_frontend
from moyin.comfy_api.listener import FarmEvents
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.prompts import FarmPrompts
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.deferred import DeferredCalls
from moyin.jobs.feed import JobFeed
from moyin.jobs.grpc.bridge import GrpcBridge
from moyin.jobs.grpc.servicer import MoyinCalls
from moyin.jobs.service import JobService
from moyin.jobs.workflows.client import JobLauncher, Temporal
from moyin.proxy import Proxy
from moyin.render.imaging import PictureConverter, PictureProcesses
from moyin.render.templates.catalog import new_catalog
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameHub, FrameStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore
from moyin.store.prompts import PromptStore
from moyin.store.sql import Database
from moyin.store.tenant_cache import TenantCache
from moyin.store.uploads import UploadStore
from moyin.store.userdata import UserdataStore
from moyin.system.garbage import freeze_startup_objects

__all__ = ["Gateway"]


class Gateway(MoyinCalls):
    """Constructs the gateway's parts inside the replica; Serve's gRPC ingress calls it as well."""

    def __init__(self, pools: tuple[str, ...]) -> None:
        settings = Settings()
        configure_logs(settings.log_level)
        retention = timedelta(days=settings.job_history_days)
        database = Database(settings.sql_url)
        jobs = JobStore(database)
        blobs = BlobStore(settings.blobs_url)
        events = EventStore(settings.redis_url, retention=retention)
        frames = FrameStore(settings.redis_url)
        frame_hub = FrameHub(settings.redis_url)
        hub = EventHub(settings.redis_url)
        processes = PictureProcesses()
        previews = TenantCache(settings.redis_url, "moyin:pictures")
        signing_key = settings.signing_key()
        meter = new_meter(settings)
        launcher = JobLauncher(
            jobs=jobs,
            temporal=Temporal(
                settings.temporal_address, settings.temporal_namespace, retention=retention
            ),
        )

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            await database.ready()
            freeze_startup_objects()
            yield
            await processes.close()
            await previews.close()
            await facts.close()
            await self.grpc_bridge.close()
            await launcher.close()
            await hub.close()
            await frame_hub.close()
            await frames.close()
            await events.close()
            await meter.close()
            await database.close()

        artifacts = ArtifactStore(database)
        validator = PoolValidator()
        asker = ServePoolClient(pools)
        facts = NodeInfoCache(asker, folder=settings.data / "comfyui" / "nodes")
        admission = Admission(facts)
        service = JobService(
            jobs=jobs,
            artifacts=artifacts,
            blobs=blobs,
            events=events,
            frames=frames,
            launcher=launcher,
            validator=validator,
            guard=admission,
            pools=pools,
            networks=AllowedNetworks(settings.webhook_networks),
        )
        feed = JobFeed(jobs=jobs, events=events, hub=hub)
        prompts = PromptStore(database)
        files = FarmFiles(
            uploads=UploadStore(database),
            artifacts=artifacts,
            prompts=prompts,
            blobs=blobs,
            frames=frames,
        )
        self.grpc_bridge = GrpcBridge(settings.door)
        self._proxy = Proxy(
            signing_key=signing_key,
            meter=meter,
            deferral=DeferredCalls(service, blobs),
            proxies=TrustedProxies(settings.trusted_proxies),
        )
        self._config = HotConfig(
            GatewayConfig, lambda config: self._proxy.configure(config.table(settings.door))
        )
        farm_events = FarmEvents(
            prompts=prompts, files=files, blobs=blobs, frames=frames, hub=frame_hub
        )
        self._parts = GatewayParts(
            service=service,
            jobs=jobs,
            feed=feed,
            artifacts=artifacts,
            blobs=blobs,
            pictures=PictureConverter(blobs, processes, previews),
            farm=Farm(
                prompts=FarmPrompts(
                    service=service,
                    feed=feed,
                    validator=validator,
                    guard=admission,
                    prompts=prompts,
                    files=files,
                    blobs=blobs,
                    executed=asker.executed,
                    heard=farm_events.heard,
                ),
                files=files,
                events=farm_events,
            ),
            userdata=UserdataStore(database),
            facts=facts,
            admission=admission,
            frontend=FrontendFiles(lambda: find_frontend(settings)),
            templates=new_catalog(settings),
            proxy=self._proxy,
            authenticator=new_authenticator(database, signing_key),
            meter=meter,
            observer=ServeObserver(settings.log_level),
            checks={"database": database.ping, "temporal": launcher.ping, "valkey": events.ping},
            signing_key=signing_key,
            max_body_bytes=settings.max_body_bytes,
            retention=retention,
            lifespan=lifespan,
        )

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over a new route table; requests under way end as they began."""
        self._config.take(user_config)

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._parts).unnamed()
