"""Tests how jobs are accepted, with a real database and real files but without workers."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
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
    PromptIdTaken,
    ServiceUnavailable,
)
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs.protocol.renders import refuse_templates
from moyin.jobs.service import JobService
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore
from moyin.store.schema import jobs as rows
from moyin.store.sql import Database
from moyin.testing.fakes import FreeBudgets, InMemoryNamedFiles, PermissiveGraphGuard

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = Identity(owner="ann", key_id="k")
TEMPLATES = read_templates([SHIPPED_FOLDER])
SWATCH = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x"}}
PHOTO = Artifact(
    id=f"art_{'1' * 32}", name="photo.png", media_type="image/png", size=1, sha256="a" * 64
)


class IdleServices:
    """Stands for events, frames, Temporal and the render pools, and does nothing.

    No workflow runs, so the service itself ends cancelled jobs.
    """

    async def cancel(self, *_: Any) -> bool:
        return False

    async def publish_end(self, job: Job) -> None: ...
    async def start_webhook(self, *_: Any) -> None: ...

    async def publish(self, *_: Any) -> None: ...
    async def publish_status(self, job: Job) -> None: ...
    async def delete(self, *_: Any) -> None: ...
    async def delete_files(self, *_: Any) -> None: ...
    async def start(self, *_: Any) -> None: ...
    async def validate(self, *_: Any) -> dict[str, Any]:
        return {}


class JobSubmitter:
    """Submits jobs as one caller."""

    def __init__(self, service: JobService, store: JobStore, database: Database) -> None:
        self.service = service
        self.database = database
        self.store = store
        self.caller = ANN

    async def submit(
        self,
        body: Any,
        templates: Any = TEMPLATES.find,
        *,
        key: str | None = "k",
        now: datetime = NOW,
    ) -> tuple[Job, bool]:
        data = json.dumps(body).encode()
        return await self.service.submit_request(
            self.caller, data, templates, now=now, idempotency_key=key
        )


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[JobSubmitter]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    store = JobStore(database)
    idle_services: Any = IdleServices()
    service = JobService(
        jobs=store,
        artifacts=ArtifactStore(database),
        files=InMemoryNamedFiles({("ann", "photo.png"): PHOTO}),
        blobs=BlobStore(f"file://{tmp_path / 'blobs'}"),
        events=idle_services,
        frames=idle_services,
        launcher=idle_services,
        validator=idle_services,
        guard=PermissiveGraphGuard("default"),
        budgets=FreeBudgets(),
        networks=AllowedNetworks(),
    )
    yield JobSubmitter(service, store, database)
    await database.close()


def find_changed_template(name: str, field: str) -> Template:
    """Find a template as it would be after a change: with another graph and another pool."""
    template = TEMPLATES.find(name, field)
    node, *_ = template.graph
    graph = {**template.graph, node: {**template.graph[node], "_meta": {"title": "changed"}}}
    return replace(template, graph=graph, pool="gone", digest="other")


async def test_a_cancelled_job_names_its_canceller_and_other_tenants_jobs_are_safe(
    jobs: JobSubmitter,
) -> None:
    job, _ = await jobs.submit(SWATCH)
    with pytest.raises(JobNotFound):
        await jobs.service.cancel(replace(ANN, owner="bob"), job.id)
    colleague = replace(ANN, key_id="k2")
    cancelled_job = await jobs.service.cancel(colleague, job.id)
    assert cancelled_job.cancelled_by == Canceller(kind=CancellerKind.KEY, id="k2")


async def test_job_with_the_id_of_a_pruned_job_has_its_own_spec(jobs: JobSubmitter) -> None:
    """The cached spec of a pruned job is not used for a later job with the same id."""
    spec = await jobs.service.load_spec((await jobs.submit(SWATCH))[0])
    assert spec is not None
    prompt_id = str(uuid.uuid4())
    job, _ = await jobs.service.submit(ANN, spec, prompt_id=prompt_id, is_validated=True)
    assert await jobs.service.load_small_spec(job) == spec
    await jobs.database.execute(rows.delete().where(rows.c.id == job.id))
    other_spec = replace(spec, metadata={"by": "bob"})
    other_job, is_new = await jobs.service.submit(
        ANN, other_spec, prompt_id=prompt_id, is_validated=True
    )
    assert (other_job.id, is_new) == (job.id, True)
    assert await jobs.service.load_small_spec(other_job) == other_spec


async def test_a_prompt_id_of_another_tenant_is_as_good_as_an_unused_one(
    jobs: JobSubmitter,
) -> None:
    spec = await jobs.service.load_spec((await jobs.submit(SWATCH))[0])
    assert spec is not None
    prompt_id, bob = str(uuid.uuid4()), replace(ANN, owner="bob")
    submitted_jobs = []
    for submitter in (ANN, bob):
        job, is_new = await jobs.service.submit(
            submitter, spec, prompt_id=prompt_id, is_validated=True
        )
        assert (is_new, job.prompt_id, job.owner) == (True, prompt_id, submitter.owner)
        submitted_jobs.append(job)
    cancelled_job = await jobs.service.cancel(bob, prompt_id)
    assert cancelled_job.id == submitted_jobs[1].id
    assert not (await jobs.store.get("ann", prompt_id)).status.is_final
    # The tenant's own prompts still count.
    with pytest.raises(PromptIdTaken):
        await jobs.service.submit(
            bob, replace(spec, metadata={"a": "b"}), prompt_id=prompt_id, is_validated=True
        )


async def test_a_cancellation_that_failed_leaves_no_canceller(jobs: JobSubmitter) -> None:
    job, _ = await jobs.submit(SWATCH)
    launcher: Any = jobs.service._launcher

    async def fail(*_: Any) -> bool:
        raise ServiceUnavailable("Temporal is down")

    original_cancel, launcher.cancel = launcher.cancel, fail
    with pytest.raises(ServiceUnavailable):
        await jobs.service.cancel(ANN, job.id)
    assert (await jobs.store.find(job.id)).cancel_requested_by is None
    # Another caller's request, which Temporal has accepted, stays.
    other_canceller = Canceller(kind=CancellerKind.KEY, id="k2")
    assert await jobs.store.record_canceller(job.id, 1, other_canceller)
    with pytest.raises(ServiceUnavailable):
        await jobs.service.cancel(ANN, job.id)
    assert (await jobs.store.find(job.id)).cancel_requested_by == other_canceller
    launcher.cancel = original_cancel
    assert (await jobs.service.cancel(ANN, job.id)).cancelled_by == other_canceller


@pytest.mark.parametrize("has_same_key", [False, True], ids=["another key", "the same key"])
async def test_a_cancellation_that_fails_late_keeps_that_of_another_request(
    jobs: JobSubmitter, has_same_key: bool
) -> None:
    job, _ = await jobs.submit(SWATCH)
    launcher: Any = jobs.service._launcher
    is_sent, may_fail = asyncio.Event(), asyncio.Event()

    async def fail_late(*_: Any) -> bool:
        is_sent.set()
        await may_fail.wait()
        raise ServiceUnavailable("Temporal is down")

    async def accept_cancellation(*_: Any) -> bool:
        return True

    launcher.cancel = fail_late
    failing_cancellation = asyncio.create_task(jobs.service.cancel(ANN, job.id))
    async with asyncio.timeout(10):
        await is_sent.wait()
    launcher.cancel = accept_cancellation
    colleague = ANN if has_same_key else replace(ANN, key_id="k2")
    await jobs.service.cancel(colleague, job.id)
    may_fail.set()
    with pytest.raises(ServiceUnavailable):
        await failing_cancellation
    requesting_canceller = (await jobs.store.find(job.id)).cancel_requested_by
    assert requesting_canceller == Canceller.from_identity(colleague)


async def test_names_of_uploads_become_artifacts_when_the_job_is_accepted(
    jobs: JobSubmitter,
) -> None:
    await ArtifactStore(jobs.database).add(PHOTO, owner="ann")
    resize_body = {"kind": "render", "template": "resize",
              "inputs": {"image": "photo.png", "width": 8, "height": 8}}  # fmt: skip
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}}}
    workflow_body = {"kind": "render", "workflow": graph}
    for body, node in ((resize_body, "load"), (workflow_body, "1")):
        job, _ = await jobs.submit(body, key=None)
        spec = await jobs.service.load_spec(job)
        assert spec is not None
        assert spec.steps[0].payload[node]["inputs"]["image"] == f"artifact:{PHOTO.id}"
    # The name counts for the repetition of a request, whatever it stands for by then.
    first_job, _ = await jobs.submit(resize_body, key="again")
    assert await jobs.submit(resize_body, key="again") == (first_job, False)
    jobs.caller = replace(ANN, owner="bob")
    with pytest.raises(InvalidRequest) as exc_info:
        await jobs.submit(resize_body, key=None)
    assert exc_info.value.field == "inputs.image"
    assert "POST /upload/image" in exc_info.value.message


class ChangedGuard(PermissiveGraphGuard):
    """A guard that refuses one node class, as after a change of the permissions."""

    def __init__(self, *pools: str, denied_class: str = "") -> None:
        super().__init__(*pools)
        self._denied = denied_class

    async def check_graph(self, caller: Identity, pool: str, graph: Any, own_names: Any) -> bool:
        if any(node["class_type"] == self._denied for node in graph.values()):
            raise NodeNotAllowed("your limits allow no nodes of the class")
        return True


@pytest.mark.parametrize("batch", [None, {"seeds": 2}])
async def test_a_retry_may_use_only_the_pools_and_nodes_of_a_new_job(
    jobs: JobSubmitter, batch: Any
) -> None:
    body = SWATCH if batch is None else {**SWATCH, "batch": batch}
    job, _ = await jobs.submit(body)
    with pytest.raises(JobNotFinished):
        await jobs.service.retry(ANN, job.id)
    await jobs.service.cancel(ANN, job.id)
    jobs.service._graphs._guard = ChangedGuard("default", denied_class="SaveImage")
    with pytest.raises(NodeNotAllowed):
        await jobs.service.retry(ANN, job.id)
    jobs.service._graphs._guard = ChangedGuard("large")
    with pytest.raises(InvalidRequest) as exc_info:
        await jobs.service.retry(ANN, job.id)
    assert exc_info.value.field == "pool"
    jobs.service._graphs._guard = ChangedGuard("default", denied_class="LoadImage")
    assert (await jobs.service.retry(ANN, job.id)).attempts == 2


@pytest.mark.parametrize("batch", [None, {"seeds": 2}])
@pytest.mark.parametrize("templates", [find_changed_template, refuse_templates])
async def test_a_repeated_key_returns_the_first_job_if_the_template_has_changed(
    jobs: JobSubmitter, templates: Any, batch: Any
) -> None:
    body = SWATCH if batch is None else {**SWATCH, "batch": batch}
    first_job, is_new = await jobs.submit(body)
    repeated_job, is_repeat_new = await jobs.submit(body, templates)
    assert (is_new, is_repeat_new) == (True, False)
    assert repeated_job.id == first_job.id


async def test_a_repeated_key_returns_the_first_job_if_the_deadline_has_passed(
    jobs: JobSubmitter,
) -> None:
    body = {**SWATCH, "deadline": (NOW + timedelta(hours=1)).isoformat()}
    first_job, _ = await jobs.submit(body)
    repeated_job, _ = await jobs.submit(body, now=NOW + timedelta(hours=2))
    assert repeated_job.id == first_job.id


@pytest.mark.parametrize(
    "other_body", [{"inputs": {"prompt": "y"}}, {"priority": 1}, {"batch": {"seeds": 2}}]
)
async def test_another_request_with_the_same_key_is_refused(
    jobs: JobSubmitter, other_body: Any
) -> None:
    await jobs.submit(SWATCH)
    with pytest.raises(IdempotencyMismatch):
        await jobs.submit({**SWATCH, **other_body})


async def test_requests_without_a_key_are_separate_jobs(jobs: JobSubmitter) -> None:
    first_job, _ = await jobs.submit(SWATCH, key=None)
    second_job, is_new = await jobs.submit({**SWATCH, "priority": 3}, key=None)
    assert is_new
    assert second_job.id != first_job.id


def make_nested_list(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


def make_nested_graph(levels: int) -> dict[str, Any]:
    return {"1": {"class_type": "A", "inputs": {"x": make_nested_list(levels)}}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "render", "workflow": make_nested_graph(196)}, "workflow"),
        (
            {
                "kind": "chat",
                "request": {
                    "model": "m",
                    "messages": [{"role": "user"}],
                    "x": make_nested_list(198),
                },
            },
            "request",
        ),
        ({"kind": "http", "request": {"path": "/x", "body": make_nested_list(198)}}, "request"),
    ],
)
async def test_a_job_that_is_nested_too_deeply_is_refused(
    jobs: JobSubmitter, body: Any, field: str
) -> None:
    with pytest.raises(InvalidRequest, match="nested too deeply") as exc_info:
        await jobs.submit(body)
    assert exc_info.value.field == field


async def test_a_comfyui_prompt_that_is_nested_too_deeply_is_refused(jobs: JobSubmitter) -> None:
    step = Step(kind=StepKind.RENDER, payload=make_nested_graph(1))
    body = ComfyPrompt(extra_data={"extra_pnginfo": make_nested_list(300)})
    with pytest.raises(InvalidRequest) as exc_info:
        await jobs.service.submit(ANN, JobSpec(kind="render", steps=(step,), comfyui=body))
    assert exc_info.value.field == "extra_data"


async def test_a_job_with_allowed_nesting_is_accepted(jobs: JobSubmitter) -> None:
    job, _ = await jobs.submit({"kind": "render", "workflow": make_nested_graph(190)})
    spec = await jobs.service.load_spec(job)
    assert spec is not None
    assert spec.steps[0].payload == make_nested_graph(190)
