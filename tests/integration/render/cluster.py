"""Runs Ray clusters, and a render pool with the servers that it needs."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray.cluster_utils import Cluster
from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from deployments.render.builder import build
from deployments.render.config import ComfyArgs, RenderArgs
from moyin.domain.job import JobSpec, JobStatus, Step, StepKind, StepResult
from moyin.domain.serialization import encode
from moyin.jobs.workflows.client import TemporalConnection
from moyin.jobs.workflows.types import HEARTBEAT_TIMEOUT, StepInput, StepOutcome, get_render_queue
from moyin.render.comfyui.install import ComfyUI
from moyin.settings import Settings
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.events import EventStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.sql import Database
from tests.integration.render.fixtures import TEST_NODES
from tests.integration.servers import TemporalServer, ValkeyServer, free_port
from tests.nodes import write_nodes
from tests.waiting import eventually

OWNER = "ann"
_QUEUE = "test-workflows"
_STORE_BYTES = 100 * 1024 * 1024


@contextmanager
def run_ray_cluster(nodes: Sequence[Mapping[str, Any]]) -> Iterator[Cluster]:
    """Run a cluster with one raylet for each of ``nodes``, the first as the head, and connect to it."""
    # Short: sockets below it have long names of their own.
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    with pytest.MonkeyPatch.context() as environment:
        # Else the cluster becomes everybody's present one on this machine.
        environment.setenv("RAY_TMPDIR", folder)
        Path(folder, "ray").mkdir()
        cluster = Cluster()
        try:
            for number, node in enumerate(nodes):
                options = {"object_store_memory": _STORE_BYTES, "num_gpus": 0, **node}
                if number == 0:
                    options |= {"include_dashboard": False, "dashboard_port": free_port()}
                cluster.add_node(**options)
            ray.init(cluster.address, logging_level="error", log_to_driver=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
            _collect_leaks()


def _collect_leaks() -> None:
    """Collect garbage, so that warnings about Ray's unclosed sockets do not fail a later test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@workflow.defn(sandboxed=False)
class RenderOne:
    """Runs a single render step without a job."""

    @workflow.run
    async def run(self, step: StepInput) -> StepResult:
        outcome: StepOutcome = await workflow.execute_activity(
            "render_step",
            step,
            task_queue=get_render_queue("default"),
            result_type=StepOutcome,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            start_to_close_timeout=timedelta(minutes=10),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=500)),
        )
        return outcome.result


