from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
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
from moyin.jobs.protocol.request_to_domain import parse_job
from moyin.jobs.protocol.response import build_status_event, render_job_detail
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(**changes: Any) -> Job:
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
    shown = render_job_detail(job(), [{"text": "hi", "body": {"a": 1}}]).model_dump(mode="json")
    artifact = {"id": "art_1", "url": "/artifacts/art_1", "name": "a", "media_type": "image/png",
                "size": 1}  # fmt: skip
    assert shown["outputs"] == [
        {"step": 0, "text": "hi", "body": {"a": 1}, "artifacts": [artifact], "backend": "b",
         "cost_usd": 0.25, "cached": False},
    ]  # fmt: skip
    assert shown["artifacts"] == [artifact]
    assert shown["cost_usd"] == 0.25
    assert not {"owner", "spec", "sha256"} & {*shown, *shown["artifacts"][0]}


def test_the_last_event_has_the_job_and_its_attempt() -> None:
    error = JobError(code="step_failed", message="no", details={"step": 0})
    kind, data = build_status_event(job(status=JobStatus.FAILED, error=error))
    assert kind is EventType.FAILED
    assert data["attempt"] == 2
    assert data["error"] == {"code": "step_failed", "message": "no", "details": {"step": 0}}
    json.dumps(data)


def test_a_cancelled_job_names_its_canceller() -> None:
    by = Canceller(kind=CancellerKind.KEY, id="key_1")
    kind, data = build_status_event(job(status=JobStatus.CANCELLED, cancelled_by=by))
    assert kind is EventType.CANCELLED
    assert data["cancelled_by"] == {"kind": "key", "id": "key_1"}
    shown = render_job_detail(job(status=JobStatus.CANCELLED, cancelled_by=by), [{}])
    assert shown.model_dump(mode="json")["cancelled_by"] == data["cancelled_by"]


@pytest.mark.parametrize(
    ("caller", "kind", "shown"),
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
def test_a_canceller_has_a_public_id(caller: Identity, kind: CancellerKind, shown: str) -> None:
    assert Canceller.from_identity(caller) == Canceller(kind=kind, id=shown)


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
        job(), kind="render", results=results, steps=5, children=5, status=JobStatus.RUNNING,
        error=None, progress=Progress(value=2.25, max=5, step=1, parts={"1": 0.25}),
    )  # fmt: skip
    shelf = read_templates([SHIPPED_FOLDER])
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x", "seed": 0},
            "batch": {"seeds": 5}}  # fmt: skip
    spec = parse_job(json.dumps(body).encode(), NOW, shelf.find)
    shown = render_job_detail(batch, [{}, {}], spec).model_dump(mode="json")
    children = [(c["status"], c["progress"], c["inputs"], c["cached"]) for c in shown["children"]]
    assert children == [
        ("succeeded", 1.0, {"seed": 0}, True),
        ("running", 0.25, {"seed": 1}, False),
        ("succeeded", 1.0, {"seed": 2}, False),
        ("queued", 0.0, {"seed": 3}, False),
        ("queued", 0.0, {"seed": 4}, False),
    ]
    assert [a["id"] for a in shown["artifacts"]] == ["art_0", "art_2"]
    assert shown["cached"] is False
    error = JobError(
        code="render_failed",
        message="m",
        details={"children": {"3": {"code": "c", "message": "m"}}},
    )
    ended = replace(batch, status=JobStatus.FAILED, error=error)
    shown = render_job_detail(ended, [{}, {}]).model_dump(mode="json")
    assert [c["status"] for c in shown["children"]] == [
        "succeeded", "cancelled", "succeeded", "failed", "cancelled",
    ]  # fmt: skip
    assert shown["children"][3]["error"] == {"code": "c", "message": "m", "details": {}}
    assert render_job_detail(job(), [{}]).children is None
