"""Tests that owners delete their jobs, singly and in bulk, with a real database and real files."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from moyin.domain.identity import Identity
from moyin.domain.job import JobStatus
from moyin.errors import InvalidRequest, JobNotFinished, JobNotFound, Overloaded
from moyin.http.public_addresses import AllowedNetworks
from moyin.jobs import history
from moyin.jobs.history import JobHistory
from moyin.jobs.protocol.response import render_job_detail
from moyin.jobs.service import JobService
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore
from moyin.store.sql import Database
from moyin.testing.fakes import FreeBudgets, InMemoryNamedFiles, PermissiveGraphGuard

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANN = Identity(owner="ann", key_id="k")
BOB = Identity(owner="bob", key_id="k2")
TEMPLATES = read_templates([SHIPPED_FOLDER])
WORKFLOW = {"1": {"class_type": "A", "inputs": {"seed": 7}}}
RENDER = {"kind": "render", "workflow": WORKFLOW}


class IdleServices:
    """Stands for events, frames, Temporal and the render pools, and records what is deleted."""

    def __init__(self) -> None:
        self.deleted_events: list[str] = []
        self.deleted_files: list[str] = []
        self.may_cancel = asyncio.Event()
        self.may_cancel.set()
        self.is_cancelling = asyncio.Event()

    async def cancel(self, *_: Any) -> bool:
        self.is_cancelling.set()
        await self.may_cancel.wait()
        return False

    async def delete(self, job_ids: Sequence[str]) -> None:
        self.deleted_events += job_ids

    async def delete_files(self, prompt_ids: Sequence[str]) -> None:
        self.deleted_files += prompt_ids

    async def publish(self, *_: Any) -> None: ...
    async def publish_end(self, *_: Any) -> None: ...
    async def publish_status(self, *_: Any) -> None: ...
    async def start_webhook(self, *_: Any) -> None: ...
    async def start(self, *_: Any) -> None: ...
    async def validate(self, *_: Any) -> dict[str, Any]:
        return {}


class HistoryHarness:
    """Submits and ends jobs of tenants."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.jobs = JobStore(database)
        self.idle = IdleServices()
        idle_services: Any = self.idle
        self.service = JobService(
            jobs=self.jobs,
            artifacts=ArtifactStore(database),
            files=InMemoryNamedFiles({}),
            blobs=BlobStore(f"file://{folder}"),
            events=idle_services,
            frames=idle_services,
            launcher=idle_services,
            validator=idle_services,
            guard=PermissiveGraphGuard("default"),
            budgets=FreeBudgets(),
            networks=AllowedNetworks(),
        )
        self.history = JobHistory(self.service, self.jobs)

    async def submit(
        self, body: Any = RENDER, *, caller: Identity = ANN, is_ended: bool = False, **kwargs: Any
    ) -> str:
        data = json.dumps({**body, **kwargs}).encode()
        job, _ = await self.service.submit_request(caller, data, TEMPLATES.find, now=NOW)
        if is_ended:
            await self.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None)
        return job.id

    async def show_submission(self, job_id: str) -> dict[str, Any]:
        """Return the member ``submitted`` of the job, as the API shows it."""
        job = await self.jobs.find(job_id)
        spec = await self.service.load_small_spec(job)
        body = render_job_detail(job, [], spec).model_dump(mode="json", exclude_none=True)
        return dict(body["submitted"])

    async def list_ids(self, owner: str = "ann") -> set[str]:
        return {job.id for job in (await self.jobs.list_page(owner))[0]}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[HistoryHarness]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield HistoryHarness(database, tmp_path / "blobs")
    await database.close()


async def test_only_an_ended_job_of_the_caller_is_deleted(harness: HistoryHarness) -> None:
    job_id, other_id = await harness.submit(), await harness.submit(caller=BOB, is_ended=True)
    with pytest.raises(JobNotFinished, match=f"POST /jobs/{job_id}/cancel"):
        await harness.history.delete("ann", job_id)
    for unknown_id in (other_id, "nonsense"):
        with pytest.raises(JobNotFound):
            await harness.history.delete("ann", unknown_id)
    await harness.service.cancel(ANN, job_id)
    await harness.history.delete("ann", job_id)
    assert harness.idle.deleted_events == harness.idle.deleted_files == [job_id]
    assert (await harness.list_ids(), await harness.list_ids("bob")) == (set(), {other_id})
    with pytest.raises(JobNotFound):
        await harness.history.delete("ann", job_id)


