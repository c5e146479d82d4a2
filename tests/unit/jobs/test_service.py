"""Acceptance of jobs over a real list and real files; nobody runs them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.identity import Identity
from moyin.domain.job import Canceller, CancellerKind, Job, JobSpec, Step, StepKind
from moyin.domain.prompt import ComfyPrompt
from moyin.domain.template import Template
from moyin.errors import (
    IdempotencyMismatch,
    InvalidRequest,
    JobNotFinished,
    JobNotFound,
    NodeNotAllowed,
)
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.protocol.renders import no_templates
from moyin.jobs.service import JobService
from moyin.render.templates.catalog import SHIPPED, read_folders
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore
from moyin.store.sql import Database
from moyin.testing.guard import OpenGuard

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = Identity(owner="ann", key_id="k")
SHELF = read_folders([SHIPPED])
SWATCH = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x"}}


class Idle:
    """Events, frames, Temporal and the render pools: all is well, and nothing happens. No workflow
    runs, so that the service ends jobs by itself."""

    async def cancel(self, *_: Any) -> bool:
        return False

    async def end(self, job: Job) -> None: ...
    async def notify(self, *_: Any) -> None: ...

    async def publish(self, *_: Any) -> None: ...
    async def status(self, job: Job) -> None: ...
    async def start(self, *_: Any) -> None: ...
    async def validate(self, *_: Any) -> dict[str, Any]:
        return {}


class Door:
    def __init__(self, service: JobService, jobs: JobStore) -> None:
        self.service = service
        self.jobs = jobs
        self.who = ANN

    async def ask(
        self, body: Any, templates: Any = SHELF.find, *, key: str | None = "k", now: datetime = NOW
    ) -> tuple[Job, bool]:
        data = json.dumps(body).encode()
        return await self.service.ask(self.who, data, templates, now=now, idempotency_key=key)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ready()
    jobs = JobStore(database)
    idle: Any = Idle()
    service = JobService(
        jobs=jobs,
        artifacts=ArtifactStore(database),
        blobs=BlobStore(f"file://{tmp_path / 'blobs'}"),
        events=idle,
        frames=idle,
        launcher=idle,
        validator=idle,
        guard=OpenGuard("default"),
        pools=["default"],
        networks=AllowedNetworks(),
    )
    yield Door(service, jobs)
    await database.close()


def changed(name: str, field: str) -> Template:
    """The template with another graph, pool and default since."""
    found = SHELF.find(name, field)
    node, *_ = found.graph
    graph = {**found.graph, node: {**found.graph[node], "_meta": {"title": "changed"}}}
    return replace(found, graph=graph, pool="gone", digest="other")


async def test_a_job_that_is_cancelled_says_by_whom_and_nobody_elses_can_be(door: Door) -> None:
    job, _ = await door.ask(SWATCH)
    with pytest.raises(JobNotFound):
        await door.service.cancel(replace(ANN, owner="bob"), job.id)
    colleague = replace(ANN, key_id="k2")
    cancelled = await door.service.cancel(colleague, job.id)
    assert cancelled.cancelled_by == Canceller(kind=CancellerKind.KEY, id="k2")


class ChangedGuard(OpenGuard):
    """What the submitter may have by now."""

    def __init__(self, *pools: str, denied: str = "") -> None:
        super().__init__(*pools)
        self._denied = denied

    async def check(self, caller: Identity, pool: str, graph: Any, own: Any) -> bool:
        if any(node["class_type"] == self._denied for node in graph.values()):
            raise NodeNotAllowed("your limits allow no nodes of the class")
        return True


@pytest.mark.parametrize("batch", [None, {"seeds": 2}])
async def test_a_retry_gets_no_pool_and_no_node_that_a_new_job_would_not_get(
    door: Door, batch: Any
) -> None:
    asked = SWATCH if batch is None else {**SWATCH, "batch": batch}
    job, _ = await door.ask(asked)
    with pytest.raises(JobNotFinished):
        await door.service.retry(ANN, job.id)
    await door.service.cancel(ANN, job.id)
    door.service._graphs._guard = ChangedGuard("default", denied="SaveImage")
    with pytest.raises(NodeNotAllowed):
        await door.service.retry(ANN, job.id)
    door.service._graphs._guard = ChangedGuard("large")
    with pytest.raises(InvalidRequest) as refused:
        await door.service.retry(ANN, job.id)
    assert refused.value.field == "pool"
    door.service._graphs._guard = ChangedGuard("default", denied="LoadImage")
    assert (await door.service.retry(ANN, job.id)).attempts == 2


@pytest.mark.parametrize("batch", [None, {"seeds": 2}])
@pytest.mark.parametrize("templates", [changed, no_templates])
async def test_a_repeat_is_the_first_job_whatever_its_template_is_now(
    door: Door, templates: Any, batch: Any
) -> None:
    asked = SWATCH if batch is None else {**SWATCH, "batch": batch}
    first, created = await door.ask(asked)
    again, created_again = await door.ask(asked, templates)
    assert (created, created_again) == (True, False)
    assert again.id == first.id


async def test_a_repeat_is_the_first_job_though_its_deadline_has_passed(door: Door) -> None:
    asked = {**SWATCH, "deadline": (NOW + timedelta(hours=1)).isoformat()}
    first, _ = await door.ask(asked)
    again, _ = await door.ask(asked, now=NOW + timedelta(hours=2))
    assert again.id == first.id


@pytest.mark.parametrize(
    "other", [{"inputs": {"prompt": "y"}}, {"priority": 1}, {"batch": {"seeds": 2}}]
)
async def test_another_request_under_the_key_is_refused(door: Door, other: Any) -> None:
    await door.ask(SWATCH)
    with pytest.raises(IdempotencyMismatch):
        await door.ask({**SWATCH, **other})


async def test_without_a_key_every_request_is_a_job(door: Door) -> None:
    first, _ = await door.ask(SWATCH, key=None)
    again, created = await door.ask({**SWATCH, "priority": 3}, key=None)
    assert created
    assert again.id != first.id


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def graph(levels: int) -> dict[str, Any]:
    return {"1": {"class_type": "A", "inputs": {"x": nested(levels)}}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "render", "workflow": graph(196)}, "workflow"),
        (
            {
                "kind": "chat",
                "request": {"model": "m", "messages": [{"role": "user"}], "x": nested(198)},
            },
            "request",
        ),
        ({"kind": "http", "request": {"path": "/x", "body": nested(198)}}, "request"),
    ],
)
async def test_what_nobody_could_read_again_is_refused(door: Door, body: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match="nested too deep") as refused:
        await door.ask(body)
    assert refused.value.field == field


async def test_a_prompt_of_comfyui_s_clients_is_no_exception(door: Door) -> None:
    step = Step(kind=StepKind.RENDER, payload=graph(1))
    asked = ComfyPrompt(extra_data={"extra_pnginfo": nested(300)})
    with pytest.raises(InvalidRequest) as refused:
        await door.service.submit(ANN, JobSpec(kind="render", steps=(step,), comfyui=asked))
    assert refused.value.field == "extra_data"


async def test_what_is_deep_and_can_be_read_is_a_job(door: Door) -> None:
    job, _ = await door.ask({"kind": "render", "workflow": graph(190)})
    spec = await door.service.spec(job)
    assert spec is not None
    assert spec.steps[0].payload == graph(190)