@dataclass
class RenderFarm:
    """The settings, stores and clients that a render pool needs; `deploy` deploys the pool."""

    comfyui: ComfyUI
    settings: Settings
    client: Client
    database: Database
    blobs: BlobStore
    events: EventStore
    jobs: JobStore
    artifacts: ArtifactStore
    bad_nodes: Path
    handles: list[WorkflowHandle[Any, Any]] = field(default_factory=list)

    async def deploy(
        self, models: Path | None = None, flags: tuple[str, ...] = (), **args: Any
    ) -> Any:
        """Deploy the pool, and return its Serve handle without waiting for its actors.

        Args:
            models: folder of ComfyUI's models.
            flags: additional arguments for ComfyUI.
            args: further arguments of the pool (`RenderArgs`).
        """
        comfyui = ComfyArgs(
            custom_nodes=(TEST_NODES, str(self.bad_nodes)),
            models=None if models is None else str(models),
            flags=flags,
        )
        application = build(RenderArgs(comfyui=comfyui, cpus=0.1, **args))
        return await asyncio.to_thread(
            serve.run, application, name="render-default", route_prefix=None
        )

    async def wait_until_ready(
        self, handle: Any, actor_count: int, seconds: float = 120
    ) -> dict[str, Any]:
        """Return the pool's actors by name, once ``actor_count`` of them accept work."""
        async with asyncio.timeout(seconds):
            while True:
                actors = (await handle.status.remote())["actors"]
                ready_actors = {n: a for n, a in actors.items() if a["renderer"]["ready"]}
                if len(ready_actors) == actor_count:
                    return ready_actors
                await asyncio.sleep(0.2)

    async def submit_job(
        self, graph: Mapping[str, Any], *, priority: int = 3, owner: str = OWNER
    ) -> str:
        """Accept a render job, start its workflow, and return the job's id.

        Args:
            priority: the priority of the job, from 1 (first) to 5 (last).
        """
        job_id = str(uuid.uuid4())
        step = Step(kind=StepKind.RENDER, payload=graph)
        spec = await self.blobs.put(
            encode(JobSpec(kind="render", steps=(step,), priority=priority))
        )
        await self.jobs.create(
            NewJob(
                id=job_id,
                owner=owner,
                kind="render",
                spec=spec,
                heads=((StepKind.RENDER, "default"),),
                priority=priority,
            )
        )
        await self.client.start_workflow(
            RenderOne.run,
            StepInput(job_id=job_id, owner=owner, index=0, spec=spec, begins=1, attempt=1),
            id=job_id,
            task_queue=_QUEUE,
        )
        return job_id

    async def wait_for_renderer(self, handle: Any, job_id: str) -> str:
        """Wait until an actor renders the job, and return the actor's name."""

        async def find_actor() -> str | None:
            actors = (await handle.status.remote())["actors"]
            return next(
                (name for name, a in actors.items() if job_id in a["renderer"]["running"]), None
            )

        name: str = await eventually(find_actor, 240)
        return name

    async def cancel_job(self, job_id: str) -> None:
        """Cancel a job as its workflow does: first mark the row, then cancel the workflow."""
        assert await self.jobs.finish(job_id, 1, JobStatus.CANCELLED, None)
        await self.client.get_workflow_handle(job_id).cancel()

    async def wait_for_result(self, job_id: str) -> StepResult:
        handle = self.client.get_workflow_handle(job_id, result_type=StepResult)
        result: StepResult = await handle.result()
        return result


@asynccontextmanager
async def render_farm(
    comfyui: ComfyUI,
    folder: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
    monkeypatch: pytest.MonkeyPatch,
    nodes: Sequence[Mapping[str, Any]],
) -> AsyncIterator[tuple[RenderFarm, Cluster]]:
    """Run a cluster and everything that a pool on it needs, but not the pool itself.

    Args:
        nodes: Ray's arguments for each node of the cluster.
    """
    namespace = f"render-{uuid.uuid4().hex[:8]}"
    for name, value in {
        "DATA": folder,
        "COMFYUI_HOME": comfyui.home,
        "COMFYUI_PYTHON": comfyui.python,
        "REDIS_URL": valkey_server.url,
        "TEMPORAL_ADDRESS": temporal_server.address,
        "TEMPORAL_NAMESPACE": namespace,
    }.items():
        monkeypatch.setenv(f"MOYIN_{name}", str(value))
    settings = Settings()
    database = Database(settings.sql_url)
    await database.ensure_schema()
    events = EventStore(settings.redis_url, retention=timedelta(hours=1))
    temporal = TemporalConnection(temporal_server.address, namespace, retention=timedelta(days=1))
    client = await temporal.get_client()
    farm = RenderFarm(
        comfyui=comfyui,
        settings=settings,
        client=client,
        database=database,
        blobs=BlobStore(settings.blobs_url),
        events=events,
        jobs=JobStore(database),
        artifacts=ArtifactStore(database),
        bad_nodes=write_nodes(folder),
    )
    try:
        async with Worker(
            client,
            task_queue=_QUEUE,
            workflows=[RenderOne],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            with run_ray_cluster(nodes) as cluster:
                serve.start(proxy_location="Disabled")
                try:
                    yield farm, cluster
                finally:
                    await asyncio.to_thread(serve.shutdown)
    finally:
        await events.close()
        await database.close()
