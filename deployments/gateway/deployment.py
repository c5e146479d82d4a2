"""Defines the Ray Serve deployment of the gateway, which creates the services of a replica."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Protocol, TypeVar

from deployments.gateway.app import GatewayServices, new_app
from deployments.gateway.cluster.bodies import ClusterBody
from deployments.gateway.cluster.config_changes import ConfigRecorder
from deployments.gateway.cluster.doctor import check_machine
from deployments.gateway.cluster.feeds import ClusterFeeds, FeedSources, Viewer
from deployments.gateway.cluster.problems import ProblemFinder
from deployments.gateway.cluster.routes_view import build_links, build_routes
from deployments.gateway.cluster.snapshot import build_cluster
from deployments.gateway.cluster.sources import (
    ClusterSources,
    read_backends,
    read_models,
    read_usage,
)
from deployments.gateway.config import GatewayConfig
from deployments.gateway.frontend import FrontendFiles
from deployments.gateway.pools import PoolValidator, ServePoolClient
from deployments.logs import configure_logs
from deployments.observer import RequestObserver
from deployments.replicas import ReloadableConfig
from moyin.access.gatekeeper.asgi import TrustedProxies
from moyin.access.gatekeeper.identity import create_authenticator
from moyin.access.gatekeeper.limits import create_meter
from moyin.access.gatekeeper.middleware import Gatekeeper
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.frontend import find_frontend
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.notifier import PromptNotifiers
from moyin.comfy_api.prompts import ComfyPrompts
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.budgets import RenderBudgets
from moyin.jobs.deferred import DeferredCalls
from moyin.jobs.feed import JobFeed
from moyin.jobs.grpc.bridge import GrpcBridge, MoyinCalls
from moyin.jobs.grpc.health import HealthMonitor
from moyin.jobs.newest_jobs import NewestJobsReader
from moyin.jobs.previews import PreviewFeed
from moyin.jobs.queue_places import QueuePlaceCache
from moyin.jobs.service import JobService
from moyin.jobs.workflows.backlog import read_backlog
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.proxy.engine import Proxy
from moyin.render.imaging import PictureConverter, PictureProcesses
from moyin.render.templates.catalog import create_catalog
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.comfy_file_names import UploadStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameHub, FrameStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore
from moyin.store.previews import PreviewHub, PreviewStore
from moyin.store.prompts import PromptStore
from moyin.store.sessions import SessionStore
from moyin.store.sql import Database
from moyin.store.tenant_cache import TenantCache
from moyin.store.userdata import UserdataStore
from moyin.system.processes import freeze_startup_objects
from moyin.system.ranks import Rank, take_rank

_SWITCH_SECONDS = 0.0002


class _Closeable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C", bound=_Closeable)


class Gateway(MoyinCalls):
    """Serves the gateway's ASGI app, and the gRPC methods that it inherits from `MoyinCalls`."""

    def __init__(self, pools: tuple[str, ...]) -> None:
        settings = Settings()
        take_rank(Rank.REPLICA)
        configure_logs(settings.log_level)
        # Threads that process large requests give way to the event loop 25 times as often as by
        # default (`moyin.system.heavy_work`).
        sys.setswitchinterval(_SWITCH_SECONDS)
        retention = timedelta(days=settings.job_history_days)
        signing_key = settings.signing_key()
        resources = AsyncExitStack()

        def close_at_shutdown(resource: C) -> C:
            """Return ``resource``, and close it at shutdown, after the resources created later."""
            resources.push_async_callback(resource.close)
            return resource

        database = close_at_shutdown(Database(settings.sql_url))
        meter = close_at_shutdown(create_meter(settings))
        events = close_at_shutdown(EventStore(settings.redis_url, retention=retention))
        frames = close_at_shutdown(FrameStore(settings.redis_url))
        frame_hub = close_at_shutdown(FrameHub(settings.redis_url))
        event_hub = close_at_shutdown(EventHub(settings.redis_url))
        jobs = JobStore(database)
        temporal = TemporalConnection(
            settings.temporal_address, settings.temporal_namespace, retention=retention
        )
        launcher = close_at_shutdown(JobLauncher(jobs=jobs, temporal=temporal))
        self.grpc_authenticator = create_authenticator(database, signing_key)
        self.grpc_bridge = close_at_shutdown(GrpcBridge(settings.door))
        self.grpc_health = HealthMonitor(self.grpc_bridge.is_ready)
        pool_client = ServePoolClient(pools)
        places = close_at_shutdown(QueuePlaceCache(pool_client.list_places, pools))
        node_info = close_at_shutdown(
            NodeInfoCache(pool_client, folder=settings.data / "comfyui" / "nodes")
        )
        picture_cache = close_at_shutdown(TenantCache(settings.redis_url, "moyin:pictures"))
        previews = close_at_shutdown(PreviewStore(settings.redis_url))
        preview_hub = close_at_shutdown(PreviewHub(settings.redis_url))
        picture_processes = close_at_shutdown(PictureProcesses())
        artifacts = ArtifactStore(database, max_upload_bytes=settings.max_upload_mib * 2**20)
        blobs = BlobStore(settings.blobs_url)
        admission = GraphAdmission(node_info, settings.graph_bounds)
        validator = PoolValidator()
        prompts = PromptStore(database)
        files = ComfyFiles(
            uploads=UploadStore(database, max_upload_bytes=settings.max_upload_mib * 2**20),
            artifacts=artifacts, prompts=prompts, blobs=blobs,
            frames=frames,
        )  # fmt: skip
        service = JobService(
            jobs=jobs, artifacts=artifacts, files=files, blobs=blobs, events=events, frames=frames,
            launcher=launcher, validator=validator, guard=admission,
            budgets=RenderBudgets(meter, node_info),
            networks=AllowedNetworks(settings.webhook_networks),
        )  # fmt: skip
        proxy = close_at_shutdown(
            Proxy(
                signing_key=signing_key,
                meter=meter,
                deferral=DeferredCalls(service, blobs),
                trusted_proxies=TrustedProxies(settings.trusted_proxies),
            )
        )
        self._config = ReloadableConfig(
            GatewayConfig, lambda config: proxy.configure(config.to_route_table(settings.door))
        )
        self._history = ConfigRecorder(database, pools)
        feed = JobFeed(jobs=jobs, events=events, hub=event_hub)
        farm_events = PromptNotifiers(
            prompts=prompts, files=files, blobs=blobs, frames=frames, hub=frame_hub
        )
        farm_prompts = ComfyPrompts(
            service=service, feed=feed, validator=validator, guard=admission, prompts=prompts,
            files=files, blobs=blobs, find_executed=pool_client.find_executed, read_places=places.read,
            wait_until_notified=farm_events.wait_until_notified,
        )  # fmt: skip

        checks = {"database": database.ping, "temporal": launcher.ping, "valkey": events.ping}
        sources = ClusterSources(
            pools, pool_client.read_summary, partial(read_backlog, temporal),
            checks={**checks, "artifacts": blobs.ping}, data_folder=settings.data,
            is_config_rejected=lambda: self._config.is_rejected,
        )  # fmt: skip
        problems, templates = ProblemFinder(), create_catalog(settings)

        async def read_cluster() -> ClusterBody:
            reading = await sources.read()
            template_snapshot = await templates.get_snapshot()
            reading = replace(reading, template_problems=template_snapshot.problems)
            cluster = build_cluster(pools, reading)
            found_problems = problems.find(cluster, reading, proxy.pools)
            return cluster.model_copy(update={"problems": found_problems})

        async def read_models_for(viewer: Viewer) -> str | None:
            return await read_models(viewer.owner, viewer.is_operator)

        def read_routes(cluster: ClusterBody) -> str:
            body = build_routes(proxy.pools, self._config, cluster.applications or {})
            return body.model_dump_json(ensure_ascii=True)

        feed_sources = FeedSources(
            cluster=read_cluster, backends=read_backends, usage=read_usage,
            models=read_models_for, jobs=NewestJobsReader(jobs, places).read, routes=read_routes,
            doctor=check_machine,
        )  # fmt: skip
        cluster = close_at_shutdown(ClusterFeeds(feed_sources))

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            async with resources:
                await database.ensure_schema()
                await proxy.start()
                freeze_startup_objects()
                yield

        self._services = GatewayServices(
            service=service, jobs=jobs, feed=feed, previews=PreviewFeed(previews, preview_hub),
            places=places, artifacts=artifacts,
            blobs=blobs, pictures=PictureConverter(blobs, picture_processes, picture_cache), prompts=farm_prompts,
            files=files, events=farm_events, userdata=UserdataStore(database),
            sessions=SessionStore(database), admission=admission,
            frontend=FrontendFiles(lambda: find_frontend(settings)),
            templates=templates, proxy=proxy, config=self._config, cluster=cluster,
            config_history=self._history.store, links=build_links(settings),
            authenticator=self.grpc_authenticator, meter=meter,
            observer=RequestObserver(settings.log_level),
            checks=checks,
            signing_key=signing_key, max_body_bytes=settings.max_body_bytes, retention=retention,
            max_in_progress=settings.max_requests_in_progress,
            lifespan=lifespan,
        )  # fmt: skip

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Apply a new route table; requests in flight keep their old route."""
        self._config.load(user_config)
        if self._config.current is not None:
            await self._history.record(self._config.current)

    def __serve_build_asgi_app__(self) -> Gatekeeper:
        return new_app(self._services).disable_request_id()
