from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from pydantic_core import from_json, to_json

from moyin.comfy_api.prompts import ComfyPrompts
from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobSpec, JobStatus
from moyin.domain.prompt import ComfyFileName, ComfyPrompt
from moyin.domain.queue_place import Duration, QueuePlace
from moyin.errors import JobFinished, JobNotFound
from moyin.jobs.feed import JobFeed
from moyin.jobs.service import JobService
from moyin.render.protocol.graph import make_input_name
from moyin.store.artifacts import generate_artifact_id
from moyin.system.heavy_work import HeavyWork
from moyin.testing.fakes import PermissiveGraphGuard
from tests.unit.comfy_api.harness import GRAPH, OWNER, ComfyApiHarness, harness, make_record

__all__ = ["harness"]

ADA = Identity(owner=OWNER, key_id="k")
BOB = Identity(owner="bob", key_id="k")


class FakeJobService:
    """A fake `JobService` that records its calls."""

    def __init__(self, harness: ComfyApiHarness) -> None:
        self._harness = harness
        self.work = HeavyWork()
        self.specs: list[JobSpec] = []
        self.priority_fields: list[str | None] = []

    async def submit(self, caller: Identity, spec: JobSpec, **options: Any) -> tuple[Job, bool]:
        assert options["is_validated"], "the graph must have been validated before"
        self.specs.append(spec)
        self.priority_fields.append(options["priority_field"])
        return await self._harness.create_job(), True

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        ended_job = await self._harness.jobs.finish(job_id, 1, JobStatus.CANCELLED, None)
        if ended_job is None:
            raise JobFinished("the job has ended")
        return ended_job


class FakeJobFeed:
    """A fake `JobFeed` whose jobs end at once."""

    async def get_newest_id(self, job_id: str) -> None:
        return None

    async def wait_for_end(self, job: Job, after: str | None) -> None:
        assert job.status.is_final


class FakeValidator:
    """A fake validator that accepts and records every graph."""

    def __init__(self) -> None:
        self.pools: list[str] = []
        self.graphs: list[Mapping[str, Any]] = []

    async def validate(
        self, pool: str, graph: Mapping[str, Any], targets: Sequence[str] | None = None
    ) -> Mapping[str, Any]:
        self.pools.append(pool)
        self.graphs.append(graph)
        return {"node_errors": {"9": {}}, "outputs": ["1"]}


@pytest.fixture
def service(harness: ComfyApiHarness) -> FakeJobService:
    return FakeJobService(harness)


@pytest.fixture
def validator() -> FakeValidator:
    return FakeValidator()


