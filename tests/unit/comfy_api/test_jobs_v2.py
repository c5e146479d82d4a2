from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic_core import from_json

from moyin.comfy_api.jobs_v2 import ComfyJobs
from moyin.domain.job import Job, JobStatus, Progress
from moyin.domain.serialization import encode
from moyin.jobs.protocol.request_to_domain import parse_job
from moyin.store.blobs import BlobStore
from moyin.system.heavy_work import HeavyWork

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRAPH = {"1": {"class_type": "A", "inputs": {"seed": 7, "text": "a cat"}}}


@pytest.mark.parametrize("batch", [None, {"seeds": 3}])
async def test_the_graph_of_a_render_or_batch_is_returned_as_submitted(
    tmp_path: Path, batch: dict[str, Any] | None
) -> None:
    request = {"kind": "render", "workflow": GRAPH} | ({"batch": batch} if batch else {})
    spec = parse_job(json.dumps(request).encode(), NOW)
    blobs = BlobStore(f"file://{tmp_path}")
    job = Job(
        id="j", owner="ann", kind="render", status=JobStatus.QUEUED, steps=len(spec.steps),
        spec=await blobs.put(encode(spec)), progress=Progress(), results=(), error=None,
        attempts=1, priority=3, metadata={}, created_at=NOW, started_at=None, finished_at=None,
    )  # fmt: skip
    services: Any = {"service": SimpleNamespace(work=HeavyWork()), "jobs": None, "feed": None}
    content = await ComfyJobs(**services, blobs=blobs).encode_graph(job)
    assert from_json(content)["workflow"] == GRAPH
