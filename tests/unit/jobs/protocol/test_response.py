from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from moyin.domain.artifact import Artifact
from moyin.domain.identity import Identity
from moyin.domain.job import (
    Canceller,
    CancellerKind,
    EventType,
    Job,
    JobError,
    JobStatus,
    Progress,
    StepResult,
)
from moyin.domain.queue_place import Duration, QueuePlace
from moyin.jobs.protocol.request_to_domain import parse_job
from moyin.jobs.protocol.response import (
    QueueView,
    build_status_event,
    render_job,
    render_job_detail,
)
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": "j", "owner": "ann", "kind": "chat", "status": JobStatus.SUCCEEDED, "spec": "s",
        "steps": 1, "progress": Progress(value=1), "error": None, "attempts": 2, "priority": 3,
        "metadata": {}, "created_at": NOW, "started_at": NOW, "finished_at": NOW,
        "results": (
            StepResult(
                index=0, output="o", cost_usd=Decimal("0.25"), backend="b",
                artifacts=(Artifact(id="art_1", name="a", media_type="image/png", size=1,
                                    sha256="0"),),
            ),
        ),
    }  # fmt: skip
    return Job(**(values | changes))


def test_a_job_shows_its_outputs_but_not_its_owner_or_blobs() -> None:
    shown_job = render_job_detail(make_job(), [{"text": "hi", "body": {"a": 1}}]).model_dump(
        mode="json"
    )
    artifact = {"id": "art_1", "url": "/artifacts/art_1", "name": "a", "media_type": "image/png",
                "size": 1}  # fmt: skip
    assert shown_job["outputs"] == [
        {"step": 0, "text": "hi", "body": {"a": 1}, "artifacts": [artifact], "backend": "b",
         "cost_usd": 0.25, "cached": False, "gpu_seconds": None, "load_seconds": None},
    ]  # fmt: skip
    assert shown_job["artifacts"] == [artifact]
    assert shown_job["cost_usd"] == 0.25
    assert not {"owner", "spec", "sha256"} & {*shown_job, *shown_job["artifacts"][0]}


def test_only_a_queued_job_has_a_place_in_the_queue() -> None:
    starts_in, duration = Duration(mean=7.04, variance=4.0), Duration(mean=3.0)
    place = QueuePlace(position=4, starts_in=starts_in, ends_in=starts_in + duration)
    queue = QueueView(now=NOW + timedelta(seconds=90), places={"j": place})
    waiting_job = make_job(
        status=JobStatus.QUEUED, queued_at=NOW + timedelta(seconds=30), results=()
    )
    shown_job = render_job(waiting_job, queue)
    assert (shown_job.queued_for, shown_job.position) == (60.0, 4)
    expected_eta = {"starts_in": {"p50": 7.0, "p90": 9.6}, "ends_in": {"p50": 10.0, "p90": 12.6}}
    assert shown_job.eta is not None and shown_job.eta.model_dump() == expected_eta
    batch_eta = render_job(replace(waiting_job, steps=2), queue).eta
    assert batch_eta is not None and batch_eta.model_dump() == {**expected_eta, "ends_in": None}
    shown_unqueued_job = render_job(replace(waiting_job, queued_at=None), replace(queue, places={}))
    assert (shown_unqueued_job.queued_for, shown_unqueued_job.position) == (None, None)
    shown_early_job = render_job(waiting_job, replace(queue, now=NOW))
    assert shown_early_job.queued_for == 0.0, "the clocks of two machines differ"
    for status in (JobStatus.RUNNING, JobStatus.SUCCEEDED):
        shown_job = render_job(replace(waiting_job, status=status), queue)
        assert (shown_job.queued_for, shown_job.position) == (None, None)
        has_eta = status is JobStatus.RUNNING
        assert (shown_job.eta and shown_job.eta.model_dump()) == (
            {**expected_eta, "starts_in": None} if has_eta else None
        )
    _, event = build_status_event(waiting_job)
    assert (event["queued_for"], event["position"], event["eta"]) == (None, None, None)


def test_the_last_event_has_the_job_and_its_attempt() -> None:
    error = JobError(code="step_failed", message="no", details={"step": 0})
    kind, data = build_status_event(make_job(status=JobStatus.FAILED, error=error))
    assert kind is EventType.FAILED
    assert data["attempt"] == 2
    assert data["error"] == {"code": "step_failed", "message": "no", "details": {"step": 0}}
    json.dumps(data)