class FakeGraphGuard(PermissiveGraphGuard):
    async def choose_pool(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        return "big" if graph["1"]["class_type"] == "Big" else "default"


@pytest.fixture
def executed_ids() -> set[str]:
    """Return the ids of prompts that ComfyUI has executed; tests add to it."""
    return set()


@pytest.fixture
def queue_places() -> dict[str, QueuePlace]:
    """Return an empty mapping from job ids to places in the queue, which tests fill."""
    return {}


@pytest.fixture
def prompts(
    harness: ComfyApiHarness,
    service: FakeJobService,
    validator: FakeValidator,
    executed_ids: set[str],
    queue_places: dict[str, QueuePlace],
) -> ComfyPrompts:
    async def read_places() -> dict[str, QueuePlace]:
        return queue_places

    async def find_executed(ids: Sequence[str]) -> set[str]:
        return executed_ids & set(ids)

    return ComfyPrompts(
        service=cast(JobService, service),
        feed=cast(JobFeed, FakeJobFeed()),
        validator=validator,
        guard=FakeGraphGuard("default", "big"),
        prompts=harness.prompts,
        files=harness.files,
        blobs=harness.blobs,
        find_executed=find_executed,
        read_places=read_places,
        wait_until_notified=harness.new_notifiers().wait_until_notified,
    )


async def create_ended_job(
    harness: ComfyApiHarness, status: JobStatus = JobStatus.SUCCEEDED
) -> Job:
    job = await harness.create_job(is_running=True)
    results = [await harness.store_result(make_record())] if status is JobStatus.SUCCEEDED else []
    ended_job = await harness.jobs.finish(job.id, 1, status, None, results=results)
    assert ended_job is not None
    return ended_job


async def test_a_prompt_goes_to_the_pool_that_fits_its_graph(
    prompts: ComfyPrompts, service: FakeJobService, validator: FakeValidator
) -> None:
    await prompts.submit(ADA, to_json({"prompt": {"1": {"class_type": "Big", "inputs": {}}}}))
    await prompts.submit(ADA, to_json({"prompt": GRAPH}))
    assert [spec.steps[0].pool for spec in service.specs] == ["big", "default"]
    assert validator.pools == ["big", "default"]


async def test_a_prompt_becomes_a_job_with_its_request_data(
    prompts: ComfyPrompts, service: FakeJobService
) -> None:
    extra_data = {"extra_pnginfo": {"workflow": {}}, "api_key_comfy_org": "secret"}
    body = {
        "prompt": GRAPH,
        "client_id": "c",
        "extra_data": extra_data,
        "partial_execution_targets": [],
    }
    accepted_prompt = await prompts.submit(ADA, to_json(body))
    assert accepted_prompt.keys() == {"prompt_id", "number", "node_errors"}
    assert accepted_prompt["node_errors"] == {"9": {}}
    [spec] = service.specs
    assert (spec.kind, spec.priority, spec.steps[0].pool) == ("render", 3, "default")
    assert spec.comfyui == ComfyPrompt(
        client_id="c",
        extra_data={"extra_pnginfo": {"workflow": {}}},
        targets=(),
        outputs=("1",),
    )


@pytest.mark.parametrize(
    ("prompt_fields", "priority"),
    [({}, 3), ({"front": True}, 2), ({"number": -1}, 2), ({"number": 5}, 3)],
)
async def test_front_of_the_queue_is_a_higher_priority(
    prompts: ComfyPrompts, service: FakeJobService, prompt_fields: dict[str, Any], priority: int
) -> None:
    body = await prompts.submit(ADA, to_json({"prompt": GRAPH, **prompt_fields}))
    assert service.specs[0].priority == priority
    field_name = "number" if "number" in prompt_fields else "front"
    assert service.priority_fields == [field_name if priority == 2 else None]
    assert body["number"] == prompt_fields.get("number", body["number"])
    assert (body["number"] < 0) == (priority == 2)


async def test_uploads_are_validated_under_the_renderers_names_and_stored_by_id(
    prompts: ComfyPrompts,
    service: FakeJobService,
    validator: FakeValidator,
    harness: ComfyApiHarness,
) -> None:
    cat_artifact = Artifact(
        id=generate_artifact_id(), name="cat.png", media_type="image/png", size=1, sha256="1" * 64
    )
    name = ComfyFileName(filename="cat.png", type="input")
    await harness.files.add_upload(OWNER, name, cat_artifact, overwrite=False)
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}}
    await prompts.submit(ADA, to_json({"prompt": graph}))
    assert validator.graphs[0]["1"]["inputs"]["image"] == make_input_name(cat_artifact)
    assert service.specs[0].comfyui is not None
    assert service.specs[0].comfyui.files == {"cat.png": cat_artifact.id}
    await prompts.submit(replace(ADA, owner="bob"), to_json({"prompt": graph}))
    assert validator.graphs[1] == graph, "another tenant's name must not resolve"


