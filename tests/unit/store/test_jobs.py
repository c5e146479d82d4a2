from __future__ import annotations

import asyncio
import base64
import uuid
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.job import (
    Canceller,
    CancellerKind,
    JobError,
    JobStatus,
    Progress,
    StepKind,
    StepResult,
)
from moyin.domain.limits import Limit
from moyin.domain.prompt import derive_job_id
from moyin.errors import (
    ArtifactNotFound,
    IdempotencyMismatch,
    InvalidRequest,
    JobFinished,
    JobNotFinished,
    JobNotFound,
    PromptIdTaken,
    TooManyJobs,
)
from moyin.store.artifacts import ArtifactStore, derive_step_artifact_id
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore, NewJob
from moyin.store.keys import KeyStore
from moyin.store.prompts import PromptStore
from moyin.store.schema import jobs as rows
from moyin.store.sql import Database


def make_job(**changes: object) -> NewJob:
    job = NewJob(
        id=str(uuid.uuid4()),
        owner="ada",
        kind="render",
        spec="0" * 64,
        heads=((StepKind.RENDER, "default"), (StepKind.CHAT, "default")),
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def make_step_result(job_id: str, index: int) -> StepResult:
    artifact = Artifact(
        id=derive_step_artifact_id(job_id, index, 0),
        name="a.png",
        media_type="image/png",
        size=3,
        sha256="1" * 64,
    )
    return StepResult(
        index=index, output="2" * 64, artifacts=(artifact,), cost_usd=Decimal("0.125")
    )


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


ADA = Canceller(kind=CancellerKind.USER, id="usr_ada")
BOB = Canceller(kind=CancellerKind.KEY, id="key_bob")


async def test_a_cancelled_job_names_its_first_canceller(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    for canceller in (ADA, BOB):
        await store.record_canceller(job.id, 1, canceller)
    running_job = await store.find(job.id)
    assert running_job.cancelled_by is None, "it goes on as yet"
    assert running_job.cancel_requested_by == ADA
    ended_job = await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    assert ended_job is not None and ended_job.cancelled_by == ADA
    await store.record_canceller(job.id, 1, BOB)
    assert (await store.find(job.id)).cancelled_by == ADA
    reopened_job = await store.reopen("ada", job.id)
    assert (reopened_job.cancelled_by, reopened_job.cancel_requested_by) == (None, None)
    await store.record_canceller(job.id, 1, ADA)  # an earlier attempt
    await store.record_canceller(job.id, 2, BOB)
    cancelled_retry = await store.finish(job.id, 2, JobStatus.CANCELLED, None)
    assert cancelled_retry is not None and cancelled_retry.cancelled_by == BOB


async def test_cancellers_are_bounded_and_end_with_their_attempt(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    record_ids = [await store.record_canceller(job.id, 1, ADA) for _ in range(9)]
    assert record_ids.pop() is None and None not in record_ids
    assert len(set(record_ids)) == 8
    for record_id in record_ids:
        await store.clear_canceller(job.id, 1, str(record_id))
    assert (await store.find(job.id)).cancel_requested_by is None
    record_id = await store.record_canceller(job.id, 1, BOB)
    await store.clear_canceller(job.id, 2, str(record_id))
    await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    await store.clear_canceller(job.id, 1, str(record_id))
    assert (await store.find(job.id)).cancelled_by == BOB


async def test_cancellers_that_earlier_versions_wrote_are_read(
    store: JobStore, database: Database
) -> None:
    job, _ = await store.create(make_job())
    await database.execute(rows.update().values(cancelled_by={"kind": "user", "id": "usr_ada"}))
    assert await store.record_canceller(job.id, 1, BOB) is not None
    assert (await store.find(job.id)).cancel_requested_by == ADA


async def test_a_job_without_canceller_was_cancelled_by_the_operator(
    store: JobStore,
) -> None:
    job, _ = await store.create(make_job())
    ended_job = await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    assert ended_job is not None
    assert ended_job.cancelled_by == Canceller(kind=CancellerKind.OPERATOR)
    assert ended_job.cancel_requested_by is None, "not through the gateway"


async def test_job_that_ended_before_its_cancellation_shows_the_request(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    await store.record_canceller(job.id, 1, ADA)
    ended_job = await store.finish(job.id, 1, JobStatus.FAILED, JobError(code="x", message="y"))
    assert ended_job is not None and ended_job.cancelled_by is None
    assert ended_job.cancel_requested_by == ADA


async def test_a_new_job_is_queued_and_belongs_to_its_owner(store: JobStore) -> None:
    job, was_created = await store.create(make_job(metadata={"shot": "12"}))
    assert was_created
    assert (job.status, job.attempts, job.steps) == (JobStatus.QUEUED, 1, 2)
    assert job.metadata == {"shot": "12"}
    assert await store.get("ada", job.id) == job
    with pytest.raises(JobNotFound):
        await store.get("bob", job.id)


async def test_an_idempotency_key_returns_the_same_job_or_is_refused(store: JobStore) -> None:
    first_job, _ = await store.create(make_job(idempotency_key="k", fingerprint="f"))
    repeated_job, was_created = await store.create(make_job(idempotency_key="k", fingerprint="f"))
    assert not was_created
    assert repeated_job == first_job
    with pytest.raises(IdempotencyMismatch):
        await store.create(make_job(idempotency_key="k", fingerprint="other"))
    _, was_created = await store.create(make_job(owner="bob", idempotency_key="k", fingerprint="x"))
    assert was_created


async def test_a_chosen_id_returns_the_same_job_or_is_refused(store: JobStore) -> None:
    await store.create(make_job())
    job_with_chosen_id = make_job()
    first_job, _ = await store.create(job_with_chosen_id)
    assert await store.create(job_with_chosen_id) == (first_job, False)
    for conflicting_job in (
        replace(job_with_chosen_id, spec="9" * 64),
        replace(job_with_chosen_id, owner="bob"),
    ):
        with pytest.raises(PromptIdTaken):
            await store.create(conflicting_job)


async def test_a_prompt_is_found_by_its_chosen_id_only_by_its_tenant(store: JobStore) -> None:
    chosen_id = str(uuid.uuid4())
    jobs = {}
    for owner in ("ada", "bob"):
        new_job = make_job(
            owner=owner, id=derive_job_id(owner, chosen_id), chosen_id=chosen_id, has_chosen_id=True
        )
        jobs[owner], is_new = await store.create(new_job)
        assert is_new, "the same id of another tenant must not be taken"
    for owner, job in jobs.items():
        assert await store.get(owner, chosen_id) == await store.get(owner, job.id) == job
        assert job.prompt_id == chosen_id
    with pytest.raises(JobNotFound):
        await store.get("eve", chosen_id)
    with pytest.raises(JobNotFound):
        await store.get("ada", jobs["bob"].id)


async def test_concurrent_uses_of_an_idempotency_key_create_one_job(store: JobStore) -> None:
    creations = await asyncio.gather(
        *(store.create(make_job(idempotency_key="k", fingerprint="f")) for _ in range(8))
    )
    assert len({job.id for job, _ in creations}) == 1
    assert sum(was_created for _, was_created in creations) == 1


async def test_a_step_is_recorded_once_with_its_artifacts(
    store: JobStore, database: Database
) -> None:
    job, _ = await store.create(make_job())
    assert await store.start(job.id, 1)
    for _ in range(2):
        assert await store.record_step(job.id, 1, make_step_result(job.id, 1))
    stored_job = await store.get("ada", job.id)
    assert stored_job.results == (make_step_result(job.id, 1),)
    assert stored_job.cost_usd == Decimal("0.125")
    artifacts = ArtifactStore(database)
    assert (await artifacts.get("ada", stored_job.artifacts[0].id)).name == "a.png"
    with pytest.raises(ArtifactNotFound):
        await artifacts.get("bob", stored_job.artifacts[0].id)


async def test_only_the_first_final_status_counts(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    assert await store.finish(job.id, 1, JobStatus.SUCCEEDED, None)
    assert not await store.finish(job.id, 1, JobStatus.FAILED, JobError(code="x", message="y"))
    assert not await store.start(job.id, 1)
    assert not await store.record_step(job.id, 1, make_step_result(job.id, 0))
    stored_job = await store.get("ada", job.id)
    assert (stored_job.status, stored_job.error) == (JobStatus.SUCCEEDED, None)
    assert stored_job.finished_at is not None


async def test_a_retry_keeps_finished_steps_and_ignores_the_old_attempt(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    with pytest.raises(JobNotFinished):
        await store.reopen("ada", job.id)
    await store.record_step(job.id, 1, make_step_result(job.id, 0))
    await store.finish(job.id, 1, JobStatus.FAILED, JobError(code="x", message="y"))
    with pytest.raises(JobNotFound):
        await store.reopen("bob", job.id)

    reopened_job = await store.reopen("ada", job.id)
    assert (reopened_job.status, reopened_job.attempts, reopened_job.error) == (
        JobStatus.QUEUED,
        2,
        None,
    )
    launch = await store.get_launch(job.id)
    assert (launch.attempt, launch.done) == (2, (make_step_result(job.id, 0),))
    assert not await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    assert await store.finish(job.id, 2, JobStatus.SUCCEEDED, None)
    with pytest.raises(JobFinished):
        await store.reopen("ada", job.id)


async def test_the_sweeper_finds_jobs_that_were_not_started(store: JobStore) -> None:
    forgotten_job, _ = await store.create(make_job())
    started_job, _ = await store.create(make_job())
    await store.mark_dispatched(started_job.id)
    ended_job, _ = await store.create(make_job())
    await store.finish(ended_job.id, 1, JobStatus.CANCELLED, None)
    assert await store.list_undispatched(timedelta(0)) == [(forgotten_job.id, 1, False)]
    assert await store.list_undispatched(timedelta(minutes=1)) == []


async def test_the_sweeper_finds_ended_jobs_without_webhook(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    assert await store.finish(job.id, 1, JobStatus.CANCELLED, None, webhook_sent=False)
    assert await store.list_undispatched(timedelta(0)) == [(job.id, 1, True)]
    await store.mark_dispatched(job.id, attempt=1)
    assert await store.list_undispatched(timedelta(0)) == []


async def test_pages_contain_all_jobs_newest_first(store: JobStore) -> None:
    job_ids = [(await store.create(make_job()))[0].id for _ in range(5)]
    await store.create(make_job(owner="bob"))
    seen_ids: list[str] = []
    cursor = None
    while True:
        page, cursor = await store.list_page("ada", limit=2, cursor=cursor)
        seen_ids += [job.id for job in page]
        if cursor is None:
            break
    assert seen_ids == job_ids[::-1]


@pytest.mark.parametrize(
    "raw_cursor",
    [b"nonsense", b"2026-01-01T00:00:00+00:00_\0", b"0001-01-01T00:00:00+23:59_x", b"\xff_x"],
)
async def test_an_invalid_cursor_is_refused(store: JobStore, raw_cursor: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await store.list_page("ada", cursor=base64.urlsafe_b64encode(raw_cursor).decode())
    with pytest.raises(InvalidRequest):
        await store.list_page("ada", cursor=raw_cursor.decode("latin-1"))


async def test_pages_can_be_filtered(store: JobStore) -> None:
    job, _ = await store.create(make_job(kind="chat"))
    await store.create(make_job())
    await store.start(job.id, 1)
    page, _ = await store.list_page("ada", JobFilter(statuses=(JobStatus.RUNNING,)))
    assert [j.id for j in page] == [job.id]
    page, _ = await store.list_page("ada", JobFilter(kind="chat"))
    assert [j.id for j in page] == [job.id]


async def test_progress_is_recorded_while_the_job_is_open(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    progress = Progress(value=3, max=20, step=1)
    assert await store.record_progress(job.id, 1, progress)
    assert (await store.find(job.id)).progress == progress
    assert not await store.record_progress(job.id, 7, progress)


async def test_a_batch_has_the_progress_of_all_children(store: JobStore) -> None:
    heads = ((StepKind.RENDER, "default"),) * 4
    job, _ = await store.create(make_job(heads=heads, children=4))
    assert (job.children, job.progress) == (4, Progress(max=4))
    await store.record_progress(job.id, 1, Progress(value=5, max=10, step=1))
    await store.record_progress(job.id, 1, Progress(value=1, max=4, step=2))
    overall_progress = await store.record_step(job.id, 1, make_step_result(job.id, 1))
    assert overall_progress == Progress(value=1.25, max=4, step=1, parts={"2": 0.25})
    # Late progress changes nothing.
    await store.record_progress(job.id, 1, Progress(value=9, max=10, step=1))
    assert (await store.find(job.id)).progress == overall_progress
    assert await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    assert await store.record_progress(job.id, 1, Progress(value=1, max=4, step=3)) is None
    assert await store.record_step(job.id, 1, make_step_result(job.id, 3)) is None
    reopened_job = await store.reopen("ada", job.id)
    assert reopened_job.progress == Progress(value=1, max=4)
    launch = await store.get_launch(job.id)
    assert (launch.children, [result.index for result in launch.done]) == (4, [1])


async def test_children_count_as_open_jobs(store: JobStore) -> None:
    limits = (Limit(subject="owner:ada", open_jobs=5),)
    batch = make_job(heads=((StepKind.RENDER, "default"),) * 4, children=4, limits=limits)
    job, _ = await store.create(batch)
    await store.create(make_job(limits=limits))
    with pytest.raises(TooManyJobs, match="each render of a batch"):
        await store.create(make_job(limits=limits))
    await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    with pytest.raises(TooManyJobs):
        await store.create(replace(batch, id=str(uuid.uuid4()), children=5))
    await store.create(replace(batch, id=str(uuid.uuid4())))


async def test_jobs_of_keys_that_inherit_a_limit_count_as_open(
    store: JobStore, database: Database
) -> None:
    keys = KeyStore(database)
    parent, _ = await keys.create("ada", "parent")
    child, _ = await keys.create("ada", "child", inherited_subjects=[f"key:{parent}"])
    other, _ = await keys.create("ada", "other")
    limits = (Limit(subject=f"key:{parent}", open_jobs=2),)
    await store.create(make_job(key_id=other))
    await store.create(make_job(key_id=child, limits=limits))
    await store.create(make_job(key_id=parent, limits=limits))
    for key_id in (child, parent):
        with pytest.raises(TooManyJobs):
            await store.create(make_job(key_id=key_id, limits=limits))


async def test_a_retried_render_waits_again(store: JobStore, database: Database) -> None:
    job, _ = await store.create(make_job())
    await store.start(job.id, 1)
    await store.record_progress(job.id, 1, Progress(value=1, max=2))
    await PromptStore(database).set_record(job.id, "3" * 64, 1)
    await store.finish(job.id, 1, JobStatus.FAILED, JobError(code="x", message="y"))
    failed_job = await store.find(job.id)
    assert (failed_job.started_at is None, failed_job.record) == (False, "3" * 64)
    reopened_job = await store.reopen("ada", job.id)
    assert (
        reopened_job.started_at,
        reopened_job.finished_at,
        reopened_job.error,
        reopened_job.record,
    ) == (None,) * 4
    assert reopened_job.progress == Progress()
    assert reopened_job.queued_at is not None and failed_job.queued_at is not None
    assert reopened_job.queued_at > failed_job.queued_at == failed_job.created_at
    # The first attempt may still run for a moment.
    assert await store.start(job.id, 1) is None
    assert await store.record_progress(job.id, 1, Progress(value=2, max=2)) is None
    assert (await store.find(job.id)).status is JobStatus.QUEUED
    # A cancelled prompt takes a moment to stop.
    await PromptStore(database).set_record(job.id, "3" * 64, 1)
    assert (await store.find(job.id)).record is None


async def test_a_job_without_a_recorded_start_runs_after_its_first_step(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    await store.record_step(job.id, 1, make_step_result(job.id, 0))
    stored_job = await store.find(job.id)
    assert (stored_job.status, stored_job.started_at is None) == (JobStatus.RUNNING, False)


@pytest.mark.parametrize(
    ("status", "has_started"), [(JobStatus.SUCCEEDED, True), (JobStatus.CANCELLED, False)]
)
async def test_only_a_success_implies_a_start(
    store: JobStore, status: JobStatus, has_started: bool
) -> None:
    job, _ = await store.create(make_job())
    ended_job = await store.finish(job.id, 1, status, None)
    assert ended_job is not None
    assert ended_job.started_at == (ended_job.finished_at if has_started else None)


async def test_a_job_keeps_its_first_start(store: JobStore) -> None:
    job, _ = await store.create(make_job())
    started_job = await store.start(job.id, 1)
    assert started_job is not None and started_job.started_at is not None
    assert await store.start(job.id, 1) is None
    await store.record_step(job.id, 1, make_step_result(job.id, 0))
    ended_job = await store.finish(job.id, 1, JobStatus.SUCCEEDED, None)
    assert ended_job is not None and ended_job.started_at == started_job.started_at


async def test_a_retried_job_counts_as_open(store: JobStore) -> None:
    limits = (Limit(subject="owner:ada", open_jobs=1),)
    job, _ = await store.create(make_job(limits=limits))
    await store.finish(job.id, 1, JobStatus.CANCELLED, None)
    other_job, _ = await store.create(make_job(limits=limits))
    with pytest.raises(TooManyJobs):
        await store.reopen("ada", job.id, limits)
    assert (await store.find(job.id)).status is JobStatus.CANCELLED
    await store.finish(other_job.id, 1, JobStatus.SUCCEEDED, None)
    assert (await store.reopen("ada", job.id, limits)).attempts == 2


async def test_many_writers_wait_for_each_other(store: JobStore) -> None:
    job, _ = await store.create(make_job(heads=((StepKind.CHAT, "default"),) * 20))
    await asyncio.gather(
        *(store.record_step(job.id, 1, make_step_result(job.id, i)) for i in range(20))
    )
    assert [r.index for r in (await store.find(job.id)).results] == list(range(20))
