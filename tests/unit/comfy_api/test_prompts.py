from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from moyin.comfy_api.prompts import FarmPrompts
from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import Job, JobSpec, JobStatus
from moyin.domain.prompt import ComfyFileName, ComfyPrompt
from moyin.errors import JobFinished, JobNotFound
from moyin.jobs.feed import JobFeed
from moyin.jobs.service import JobService
from moyin.render.protocol.graph import input_name
from moyin.render.protocol.wire import PromptBody
from moyin.store.artifacts import new_artifact_id
from moyin.testing.guard import OpenGuard
from tests.unit.comfy_api.rig import GRAPH, OWNER, Rig, record, rig

__all__ = ["rig"]

ADA = Identity(owner=OWNER, key_id="k")
BOB = Identity(owner="bob", key_id="k")


class Service:
    """`JobService` without a queue behind it: it notes what is asked of it."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.specs: list[JobSpec] = []
        self.priority_fields: list[str | None] = []

    async def submit(self, caller: Identity, spec: JobSpec, **asked: Any) -> tuple[Job, bool]:
        assert asked["validated"], "the pool has been asked"
        self.specs.append(spec)
        self.priority_fields.append(asked["priority_field"])
        return await self._rig.job(), True

    async def cancel(self, caller: Identity, job_id: str) -> Job:
        ended = await self._rig.jobs.finish(job_id, 1, JobStatus.CANCELLED, None)
        if ended is None:
            raise JobFinished("it has ended")
        return ended


class Feed:
    """`JobFeed` of jobs that end at once."""

    async def newest(self, job_id: str) -> None:
        return None

    async def ended(self, job: Job, after: str | None) -> None:
        assert job.status.is_final


class Validator:
    """Pools that accept everything."""

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
def service(rig: Rig) -> Service:
    return Service(rig)


@pytest.fixture
def validator() -> Validator:
    return Validator()


class Guard(OpenGuard):
    async def pool_for(self, caller: Identity, graph: Mapping[str, Any]) -> str:
        return "big" if graph["1"]["class_type"] == "Big" else "default"


@pytest.fixture
def executed() -> set[str]:
    """Prompts that ComfyUI is through with."""
    return set()


@pytest.fixture
def prompts(rig: Rig, service: Service, validator: Validator, executed: set[str]) -> FarmPrompts:
    async def those_executed(ids: Sequence[str]) -> set[str]:
        return executed & set(ids)

    return FarmPrompts(
        service=cast(JobService, service),
        feed=cast(JobFeed, Feed()),
        validator=validator,
        guard=Guard("default", "big"),
        prompts=rig.prompts,
        files=rig.files,
        blobs=rig.blobs,
        executed=those_executed,
        heard=rig.events().heard,
    )


async def ended(rig: Rig, status: JobStatus = JobStatus.SUCCEEDED) -> Job:
    job = await rig.job(begun=True)
    results = [await rig.result(record())] if status is JobStatus.SUCCEEDED else []
    done = await rig.jobs.finish(job.id, 1, status, None, results=results)
    assert done is not None
    return done


async def test_a_prompt_goes_to_the_pool_that_has_what_it_needs(
    prompts: FarmPrompts, service: Service, validator: Validator
) -> None:
    await prompts.submit(ADA, PromptBody(prompt={"1": {"class_type": "Big", "inputs": {}}}))
    await prompts.submit(ADA, PromptBody(prompt=GRAPH))
    assert [spec.steps[0].pool for spec in service.specs] == ["big", "default"]
    assert validator.pools == ["big", "default"]


async def test_a_prompt_becomes_a_job_that_remembers_how_it_was_asked_for(
    prompts: FarmPrompts, service: Service
) -> None:
    extra = {"extra_pnginfo": {"workflow": {}}, "api_key_comfy_org": "secret"}
    body = PromptBody(prompt=GRAPH, client_id="c", extra_data=extra, partial_execution_targets=[])
    told = await prompts.submit(ADA, body)
    assert told.keys() == {"prompt_id", "number", "node_errors"}
    assert told["node_errors"] == {"9": {}}
    [spec] = service.specs
    assert (spec.kind, spec.priority, spec.steps[0].pool) == ("render", 3, "default")
    assert spec.comfyui == ComfyPrompt(
        client_id="c",
        extra_data={"extra_pnginfo": {"workflow": {}}},
        targets=(),
        outputs=("1",),
    )


@pytest.mark.parametrize(
    ("asked", "priority"),
    [({}, 3), ({"front": True}, 2), ({"number": -1}, 2), ({"number": 5}, 3)],
)
async def test_the_front_of_the_queue_is_a_class(
    prompts: FarmPrompts, service: Service, asked: dict[str, Any], priority: int
) -> None:
    told = await prompts.submit(ADA, PromptBody(prompt=GRAPH, **asked))
    assert service.specs[0].priority == priority
    named = "number" if "number" in asked else "front"
    assert service.priority_fields == [named if priority == 2 else None]
    assert told["number"] == asked.get("number", told["number"])
    assert (told["number"] < 0) == (priority == 2)


async def test_uploads_are_validated_under_the_renderers_names_and_kept_by_id(
    prompts: FarmPrompts, service: Service, validator: Validator, rig: Rig
) -> None:
    cat = Artifact(
        id=new_artifact_id(), name="cat.png", media_type="image/png", size=1, sha256="1" * 64
    )
    name = ComfyFileName(filename="cat.png", type="input")
    await rig.files.upload(OWNER, name, cat, overwrite=False)
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}}}
    await prompts.submit(ADA, PromptBody(prompt=graph))
    assert validator.graphs[0]["1"]["inputs"]["image"] == input_name(cat)
    assert service.specs[0].comfyui is not None
    assert service.specs[0].comfyui.files == {"cat.png": cat.id}
    await prompts.submit(replace(ADA, owner="bob"), PromptBody(prompt=graph))
    assert validator.graphs[1] == graph, "it names nothing of somebody else's"


async def test_a_queue_shows_what_runs_and_what_waits(
    prompts: FarmPrompts, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, running = await rig.job(), await rig.job(begun=True)
    await rig.job(owner="bob")
    queue = await prompts.queue(OWNER)
    assert [row[1:3] for row in queue["queue_running"]] == [[running.id, GRAPH]]
    assert [row[1:3] for row in queue["queue_pending"]] == [[waiting.id, GRAPH]]
    assert await prompts.remaining(OWNER) == 2
    # The graphs of a long queue would be megabytes.
    monkeypatch.setattr("moyin.comfy_api.prompts._WHOLE_ROWS", 1)
    queue = await prompts.queue(OWNER)
    assert [row[2] for rows in queue.values() for row in rows] == [GRAPH, {}]


async def test_a_history_is_oldest_first_and_can_be_paged(prompts: FarmPrompts, rig: Rig) -> None:
    done = [(await ended(rig)).id for _ in range(4)]
    await rig.job()
    assert list(await prompts.history(OWNER)) == done
    assert list(await prompts.history(OWNER, max_items=2)) == done[2:]
    assert list(await prompts.history(OWNER, max_items=2, offset=1)) == done[1:3]
    assert await prompts.history("bob") == {}
    entry = (await prompts.history_of(OWNER, done[0]))[done[0]]
    assert entry["status"]["completed"] is True
    assert await prompts.history_of("bob", done[0]) == {}


async def test_answers_about_large_graphs_are_bounded(
    prompts: FarmPrompts, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.comfy_api.prompts._MOST_BYTES", 1_000_000)
    monkeypatch.setattr("moyin.comfy_api.prompts._REMEMBERED_BYTES", 100_000)
    large = {"1": {"class_type": "SaveImage", "inputs": {"text": "x" * 400_000}}}
    done = []
    for _ in range(12):
        job = await rig.job(begun=True, graph=large)
        results = [await rig.result(record())]
        assert await rig.jobs.finish(job.id, 1, JobStatus.SUCCEEDED, None, results=results)
        done.append(job.id)
    assert list(await prompts.history(OWNER)) == done[-2:]
    assert list(await prompts.history(OWNER, offset=3)) == done[3:5]
    assert list(await prompts.history_of(OWNER, done[0])) == done[:1]
    listed = await prompts.jobs(
        OWNER,
        states=(),
        workflow_id=None,
        by_duration=False,
        ascending=True,
        limit=None,
        offset=0,
    )
    assert [job["id"] for job in listed["jobs"]] == done[:2]
    assert listed["pagination"]["has_more"]
    waiting = [(await rig.job(graph=large)).id for _ in range(4)]
    rows = (await prompts.queue(OWNER))["queue_pending"]
    assert sorted(row[1] for row in rows) == sorted(waiting)
    assert [row[2] for row in rows].count({}) == 2
    # None is kept in memory for good.
    assert not prompts._specs


async def test_an_answer_has_one_graph_however_large(
    prompts: FarmPrompts, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moyin.comfy_api.prompts._MOST_BYTES", 1)
    done = [(await ended(rig)).id for _ in range(3)]
    assert list(await prompts.history(OWNER)) == done[-1:]


async def test_deleting_history_hides_it_and_keeps_the_job(prompts: FarmPrompts, rig: Rig) -> None:
    first, second, third = [(await ended(rig)).id for _ in range(3)]
    running = await rig.job(begun=True)
    await prompts.forget(BOB, [first])
    await prompts.forget(ADA, [first, running.id, str(uuid.uuid4())])
    assert list(await prompts.history(OWNER)) == [second, third]
    await prompts.forget(ADA, None)
    assert await prompts.history(OWNER) == {}
    assert (await rig.jobs.get(OWNER, first)).status is JobStatus.SUCCEEDED
    assert await prompts.remaining(OWNER) == 1


async def test_what_waits_can_be_removed_and_what_runs_interrupted(
    prompts: FarmPrompts, rig: Rig
) -> None:
    waiting = [(await rig.job()).id for _ in range(3)]
    running = (await rig.job(begun=True)).id
    foreign = await rig.job(owner="bob", begun=True)

    async def open_ids() -> set[str]:
        return {job.id for job in await rig.prompts.open(OWNER)}

    await prompts.remove(ADA, [waiting[0], running, foreign.id])
    assert await open_ids() == {*waiting[1:], running}
    await prompts.interrupt(ADA, None)
    assert await open_ids() == set(waiting[1:])
    await prompts.interrupt(ADA, waiting[1])
    await prompts.interrupt(ADA, foreign.id)
    assert await open_ids() == {waiting[2]}
    await prompts.remove(ADA, None)
    assert await open_ids() == set()
    assert not await prompts.cancel(ADA, waiting), "they have ended"
    assert not (await rig.jobs.get("bob", foreign.id)).status.is_final


@pytest.fixture
async def mixed(rig: Rig) -> dict[str, str]:
    """Ids of jobs that wait, and of some that run, by who asked for them and how."""
    made = {}
    for begun, state in ((False, "waits"), (True, "runs")):
        for name, submitted in {
            "own": {},
            "own, another client": {"client": "editor"},
            "through /jobs": {"comfyui": False},
            "a colleague's": {"key_id": "k2"},
            "a colleague's, same client": {"key_id": "k2", "client": "editor"},
            "another tenant's": {"owner": "bob"},
        }.items():
            job = await rig.job(begun=begun, **submitted)
            made[f"{name} {state}"] = job.id
    return made


async def _left(rig: Rig, mixed: Mapping[str, str]) -> set[str]:
    found = [*await rig.prompts.open(OWNER), *await rig.prompts.open("bob")]
    ids = {job.id for job in found}
    return {name for name, job_id in mixed.items() if job_id in ids}


async def test_clearing_the_queue_reaches_the_callers_own_prompts_alone(
    prompts: FarmPrompts, rig: Rig, mixed: dict[str, str]
) -> None:
    await prompts.remove(ADA, None)
    gone = {"own waits", "own, another client waits"}
    assert await _left(rig, mixed) == mixed.keys() - gone


async def test_an_interrupt_without_an_id_reaches_the_callers_own_prompts_alone(
    prompts: FarmPrompts, rig: Rig, mixed: dict[str, str]
) -> None:
    await prompts.interrupt(ADA, None)
    gone = {"own runs", "own, another client runs"}
    assert await _left(rig, mixed) == mixed.keys() - gone


async def test_a_named_client_is_cleared_alone(
    prompts: FarmPrompts, rig: Rig, mixed: dict[str, str]
) -> None:
    await prompts.interrupt(ADA, None, client_id="editor")
    await prompts.remove(ADA, None, client_id="editor")
    gone = {name for name in mixed if "client" in name}
    assert await _left(rig, mixed) == mixed.keys() - gone


async def test_a_person_is_the_same_in_every_session(prompts: FarmPrompts, rig: Rig) -> None:
    ann = Identity(owner=OWNER, key_id="ses_2", user="usr_ann")
    mixed = {
        "mine": (await rig.job(key_id="ses_1", user="usr_ann")).id,
        "theirs": (await rig.job(key_id="ses_3", user="usr_eve")).id,
        "the tenant's key's": (await rig.job()).id,
    }
    await prompts.remove(ann, None)
    assert await _left(rig, mixed) == {"theirs", "the tenant's key's"}


async def test_clearing_the_history_hides_the_callers_own_prompts_alone(
    prompts: FarmPrompts, rig: Rig, mixed: dict[str, str]
) -> None:
    for job_id in mixed.values():
        await rig.jobs.finish(job_id, 1, JobStatus.SUCCEEDED, None)
    await prompts.forget(ADA, None)
    shown = {**await prompts.history(OWNER), **await prompts.history("bob")}
    hidden = {name for name, job_id in mixed.items() if job_id not in shown}
    assert hidden == {name for name in mixed if name.startswith("own")}


async def test_an_interrupt_hits_only_what_is_executed_at_the_moment(
    prompts: FarmPrompts, rig: Rig, executed: set[str]
) -> None:
    stored, running = await rig.job(begun=True), await rig.job(begun=True)
    executed.add(stored.id)
    await prompts.interrupt(ADA, None)
    await prompts.interrupt(ADA, stored.id)
    assert [job.id for job in await rig.prompts.open(OWNER)] == [stored.id]
    assert (await rig.jobs.get(OWNER, running.id)).status is JobStatus.CANCELLED
    assert await prompts.cancel(ADA, [stored.id]), "who wants it gone may say so"


async def test_jobs_are_listed_by_state_and_page(prompts: FarmPrompts, rig: Rig) -> None:
    done, failed = await ended(rig), await ended(rig, JobStatus.FAILED)
    waiting = await rig.job()

    async def listed(**asked: Any) -> tuple[list[str], dict[str, Any]]:
        plain = {
            "states": (), "workflow_id": None, "by_duration": False, "ascending": True,
            "limit": None, "offset": 0,
        }  # fmt: skip
        told = await prompts.jobs(OWNER, **{**plain, **asked})
        return [job["id"] for job in told["jobs"]], told["pagination"]

    assert (await listed())[0] == [done.id, failed.id, waiting.id]
    assert (await listed(ascending=False))[0] == [waiting.id, failed.id, done.id]
    assert (await listed(states=("failed", "pending")))[0] == [failed.id, waiting.id]
    assert (await listed(workflow_id="w"))[0] == []
    ids, pagination = await listed(limit=1, offset=1)
    assert ids == [failed.id]
    assert pagination == {"offset": 1, "limit": 1, "total": 3, "has_more": True}
    assert (await prompts.job(OWNER, done.id))["workflow"]["prompt"] == GRAPH
    with pytest.raises(JobNotFound):
        await prompts.job("bob", done.id)


async def test_the_workflows_of_many_jobs_are_read_side_by_side(
    prompts: FarmPrompts, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in ("1", "2"):
        await rig.job(graph={node: GRAPH["1"]})
    both = asyncio.Barrier(2)
    read = rig.blobs.get

    async def get(sha256: str) -> bytes:
        async with asyncio.timeout(10):
            await both.wait()
        return await read(sha256)

    monkeypatch.setattr(rig.blobs, "get", get)
    asked: Any = {
        "states": (), "workflow_id": "w", "by_duration": False, "ascending": True,
        "limit": None, "offset": 0,
    }  # fmt: skip
    told = await prompts.jobs(OWNER, **asked)
    assert told["jobs"] == []
    # The newest thousand are more than the specs that are remembered.
    monkeypatch.setattr(prompts, "_specs", {})
    monkeypatch.setattr(rig.blobs, "get", None)
    assert (await prompts.jobs(OWNER, **asked))["jobs"] == []