async def test_the_queue_lists_running_and_waiting_prompts(
    prompts: ComfyPrompts, harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting_job, running_job = await harness.create_job(), await harness.create_job(is_running=True)
    await harness.create_job(owner="bob")
    queue = from_json(await prompts.list_queue(OWNER))
    assert [row[1:3] for row in queue["queue_running"]] == [[running_job.id, GRAPH]]
    assert [row[1:3] for row in queue["queue_pending"]] == [[waiting_job.id, GRAPH]]
    assert await prompts.count_open(OWNER) == 2
    # The graphs of a long queue would be megabytes.
    monkeypatch.setattr("moyin.comfy_api.prompts._MAX_ROWS_WITH_GRAPH", 1)
    queue = from_json(await prompts.list_queue(OWNER))
    assert [row[2] for rows in queue.values() for row in rows] == [GRAPH, {}]


async def test_the_queue_shows_places_and_estimates(
    prompts: ComfyPrompts, harness: ComfyApiHarness, queue_places: dict[str, QueuePlace]
) -> None:
    running_job, waiting_job, job_without_place = (
        await harness.create_job(is_running=True),
        await harness.create_job(),
        await harness.create_job(),
    )
    estimate = Duration(mean=2.0)
    queue_places[running_job.id] = QueuePlace(ends_in=estimate)
    queue_places[waiting_job.id] = QueuePlace(
        position=1, starts_in=estimate, ends_in=estimate + estimate
    )
    queue = from_json(await prompts.list_queue(OWNER))
    extras_by_id = {row[1]: row[3].get("moyin") for rows in queue.values() for row in rows}
    two_seconds, four_seconds = {"p50": 2.0, "p90": 2.0}, {"p50": 4.0, "p90": 4.0}
    assert extras_by_id == {
        running_job.id: {"position": None, "eta": {"starts_in": None, "ends_in": two_seconds}},
        waiting_job.id: {"position": 1, "eta": {"starts_in": two_seconds, "ends_in": four_seconds}},
        job_without_place.id: None,
    }


async def test_the_history_is_oldest_first_and_can_be_paged(
    prompts: ComfyPrompts, harness: ComfyApiHarness
) -> None:
    ended_ids = [(await create_ended_job(harness)).id for _ in range(4)]
    await harness.create_job()
    assert list(from_json(await prompts.list_history(OWNER))) == ended_ids
    assert list(from_json(await prompts.list_history(OWNER, max_items=2))) == ended_ids[2:]
    assert (
        list(from_json(await prompts.list_history(OWNER, max_items=2, offset=1))) == ended_ids[1:3]
    )
    assert from_json(await prompts.list_history("bob")) == {}
    entry = from_json(await prompts.get_history(OWNER, ended_ids[0]))[ended_ids[0]]
    assert entry["status"]["completed"] is True
    assert from_json(await prompts.get_history("bob", ended_ids[0])) == {}


async def test_responses_with_large_graphs_are_limited_in_size(
    prompts: ComfyPrompts, harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.comfy_api.prompts._MAX_RESPONSE_BYTES", 1_000_000)
    monkeypatch.setattr("moyin.comfy_api.prompts._MAX_CACHED_BYTES", 100_000)
    large_graph = {"1": {"class_type": "SaveImage", "inputs": {"text": "x" * 400_000}}}
    ended_ids = []
    for _ in range(12):
        job = await harness.create_job(is_running=True, graph=large_graph)
        results = [await harness.store_result(make_record())]
        assert await harness.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=results)
        ended_ids.append(job.id)
    assert list(from_json(await prompts.list_history(OWNER))) == ended_ids[-2:]
    assert list(from_json(await prompts.list_history(OWNER, offset=3))) == ended_ids[3:5]
    assert list(from_json(await prompts.get_history(OWNER, ended_ids[0]))) == ended_ids[:1]
    page = from_json(
        await prompts.list_jobs(
            OWNER,
            states=(),
            workflow_id=None,
            sorts_by_duration=False,
            is_ascending=True,
            limit=None,
            offset=0,
        )
    )
    assert [job["id"] for job in page["jobs"]] == ended_ids[:2]
    assert page["pagination"]["has_more"]
    waiting_ids = [(await harness.create_job(graph=large_graph)).id for _ in range(4)]
    rows = from_json(await prompts.list_queue(OWNER))["queue_pending"]
    assert sorted(row[1] for row in rows) == sorted(waiting_ids)
    assert [row[2] for row in rows].count({}) == 2
    # Large specs are not cached.
    assert not prompts._specs


async def test_a_response_has_at_least_one_entry_however_large(
    prompts: ComfyPrompts, harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.comfy_api.prompts._MAX_RESPONSE_BYTES", 1)
    ended_ids = [(await create_ended_job(harness)).id for _ in range(3)]
    assert list(from_json(await prompts.list_history(OWNER))) == ended_ids[-1:]


async def test_deleting_history_hides_prompts_and_keeps_their_jobs(
    prompts: ComfyPrompts, harness: ComfyApiHarness
) -> None:
    first_id, second_id, third_id = [(await create_ended_job(harness)).id for _ in range(3)]
    running_job = await harness.create_job(is_running=True)
    await prompts.hide_from_history(BOB, [first_id])
    await prompts.hide_from_history(ADA, [first_id, running_job.id, str(uuid.uuid4())])
    assert list(from_json(await prompts.list_history(OWNER))) == [second_id, third_id]
    await prompts.hide_from_history(ADA, None)
    assert from_json(await prompts.list_history(OWNER)) == {}
    assert (await harness.jobs.get(OWNER, first_id)).status is JobStatus.SUCCEEDED
    assert await prompts.count_open(OWNER) == 1


async def test_waiting_prompts_can_be_removed_and_running_ones_interrupted(
    prompts: ComfyPrompts, harness: ComfyApiHarness
) -> None:
    waiting_ids = [(await harness.create_job()).id for _ in range(3)]
    running_id = (await harness.create_job(is_running=True)).id
    foreign_job = await harness.create_job(owner="bob", is_running=True)

    async def list_open_ids() -> set[str]:
        return {job.id for job in await harness.prompts.list_open(OWNER)}

    await prompts.cancel_waiting(ADA, [waiting_ids[0], running_id, foreign_job.id])
    assert await list_open_ids() == {*waiting_ids[1:], running_id}
    await prompts.interrupt(ADA, None)
    assert await list_open_ids() == set(waiting_ids[1:])
    await prompts.interrupt(ADA, waiting_ids[1])
    await prompts.interrupt(ADA, foreign_job.id)
    assert await list_open_ids() == {waiting_ids[2]}
    await prompts.cancel_waiting(ADA, None)
    assert await list_open_ids() == set()
    assert not await prompts.cancel(ADA, waiting_ids), "these prompts have ended"
    assert not (await harness.jobs.get("bob", foreign_job.id)).status.is_final


@pytest.fixture
async def job_ids_by_name(harness: ComfyApiHarness) -> dict[str, str]:
    """Create waiting and running jobs of several submitters and clients.

    Returns the id of each job by a name such as "own waits".
    """
    ids = {}
    for is_running, state in ((False, "waits"), (True, "runs")):
        submissions: dict[str, dict[str, Any]] = {
            "own": {},
            "own, another client": {"client": "editor"},
            "through /jobs": {"comfyui": False},
            "a colleague's": {"key_id": "k2"},
            "a colleague's, same client": {"key_id": "k2", "client": "editor"},
            "another tenant's": {"owner": "bob"},
        }
        for name, job_options in submissions.items():
            job = await harness.create_job(is_running=is_running, **job_options)
            ids[f"{name} {state}"] = job.id
    return ids


async def _list_open_names(
    harness: ComfyApiHarness, job_ids_by_name: Mapping[str, str]
) -> set[str]:
    open_jobs = [*await harness.prompts.list_open(OWNER), *await harness.prompts.list_open("bob")]
    ids = {job.id for job in open_jobs}
    return {name for name, job_id in job_ids_by_name.items() if job_id in ids}


async def test_clearing_the_queue_affects_only_the_callers_own_prompts(
    prompts: ComfyPrompts, harness: ComfyApiHarness, job_ids_by_name: dict[str, str]
) -> None:
    await prompts.cancel_waiting(ADA, None)
    removed_names = {"own waits", "own, another client waits"}
    assert (
        await _list_open_names(harness, job_ids_by_name) == job_ids_by_name.keys() - removed_names
    )


async def test_an_interrupt_without_an_id_affects_only_the_callers_own_prompts(
    prompts: ComfyPrompts, harness: ComfyApiHarness, job_ids_by_name: dict[str, str]
) -> None:
    await prompts.interrupt(ADA, None)
    removed_names = {"own runs", "own, another client runs"}
    assert (
        await _list_open_names(harness, job_ids_by_name) == job_ids_by_name.keys() - removed_names
    )


async def test_client_id_limits_clearing_to_one_client(
    prompts: ComfyPrompts, harness: ComfyApiHarness, job_ids_by_name: dict[str, str]
) -> None:
    await prompts.interrupt(ADA, None, client_id="editor")
    await prompts.cancel_waiting(ADA, None, client_id="editor")
    removed_names = {name for name in job_ids_by_name if "client" in name}
    assert (
        await _list_open_names(harness, job_ids_by_name) == job_ids_by_name.keys() - removed_names
    )


async def test_a_user_is_recognized_in_every_session(
    prompts: ComfyPrompts, harness: ComfyApiHarness
) -> None:
    ann = Identity(owner=OWNER, key_id="ses_2", user="usr_ann")
    job_ids_by_name = {
        "mine": (await harness.create_job(key_id="ses_1", user="usr_ann")).id,
        "theirs": (await harness.create_job(key_id="ses_3", user="usr_eve")).id,
        "the tenant's key's": (await harness.create_job()).id,
    }
    await prompts.cancel_waiting(ann, None)
    assert await _list_open_names(harness, job_ids_by_name) == {"theirs", "the tenant's key's"}


async def test_clearing_the_history_affects_only_the_callers_own_prompts(
    prompts: ComfyPrompts, harness: ComfyApiHarness, job_ids_by_name: dict[str, str]
) -> None:
    for job_id in job_ids_by_name.values():
        await harness.jobs.finish(job_id, 1, JobStatus.SUCCEEDED, None)
    await prompts.hide_from_history(ADA, None)
    shown_prompts = {
        **from_json(await prompts.list_history(OWNER)),
        **from_json(await prompts.list_history("bob")),
    }
    hidden_names = {name for name, job_id in job_ids_by_name.items() if job_id not in shown_prompts}
    assert hidden_names == {name for name in job_ids_by_name if name.startswith("own")}


async def test_an_interrupt_spares_prompts_that_have_been_executed(
    prompts: ComfyPrompts, harness: ComfyApiHarness, executed_ids: set[str]
) -> None:
    executed_job, running_job = (
        await harness.create_job(is_running=True),
        await harness.create_job(is_running=True),
    )
    executed_ids.add(executed_job.id)
    await prompts.interrupt(ADA, None)
    await prompts.interrupt(ADA, executed_job.id)
    assert [job.id for job in await harness.prompts.list_open(OWNER)] == [executed_job.id]
    assert (await harness.jobs.get(OWNER, running_job.id)).status is JobStatus.CANCELLED
    assert await prompts.cancel(ADA, [executed_job.id]), "an explicit cancellation still works"


async def test_jobs_are_listed_by_state_and_page(
    prompts: ComfyPrompts, harness: ComfyApiHarness
) -> None:
    succeeded_job, failed_job = (
        await create_ended_job(harness),
        await create_ended_job(harness, JobStatus.FAILED),
    )
    waiting_job = await harness.create_job()

    async def list_ids(**options: Any) -> tuple[list[str], dict[str, Any]]:
        default_options = {
            "states": (), "workflow_id": None, "sorts_by_duration": False, "is_ascending": True,
            "limit": None, "offset": 0,
        }  # fmt: skip
        body = from_json(await prompts.list_jobs(OWNER, **{**default_options, **options}))
        return [job["id"] for job in body["jobs"]], body["pagination"]

    assert (await list_ids())[0] == [succeeded_job.id, failed_job.id, waiting_job.id]
    assert (await list_ids(is_ascending=False))[0] == [
        waiting_job.id,
        failed_job.id,
        succeeded_job.id,
    ]
    assert (await list_ids(states=("failed", "pending")))[0] == [failed_job.id, waiting_job.id]
    assert (await list_ids(workflow_id="w"))[0] == []
    ids, pagination = await list_ids(limit=1, offset=1)
    assert ids == [failed_job.id]
    assert pagination == {"offset": 1, "limit": 1, "total": 3, "has_more": True}
    assert from_json(await prompts.get_job(OWNER, succeeded_job.id))["workflow"]["prompt"] == GRAPH
    with pytest.raises(JobNotFound):
        await prompts.get_job("bob", succeeded_job.id)


async def test_workflows_of_many_jobs_are_read_in_parallel_and_cached(
    prompts: ComfyPrompts, harness: ComfyApiHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in ("1", "2"):
        await harness.create_job(graph={node: GRAPH["1"]})
    reading_barrier = asyncio.Barrier(2)
    original_get = harness.blobs.get

    async def get_concurrently(sha256: str) -> bytes:
        async with asyncio.timeout(10):
            await reading_barrier.wait()
        return await original_get(sha256)

    monkeypatch.setattr(harness.blobs, "get", get_concurrently)
    list_options: Any = {
        "states": (), "workflow_id": "w", "sorts_by_duration": False, "is_ascending": True,
        "limit": None, "offset": 0,
    }  # fmt: skip
    body = from_json(await prompts.list_jobs(OWNER, **list_options))
    assert body["jobs"] == []
    # The workflow digests must be cached, because the spec cache is smaller than the list.
    monkeypatch.setattr(prompts, "_specs", {})
    monkeypatch.setattr(harness.blobs, "get", None)
    assert from_json(await prompts.list_jobs(OWNER, **list_options))["jobs"] == []


async def test_responses_show_the_chosen_id_of_a_prompt_and_never_its_jobs(
    prompts: ComfyPrompts, harness: ComfyApiHarness
) -> None:
    ended_id, waiting_id = str(uuid.uuid4()), str(uuid.uuid4())
    job = await harness.create_job(is_running=True, chosen_id=ended_id)
    messages = (("execution_success", {"prompt_id": job.id, "timestamp": 1}),)
    outputs = {"1": {"images": [{"filename": "a.png", "subfolder": job.id, "type": "output"}]}}
    result = await harness.store_result(make_record(messages=messages, outputs=outputs))
    assert await harness.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=[result])
    waiting_job = await harness.create_job(chosen_id=waiting_id)
    history = await prompts.get_history(OWNER, ended_id)
    entry = from_json(history)[ended_id]
    assert entry["prompt"][1] == ended_id
    assert entry["outputs"]["1"]["images"][0]["subfolder"] == ended_id
    assert entry["status"]["messages"][0][1]["prompt_id"] == ended_id
    queue = await prompts.list_queue(OWNER)
    assert from_json(queue)["queue_pending"][0][1] == waiting_id
    detail = await prompts.get_job(OWNER, ended_id)
    for content in (history, queue, detail, await prompts.list_history(OWNER)):
        assert job.id.encode() not in content and waiting_job.id.encode() not in content
    await prompts.hide_from_history(ADA, [ended_id])
    assert from_json(await prompts.list_history(OWNER)) == {}
    await prompts.cancel_waiting(ADA, [waiting_id])
    assert await prompts.count_open(OWNER) == 0
    assert from_json(await prompts.get_history("bob", ended_id)) == {}