async def test_delete_by_a_filter_skips_open_jobs(
    harness: HistoryHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_CHUNK", 2)
    metadata = {"project": "old"}
    for _ in range(5):
        await harness.submit(metadata=metadata, is_ended=True)
    remaining_ids = {
        await harness.submit(metadata=metadata),
        await harness.submit(metadata={"project": "new"}, is_ended=True),
    }
    other_id = await harness.submit(caller=BOB, metadata=metadata, is_ended=True)
    job_filter = JobFilter(metadata=metadata)
    counted_result = await harness.history.delete_matching(
        ANN, job_filter, dry_run=True, cursor=None
    )
    assert (counted_result.matched, counted_result.done, counted_result.skipped) == (6, 0, 0)
    assert len(await harness.list_ids()) == 7
    result = await harness.history.delete_matching(ANN, job_filter, dry_run=False, cursor=None)
    assert (result.matched, result.done, result.skipped) == (6, 5, 1)
    assert result.next_cursor is None
    assert await harness.list_ids() == remaining_ids
    assert await harness.list_ids("bob") == {other_id}


async def test_a_bulk_request_changes_a_bounded_number_of_jobs_and_the_next_continues(
    harness: HistoryHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_CHUNK", 2)
    monkeypatch.setattr(history, "MAX_CHANGED", 4)
    for _ in range(5):
        await harness.submit(is_ended=True)
    open_id = await harness.submit()
    job_filter, cursor = JobFilter(kind="render"), None
    counts_per_request: list[tuple[int, int, int]] = []
    while not counts_per_request or cursor is not None:
        result = await harness.history.delete_matching(
            ANN, job_filter, dry_run=False, cursor=cursor
        )
        counts_per_request.append((result.matched, result.done, result.skipped))
        cursor = result.next_cursor
    assert counts_per_request == [(4, 3, 1), (2, 2, 0)]
    assert await harness.list_ids() == {open_id}


async def test_cancel_by_a_filter_concerns_open_jobs_only(harness: HistoryHarness) -> None:
    unlabelled_id, labelled_id = await harness.submit(), await harness.submit(metadata={"a": "b"})
    await harness.submit(metadata={"a": "b"}, is_ended=True)
    other_id = await harness.submit(caller=BOB, metadata={"a": "b"})
    job_filter = JobFilter(metadata={"a": "b"})
    counted_result = await harness.history.cancel_matching(
        ANN, job_filter, dry_run=True, cursor=None
    )
    assert (counted_result.matched, counted_result.done) == (1, 0)
    result = await harness.history.cancel_matching(ANN, job_filter, dry_run=False, cursor=None)
    assert (result.matched, result.done, result.skipped) == (1, 1, 0)
    statuses = {
        job_id: (await harness.jobs.find(job_id)).status
        for job_id in (unlabelled_id, labelled_id, other_id)
    }
    assert statuses == {
        unlabelled_id: JobStatus.QUEUED,
        labelled_id: JobStatus.CANCELLED,
        other_id: JobStatus.QUEUED,
    }
    ended_filter = JobFilter(statuses=(JobStatus.SUCCEEDED,))
    empty_result = await harness.history.cancel_matching(
        ANN, ended_filter, dry_run=False, cursor=None
    )
    assert (empty_result.matched, empty_result.done, empty_result.next_cursor) == (0, 0, None)


async def test_a_job_that_ends_meanwhile_is_skipped(harness: HistoryHarness) -> None:
    job_id = await harness.submit()
    harness.idle.may_cancel.clear()
    job_filter = JobFilter(kind="render")
    cancelling_task = asyncio.create_task(
        harness.history.cancel_matching(ANN, job_filter, dry_run=False, cursor=None)
    )
    # Another request of the tenant must wait, but not one of another tenant.
    await harness.idle.is_cancelling.wait()
    with pytest.raises(Overloaded):
        await harness.history.delete_matching(ANN, job_filter, dry_run=False, cursor=None)
    await harness.history.delete_matching(BOB, job_filter, dry_run=False, cursor=None)
    await harness.jobs.finish(job_id, 1, JobStatus.SUCCEEDED, None)
    harness.idle.may_cancel.set()
    result = await cancelling_task
    assert (result.matched, result.done, result.skipped) == (1, 0, 1)
    assert (
        await harness.history.delete_matching(ANN, job_filter, dry_run=False, cursor=None)
    ).done == 1


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_filter_without_conditions_is_refused(
    harness: HistoryHarness, dry_run: bool
) -> None:
    job_id = await harness.submit()
    for change_matching in (harness.history.delete_matching, harness.history.cancel_matching):
        with pytest.raises(InvalidRequest) as exc_info:
            await change_matching(ANN, JobFilter(), dry_run=dry_run, cursor=None)
        assert exc_info.value.field == "filter"
    assert (await harness.jobs.find(job_id)).status is JobStatus.QUEUED


async def test_a_render_shows_its_template_and_links_its_graph(harness: HistoryHarness) -> None:
    inputs = {"prompt": "x", "seed": 3}
    job_id = await harness.submit({"kind": "render", "template": "swatch", "inputs": inputs})
    assert (await harness.show_submission(job_id))["steps"] == [
        {
            "kind": "render",
            "template": "swatch",
            "inputs": inputs,
            "graph": f"/jobs/{job_id}/graph?step=0",
            "pool": "default",
            "cache": True,
        }
    ]
    graph = await harness.history.get_graph(await harness.jobs.find(job_id), 0)
    assert any(node["class_type"] == "SaveImage" for node in graph.values())
    webhook_job_id = await harness.submit(webhook="https://example.com/hook")
    shown_job = await harness.show_submission(webhook_job_id)
    assert shown_job["webhook"] == "https://example.com/[hidden]"
    assert "template" not in shown_job["steps"][0] and "inputs" not in shown_job["steps"][0]
    assert await harness.history.get_graph(await harness.jobs.find(webhook_job_id), 0) == WORKFLOW


async def test_each_child_of_a_batch_has_its_graph(harness: HistoryHarness) -> None:
    job_id = await harness.submit(batch={"seeds": [5, 6]})
    job = await harness.jobs.find(job_id)
    graphs = [await harness.history.get_graph(job, index) for index in range(2)]
    assert [graph["1"]["inputs"]["seed"] for graph in graphs] == [5, 6]
    assert len((await harness.show_submission(job_id))["steps"]) == 1
    with pytest.raises(JobNotFound, match="step 2"):
        await harness.history.get_graph(job, 2)


async def test_requests_are_shown_without_credentials(harness: HistoryHarness) -> None:
    chat = {"kind": "chat", "request": {"model": "m", "messages": [{"role": "user"}]}}
    http = {
        "kind": "http",
        "request": {
            "method": "POST",
            "path": "/svc/x",
            "headers": {"Authorization": "Bearer secret", "Accept": "a/b"},
            "body": {"a": 1},
        },
    }
    job_id = await harness.submit({"kind": "pipeline", "steps": [chat, http]})
    first_step, second_step = (await harness.show_submission(job_id))["steps"]
    assert (first_step["protocol"], first_step["request"]) == ("openai", chat["request"])
    assert second_step["request"] == {
        "method": "POST",
        "path": "/svc/x",
        "headers": {"Authorization": "[hidden]", "Accept": "a/b"},
        "body": {"a": 1},
    }
    with pytest.raises(JobNotFound, match="must be the index of a render"):
        await harness.history.get_graph(await harness.jobs.find(job_id), 0)


async def test_a_large_request_is_left_out(harness: HistoryHarness) -> None:
    messages = [{"role": "user", "content": "x" * 1_100_000}]
    job_id = await harness.submit({"kind": "chat", "request": {"model": "m", "messages": messages}})
    assert await harness.service.load_small_spec(await harness.jobs.find(job_id)) is None


async def test_the_spec_of_a_polled_job_is_read_once(
    harness: HistoryHarness, tmp_path: Path
) -> None:
    job_id = await harness.submit(is_ended=True)
    job = await harness.jobs.find(job_id)
    spec = await harness.service.load_small_spec(job)
    assert spec is not None
    shutil.rmtree(tmp_path / "blobs")
    assert await harness.service.load_small_spec(job) == spec


async def test_a_submitted_text_is_found_and_deleted_by_a_search(harness: HistoryHarness) -> None:
    message = {"role": "user", "content": "夕焼けの海 at dusk"}
    chat = {"kind": "chat", "request": {"model": "m", "messages": [message]}}
    deleted_id = await harness.submit(chat, is_ended=True)
    other_id = await harness.submit(metadata={"note": "dusk"}, is_ended=True)
    job_filter = JobFilter(search="Dusk 夕焼け")
    counted_result = await harness.history.delete_matching(
        ANN, job_filter, dry_run=True, cursor=None
    )
    assert (counted_result.matched, counted_result.done) == (1, 0)
    deletion_result = await harness.history.delete_matching(
        ANN, job_filter, dry_run=False, cursor=None
    )
    assert (deletion_result.matched, deletion_result.done, deletion_result.next_cursor) == (
        1,
        1,
        None,
    )
    assert await harness.list_ids() == {other_id} and deleted_id != other_id
