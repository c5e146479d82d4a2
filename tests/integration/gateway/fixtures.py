"""Runs real servers, and a gateway in the test's own process with an optional worker."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from temporalio.client import Client
from temporalio.worker import Worker

from deployments.gateway.app import GatewayServices, new_app
from deployments.gateway.cluster.bodies import ClusterBody, DoctorBody, LinksBody
from deployments.gateway.cluster.doctor import describe_checks
from deployments.gateway.cluster.feeds import READING_SECONDS, ClusterFeeds, FeedSources, Viewer
from deployments.gateway.cluster.routes_view import build_routes
from deployments.gateway.cluster.snapshot import build_cluster
from deployments.gateway.cluster.sources import ClusterReading
from deployments.gateway.config import GatewayConfig
from deployments.gateway.frontend import FrontendFiles
from deployments.models.recent_calls import RecentCalls
from deployments.models.routes.backends import describe_backends
from deployments.models.routes.models import list_models
from deployments.models.routes.usage import report_month
from deployments.replicas import ReloadableConfig
from moyin.access.gatekeeper.identity import create_authenticator, create_service_token_factory
from moyin.access.gatekeeper.limits import RequestMeter
from moyin.access.gatekeeper.observation import NoObserver
from moyin.client.gateway import GatewayClient
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.frontend import find_frontend
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.comfy_api.notifier import PromptNotifiers
from moyin.comfy_api.prompts import ComfyPrompts
from moyin.console import ConsoleFiles
from moyin.domain.cluster import PoolSummary
from moyin.domain.limits import PoolRules
from moyin.domain.queue_place import QueuePlace
from moyin.domain.serialization import encode
from moyin.errors import ServiceUnavailable
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.budgets import RenderBudgets
from moyin.jobs.deferred import DeferredCalls
from moyin.jobs.feed import JobFeed
from moyin.jobs.newest_jobs import NewestJobsReader
from moyin.jobs.previews import PreviewFeed
from moyin.jobs.queue_places import QueuePlaceCache
from moyin.jobs.service import JobService
from moyin.jobs.step_client import StepClient
from moyin.jobs.webhooks import WebhookSender
from moyin.jobs.workflows.activities import JobActivities
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.launcher import JobLauncher
from moyin.jobs.workflows.status_writer import JobStatusWriter
from moyin.jobs.workflows.types import HEARTBEAT_INTERVAL, get_render_queue
from moyin.jobs.workflows.worker import JobRunner, Sweeper
from moyin.proxy.engine import Proxy
from moyin.render.comfyui.pool_client import RULES_PATH, PoolResponse
from moyin.render.imaging import PictureConverter, PictureProcesses
from moyin.render.templates.catalog import SHIPPED_FOLDER, TemplateCatalog
from moyin.settings import Settings
from moyin.stack.doctor.machine import check_python
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.comfy_file_names import UploadStore
from moyin.store.config_history import ConfigHistory
from moyin.store.events import EventStore
from moyin.store.frames import FrameHub, FrameStore
from moyin.store.hub import EventHub
from moyin.store.jobs import JobStore
from moyin.store.keys import KeyStore
from moyin.store.previews import PreviewHub, PreviewStore
from moyin.store.prompts import PromptStore
from moyin.store.sessions import SessionStore
from moyin.store.sql import Database
from moyin.store.tenant_cache import TenantCache
from moyin.store.usage_reports import UsageReports
from moyin.store.userdata import UserdataStore
from moyin.text.routing.catalog import Catalog
from moyin.text.routing.fleet import Fleet
from tests.integration.servers import TemporalServer, ValkeyServer, free_port

SIGNING_KEY = b"0123456789abcdef0123456789abcdef"
NAMESPACE = "moyin-test"
RETENTION = timedelta(days=1)
FINAL = ("succeeded", "failed", "cancelled")
# Steps, and webhooks, at a time.
CONCURRENCY = 10
_NO_MODELS = Fleet(catalog=Catalog(deployments=()), runtimes={})


@dataclass
class ScriptedService:
    """A service behind the gateway; it responds by path with ``answers``, and records all calls."""

    answers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(
        default_factory=dict
    )
    calls: list[tuple[str, str, Any, Mapping[str, str]]] = field(default_factory=list)

    async def handle_request(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body: Any = json.loads(text) if text[:1] in ("{", "[") else text
        self.calls.append((request.method, request.path_qs, body, request.headers))
        respond = self.answers.get(request.path)
        if respond is not None:
            return await respond(request)
        if request.path == "/v1/chat/completions":
            prompt_text = body["messages"][-1]["content"]
            return web.json_response(
                {"choices": [{"message": {"role": "assistant", "content": f"re: {prompt_text}"}}]},
                headers={"x-moyin-cost-usd": "0.0012", "x-moyin-backend": "stub"},
            )
        return web.json_response({"path": request.path, "got": body})

    def count_calls(self, path: str) -> int:
        return sum(1 for call in self.calls if call[1] == path)


class AcceptingValidator:
    """The graph validator of a pool that is not running: every graph is accepted."""

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        return {}


class ScriptedPools:
    """Simulates render pools that respond by path; no pool runs while ``responses`` is empty."""

    pools: Sequence[str] = ("default", "fast")

    def __init__(self) -> None:
        self.responses = {"/object_info": b'{"EmptyImage": {"input": {}}}'}
        self.places: dict[str, Mapping[str, QueuePlace]] = {}
        self.summaries: dict[str, PoolSummary] = {}
        self.nodes: list[dict[str, Any]] = []

    async def get(self, pool: str, path: str) -> PoolResponse:
        if not self.responses:
            raise ServiceUnavailable("no pool is up")
        # A pool always reports whose jobs it runs, also while it has no ComfyUI.
        responses = {RULES_PATH: encode(PoolRules()), **self.responses}
        return PoolResponse(version="1", state="up", content=responses.get(path))

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {pool: self.responses[path]} if path in self.responses else {}

    async def list_places(self, pool: str) -> Mapping[str, QueuePlace]:
        if not self.responses:
            raise ServiceUnavailable("no pool is up")
        return self.places.get(pool, {})

    async def read_cluster(self) -> ClusterBody:
        reading = ClusterReading(pools=dict(self.summaries), nodes=self.nodes)
        return build_cluster(self.pools, reading)

    async def check_machine(self) -> DoctorBody:
        return describe_checks([check_python()])

    async def find_executed(self, prompt_ids: Sequence[str]) -> set[str]:
        return set()


class Farm:
    """A gateway, its stores, and a worker that can be started, stopped and killed."""

    def __init__(
        self,
        folder: Path,
        temporal: TemporalServer,
        valkey: ValkeyServer,
        services: ScriptedService,
    ) -> None:
        self.services = services
        self.settings = Settings(data=folder)
        self.templates = TemplateCatalog((SHIPPED_FOLDER,))
        self.validator: Any = AcceptingValidator()
        self.scripted_pools = ScriptedPools()
        self.networks = "127.0.0.0/8"
        self.max_body_bytes = 1024 * 1024
        self.sweep_after = timedelta(seconds=0.3)
        # Decides when a reading of the cluster is too old.
        self.clock = time.monotonic
        # Empty, unless a test writes the console's files before its first request.
        self.console_folder = folder / "console"
        self.artifacts_url = f"file://{folder / 'artifacts'}"
        self._temporal_server = temporal
        self._valkey = valkey
        self._stack = AsyncExitStack()
        self._folder = folder
        self._runners: list[tuple[JobRunner, asyncio.Task[None]]] = []

    async def open(self) -> None:
        enter_context = self._stack.enter_async_context
        self.database = Database(f"sqlite:///{self._folder / 'moyin.db'}")
        self._stack.push_async_callback(self.database.close)
        await self.database.ensure_schema()
        self.jobs = JobStore(self.database)
        self.blobs = BlobStore(self.artifacts_url)
        self.events = EventStore(self._valkey.url, retention=RETENTION)
        self._stack.push_async_callback(self.events.close)
        self.frames = FrameStore(self._valkey.url)
        self._stack.push_async_callback(self.frames.close)
        self.temporal = TemporalConnection(
            self._temporal_server.address, NAMESPACE, retention=RETENTION
        )
        self.launcher = JobLauncher(jobs=self.jobs, temporal=self.temporal)
        self._stack.push_async_callback(self.launcher.close)
        self.key = (await KeyStore(self.database).create("ann", "test"))[1]
        self.other_key = (await KeyStore(self.database).create("bob", "test"))[1]
        self.services_url = await enter_context(_serve_services(self.services))
        self.url = await enter_context(self._run_gateway())
        self.client = await enter_context(self.open_session(self.key))
        self.other = await enter_context(self.open_session(self.other_key))

    async def close(self) -> None:
        for runner, task in self._runners:
            await _stop_runner(runner, task)
        await self._stack.aclose()

    def open_session(self, key: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(self.url, headers={"authorization": f"Bearer {key}"})

    async def start_worker(self) -> Callable[[], Awaitable[None]]:
        """Start a worker, and return the function that stops it."""
        enter_context = self._stack.enter_async_context
        gateway = GatewayClient(
            self.services_url, token_for=create_service_token_factory(SIGNING_KEY, "jobs")
        )
        webhook_sender = WebhookSender(
            signing_key=SIGNING_KEY, networks=AllowedNetworks(self.networks)
        )
        runner = JobRunner(
            temporal=self.temporal,
            activities=JobActivities(
                jobs=self.jobs,
                blobs=self.blobs,
                status_writer=JobStatusWriter(
                    jobs=self.jobs, events=self.events, frames=self.frames
                ),
                step_client=StepClient(await enter_context(gateway)),
                webhooks=await enter_context(webhook_sender),
            ),
            sweeper=Sweeper(
                jobs=self.jobs,
                launcher=self.launcher,
                interval=timedelta(seconds=0.2),
                min_age=self.sweep_after,
            ),
            concurrency=CONCURRENCY,
        )
        running_worker = (runner, asyncio.create_task(runner.run()))
        self._runners.append(running_worker)

        async def stop() -> None:
            self._runners.remove(running_worker)
            await _stop_runner(*running_worker)

        return stop

    @asynccontextmanager
    async def run_renderer(
        self, render_step: Callable[..., Any], pool: str = "default"
    ) -> AsyncIterator[None]:
        """Run a worker for a pool's queue that renders with the activity ``render_step``."""
        client: Client = await self.temporal.get_client()
        async with Worker(
            client,
            task_queue=get_render_queue(pool),
            activities=[render_step],
            max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        ):
            yield

    def build_environment(self) -> dict[str, str]:
        """Return the environment variables with this farm's settings, for other processes."""
        return os.environ | {
            "MOYIN_DATA": str(self._folder),
            "MOYIN_DOOR": self.services_url,
            "MOYIN_DATABASE_URL": f"sqlite:///{self._folder / 'moyin.db'}",
            "MOYIN_ARTIFACTS_URL": self.artifacts_url,
            "MOYIN_REDIS_URL": self._valkey.url,
            "MOYIN_TEMPORAL_ADDRESS": self._temporal_server.address,
            "MOYIN_TEMPORAL_NAMESPACE": NAMESPACE,
            "MOYIN_SECRET": SIGNING_KEY.decode(),
        }

    async def submit_job(self, body: Mapping[str, Any], **headers: str) -> dict[str, Any]:
        async with self.client.post("/jobs", json=body, headers=headers) as response:
            job: dict[str, Any] = await response.json()
            assert response.status == 202, job
            return job

    async def fetch_job(self, job_id: str) -> dict[str, Any]:
        async with self.client.get(f"/jobs/{job_id}") as response:
            job: dict[str, Any] = await response.json()
            assert response.status == 200, job
            return job

    async def wait_for_status(
        self, job_id: str, *statuses: str, seconds: float = 60
    ) -> dict[str, Any]:
        """Wait until the job has one of ``statuses``, by default a final one, and return it."""
        async with asyncio.timeout(seconds):
            while True:
                job = await self.fetch_job(job_id)
                if job["status"] in (statuses or FINAL):
                    return job
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def _run_gateway(self) -> AsyncIterator[str]:
        event_hub = EventHub(self._valkey.url)
        frame_hub = FrameHub(self._valkey.url)
        # `lifespan` closes these; by then, `self.pictures` may be another gateway's.
        pictures = self.pictures = PictureProcesses()
        thumbnails = TenantCache(self._valkey.url, "moyin:pictures")
        previews, preview_hub = PreviewStore(self._valkey.url), PreviewHub(self._valkey.url)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            await proxy.start()
            yield
            await queue_places.close()
            await cluster_feeds.close()
            await proxy.close()
            await pictures.close()
            await thumbnails.close()
            await previews.close()
            await preview_hub.close()
            await event_hub.close()
            await frame_hub.close()
            await meter.close()

        artifacts = ArtifactStore(self.database)
        meter = RequestMeter(self._valkey.url)
        node_info = NodeInfoCache(self.scripted_pools, fresh_seconds=0.0)
        admission = GraphAdmission(node_info)
        prompts = PromptStore(self.database)
        files = ComfyFiles(
            uploads=UploadStore(self.database),
            artifacts=artifacts,
            prompts=prompts,
            blobs=self.blobs,
            frames=self.frames,
        )
        job_service = JobService(
            jobs=self.jobs,
            artifacts=artifacts,
            files=files,
            blobs=self.blobs,
            events=self.events,
            frames=self.frames,
            launcher=self.launcher,
            validator=self.validator,
            guard=admission,
            budgets=RenderBudgets(meter, node_info),
            networks=AllowedNetworks(self.networks),
        )
        proxy = self.proxy = Proxy(
            signing_key=SIGNING_KEY, deferral=DeferredCalls(job_service, self.blobs)
        )
        usage_reports = UsageReports(self.database)

        async def read_backends(tenant: str | None) -> str:
            return describe_backends(_NO_MODELS, RecentCalls(), tenant).model_dump_json()

        async def read_usage(tenant: str | None) -> str:
            return await report_month(usage_reports, _NO_MODELS, tenant)

        async def read_models(viewer: Viewer) -> str:
            body = list_models(_NO_MODELS, viewer.owner, prices=viewer.is_operator)
            return json.dumps(body)

        gateway_config = ReloadableConfig(GatewayConfig, lambda _: None)
        queue_places = QueuePlaceCache(self.scripted_pools.list_places, self.scripted_pools.pools)
        cluster_feeds = ClusterFeeds(
            FeedSources(
                cluster=self.scripted_pools.read_cluster, backends=read_backends,
                usage=read_usage, models=read_models, jobs=NewestJobsReader(self.jobs, queue_places).read,
                routes=lambda _: build_routes(proxy.pools, gateway_config, {}).model_dump_json(),
                doctor=self.scripted_pools.check_machine,
            ),
            intervals=dict.fromkeys(READING_SECONDS, 0.1), clock=lambda: self.clock(),
        )  # fmt: skip
        feed = JobFeed(jobs=self.jobs, events=self.events, hub=event_hub, quiet_seconds=0.5)
        notifiers = PromptNotifiers(
            prompts=prompts,
            files=files,
            blobs=self.blobs,
            frames=self.frames,
            hub=frame_hub,
            tick=0.5,
        )
        gateway_services = self.gateway_services = GatewayServices(
            service=job_service,
            jobs=self.jobs,
            feed=feed,
            previews=PreviewFeed(previews, preview_hub),
            places=queue_places,
            artifacts=artifacts,
            blobs=self.blobs,
            pictures=PictureConverter(self.blobs, self.pictures, thumbnails),
            prompts=ComfyPrompts(
                service=job_service,
                feed=feed,
                validator=self.validator,
                guard=admission,
                prompts=prompts,
                files=files,
                blobs=self.blobs,
                find_executed=self.scripted_pools.find_executed,
                read_places=queue_places.read,
                wait_until_notified=notifiers.wait_until_notified,
            ),
            files=files,
            events=notifiers,
            userdata=UserdataStore(
                self.database, max_file_bytes=100_000, max_bytes=300_000, max_files=50
            ),
            sessions=SessionStore(self.database),
            templates=self.templates,
            admission=admission,
            frontend=FrontendFiles(lambda: find_frontend(self.settings)),
            console=ConsoleFiles(self.console_folder),
            proxy=self.proxy,
            cluster=cluster_feeds,
            config_history=ConfigHistory(self.database),
            links=LinksBody(temporal=None, ray=None),
            config=gateway_config,
            authenticator=create_authenticator(self.database, SIGNING_KEY),
            observer=NoObserver(),
            checks={
                "database": self.database.ping,
                "temporal": self.launcher.ping,
                "valkey": self.events.ping,
            },
            signing_key=SIGNING_KEY,
            max_body_bytes=self.max_body_bytes,
            retention=RETENTION,
            lifespan=lifespan,
        )
        port = free_port()
        config = uvicorn.Config(
            new_app(gateway_services), host="127.0.0.1", port=port, log_config=None, lifespan="on",
            timeout_graceful_shutdown=1,
            # Longer than a test: a client's next request must not meet a connection being closed.
            timeout_keep_alive=300,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server_task = asyncio.create_task(server.serve())
        while not server.started:
            assert not server_task.done(), "the gateway did not start"
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        await server_task


@pytest.fixture
async def farm(
    tmp_path: Path, temporal_server: TemporalServer, valkey_server: ValkeyServer
) -> AsyncIterator[Farm]:
    """Run a gateway without a worker."""
    farm = Farm(tmp_path, temporal_server, valkey_server, ScriptedService())
    await farm.open()
    yield farm
    await farm.close()


@pytest.fixture
async def working_farm(farm: Farm) -> Farm:
    """Run a gateway with one worker."""
    await farm.start_worker()
    return farm


@asynccontextmanager
async def _serve_services(services: ScriptedService) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", services.handle_request)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def _stop_runner(runner: JobRunner, task: asyncio.Task[None]) -> None:
    await runner.stop()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