def test_job_that_ended_before_its_cancellation_shows_the_request() -> None:
    canceller = Canceller(kind=CancellerKind.KEY, id="key_1")
    kind, data = build_status_event(
        make_job(status=JobStatus.SUCCEEDED, cancel_requested_by=canceller)
    )
    assert kind is EventType.SUCCEEDED
    assert data["cancelled_by"] is None
    assert data["cancel_requested_by"] == {"kind": "key", "id": "key_1"}


def test_a_cancelled_job_names_its_canceller() -> None:
    canceller = Canceller(kind=CancellerKind.KEY, id="key_1")
    kind, data = build_status_event(make_job(status=JobStatus.CANCELLED, cancelled_by=canceller))
    assert kind is EventType.CANCELLED
    assert data["cancelled_by"] == {"kind": "key", "id": "key_1"}
    shown_job = render_job_detail(
        make_job(status=JobStatus.CANCELLED, cancelled_by=canceller), [{}]
    )
    assert shown_job.model_dump(mode="json")["cancelled_by"] == data["cancelled_by"]


@pytest.mark.parametrize(
    ("caller", "canceller_kind", "public_id"),
    [
        (Identity(owner="ann", key_id="key_1"), CancellerKind.KEY, "key_1"),
        (Identity(owner="ann", key_id="ses_1", user="usr_1"), CancellerKind.USER, "usr_1"),
        (
            Identity(owner="ann", key_id="models", user="usr_1", service="models"),
            CancellerKind.SERVICE,
            "models",
        ),
    ],
)
def test_a_canceller_has_a_public_id(
    caller: Identity, canceller_kind: CancellerKind, public_id: str
) -> None:
    assert Canceller.from_identity(caller) == Canceller(kind=canceller_kind, id=public_id)


def test_a_batch_has_the_state_of_its_children() -> None:
    results = tuple(
        StepResult(
            index=index,
            output="0" * 64,
            artifacts=(Artifact(id=f"art_{index}", name="a", media_type="image/png", size=1,
                                sha256="0" * 64),),
            cached=index == 0,
        )
        for index in (0, 2)
    )  # fmt: skip
    batch = replace(
        make_job(), kind="render", results=results, steps=5, children=5, status=JobStatus.RUNNING,
        error=None, progress=Progress(value=2.25, max=5, step=1, parts={"1": 0.25}),
    )  # fmt: skip
    catalog = read_templates([SHIPPED_FOLDER])
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x", "seed": 0},
            "batch": {"seeds": 5}}  # fmt: skip
    spec = parse_job(json.dumps(body).encode(), NOW, catalog.find)
    shown_job = render_job_detail(batch, [{}, {}], spec).model_dump(mode="json")
    children = [
        (c["status"], c["progress"], c["inputs"], c["cached"]) for c in shown_job["children"]
    ]
    assert children == [
        ("succeeded", 1.0, {"seed": 0}, True),
        ("running", 0.25, {"seed": 1}, False),
        ("succeeded", 1.0, {"seed": 2}, False),
        ("queued", 0.0, {"seed": 3}, False),
        ("queued", 0.0, {"seed": 4}, False),
    ]
    assert [a["id"] for a in shown_job["artifacts"]] == ["art_0", "art_2"]
    assert shown_job["cached"] is False
    error = JobError(
        code="render_failed",
        message="m",
        details={"children": {"3": {"code": "c", "message": "m"}}},
    )
    ended_batch = replace(batch, status=JobStatus.FAILED, error=error)
    shown_job = render_job_detail(ended_batch, [{}, {}]).model_dump(mode="json")
    assert [c["status"] for c in shown_job["children"]] == [
        "succeeded", "cancelled", "succeeded", "failed", "cancelled",
    ]  # fmt: skip
    assert shown_job["children"][3]["error"] == {"code": "c", "message": "m", "details": {}}
    assert render_job_detail(make_job(), [{}]).children is None


def test_job_costs_all_its_renders_and_the_results_of_other_steps() -> None:
    results = (
        StepResult(index=0, output="o", cost_usd=Decimal("0.25")),
        StepResult(index=1, output="o", cost_usd=Decimal("0.5"), gpu_seconds=2.0),
    )
    # An attempt of the render that failed had cost a quarter of a dollar.
    shown_job = render_job_detail(
        make_job(results=results, render_cost_usd=Decimal("0.75"), render_steps=(1,)),
        [{"text": "hi"}, {"body": {}}],
    )
    assert shown_job.cost_usd == 1.0
    assert [(o.cost_usd, o.gpu_seconds) for o in shown_job.outputs] == [(0.25, None), (0.5, 2.0)]
