"""Runs a gateway's job service: ``python -m tests.integration.jobs.budget_process '<json>'``.

After reading a line from standard input, it submits all jobs at once and prints each result.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any

from moyin.access.gatekeeper.limits import RequestMeter
from moyin.comfy_api.admission import GraphAdmission
from moyin.comfy_api.files import ComfyFiles
from moyin.comfy_api.node_info import NodeInfoCache
from moyin.domain.identity import Identity
from moyin.domain.job import JobSpec, Step, StepKind
from moyin.domain.limits import Limit, PoolRules
from moyin.domain.render_run import RenderEstimate, RenderPrice, RenderTariff
from moyin.domain.serialization import encode
from moyin.errors import MoyinError, ServiceUnavailable
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.budgets import RenderBudgets
from moyin.jobs.service import JobService
from moyin.render.comfyui.pool_client import RULES_PATH, TARIFF_PATH, PoolResponse
from moyin.render.protocol.shape import compute_shape
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.comfy_file_names import UploadStore
from moyin.store.events import EventStore
from moyin.store.frames import FrameStore
from moyin.store.jobs import JobStore
from moyin.store.prompts import PromptStore
from moyin.store.sql import Database

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "batch_size": 1}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
}
USUAL = {"1": {"class_type": "EmptyImage", "inputs": {"width": 512, "noise_seed": 7}}}
# An hour costs 3,600 dollars: a render of an unknown shape 1, of `USUAL` 5.
TARIFF = RenderTariff(
    price=RenderPrice(usd_per_gpu_hour=Decimal(3600)),
    seconds=1,
    shapes={compute_shape(USUAL): RenderEstimate(seconds=5, pictures=1)},
)


class FakePools:
    """Simulates running render pools without ComfyUI."""

    pools = ("default",)

    async def get(self, pool: str, path: str) -> PoolResponse:
        contents = {TARIFF_PATH: encode(TARIFF), RULES_PATH: encode(PoolRules())}
        if path not in contents:
            raise ServiceUnavailable("no renderer is up")
        return PoolResponse(version="1", state="up", content=contents[path])

    async def get_all(self, pool: str, path: str) -> Mapping[str, bytes]:
        return {}

    async def validate(self, *_: Any) -> Mapping[str, Any]:
        return {}


class UnavailableTemporal:
    """Simulates an unavailable Temporal, so that accepted jobs stay queued."""

    async def start(self, *_: Any) -> None:
        raise ServiceUnavailable("Temporal is down")

    async def start_webhook(self, *_: Any) -> None:
        raise ServiceUnavailable("Temporal is down")

    async def cancel(self, *_: Any) -> bool:
        return False

    async def ping(self) -> None:
        raise ServiceUnavailable("Temporal is down")


@asynccontextmanager
async def open_service(
    database: Database, meter: RequestMeter, redis_url: str, blobs_url: str
) -> AsyncIterator[JobService]:
    async with AsyncExitStack() as exit_stack:
        events = EventStore(redis_url, retention=timedelta(hours=1))
        exit_stack.push_async_callback(events.close)
        frames = FrameStore(redis_url)
        exit_stack.push_async_callback(frames.close)
        artifacts, blobs = ArtifactStore(database), BlobStore(blobs_url)
        node_info = NodeInfoCache(FakePools(), start_seconds=0)
        exit_stack.push_async_callback(node_info.close)
        files = ComfyFiles(
            uploads=UploadStore(database),
            artifacts=artifacts,
            prompts=PromptStore(database),
            blobs=blobs,
            frames=frames,
        )
        yield JobService(
            jobs=JobStore(database),
            artifacts=artifacts,
            files=files,
            blobs=blobs,
            events=events,
            frames=frames,
            launcher=UnavailableTemporal(),
            validator=FakePools(),
            guard=GraphAdmission(node_info),
            budgets=RenderBudgets(meter, node_info),
            networks=AllowedNetworks(),
        )


def create_caller(owner: str, usd_per_day: int) -> Identity:
    limits = (
        Limit(subject=f"key:{owner}", usd_per_month=Decimal(1000)),
        Limit(subject=f"owner:{owner}", usd_per_day=Decimal(usd_per_day)),
    )
    return Identity(owner=owner, key_id=owner, limits=limits)


def build_spec(*graphs: Mapping[str, Any]) -> JobSpec:
    steps = tuple(Step(kind=StepKind.RENDER, payload=graph) for graph in graphs or (GRAPH,))
    return JobSpec(kind="render" if len(steps) == 1 else "pipeline", steps=steps)


async def submit_all(service: JobService, caller: Identity, count: int) -> Sequence[str]:
    """Submit ``count`` renders concurrently; return ``accepted`` or the error code of each."""

    async def submit_render() -> str:
        try:
            await service.submit(caller, build_spec())
        except MoyinError as error:
            return error.code
        return "accepted"

    return await asyncio.gather(*(submit_render() for _ in range(count)))


async def main() -> None:
    options = json.loads(sys.argv[1])
    database, meter = Database(options["database"]), RequestMeter(options["redis"])
    async with open_service(database, meter, options["redis"], options["blobs"]) as service:
        caller = create_caller(options["owner"], options["usd"])
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(json.dumps(await submit_all(service, caller, options["count"])), flush=True)
    await meter.close()
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
