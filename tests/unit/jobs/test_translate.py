from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    StepKind,
    StepResult,
)
from moyin.errors import InvalidRequest, MoyinError, RequestError
from moyin.jobs.protocol.translate import event_of, fingerprint, job_detail, parse_job
from moyin.render.templates.catalog import SHIPPED, read_folders

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


def parse(body: Any) -> Any:
    return parse_job(json.dumps(body).encode(), NOW)


def test_a_chat_job() -> None:
    spec = parse(CHAT)
    assert (spec.kind, spec.priority, spec.webhook) == ("chat", 3, None)
    assert [(s.kind, s.payload) for s in spec.steps] == [(StepKind.CHAT, CHAT["request"])]


def test_a_deadline_is_the_same_moment_wherever_its_clock_hangs() -> None:
    deadline = parse({**CHAT, "deadline": "2099-01-01T18:00:00+09:00"}).deadline
    # SQLite would give the eighteen back as that of UTC.
    assert deadline.isoformat() == "2099-01-01T09:00:00+00:00"


def test_pools_come_from_the_step_then_the_job_then_the_default() -> None:
    render = {"kind": "render", "workflow": GRAPH}
    job = {"kind": "pipeline", "pool": "slow", "steps": [render, {**render, "pool": "fast"}]}
    assert [step.pool for step in parse(job).steps] == ["slow", "fast"]
    assert parse(render).steps[0].pool == "default"
    assert parse({**render, "pool": "fast"}).steps[0].pool == "fast"


def test_an_http_step_keeps_its_call() -> None:
    call = {"method": "PUT", "path": "/a?b=c", "headers": {"x-a": "b"}, "body": {"c": [1, None]}}
    assert parse({"kind": "http", "request": call}).steps[0].payload == call


def test_options() -> None:
    deadline = NOW + timedelta(hours=1)
    spec = parse({**CHAT, "priority": 1, "deadline": deadline.isoformat(),
                  "metadata": {"a": "b"}, "webhook": "https://x.example/h"})  # fmt: skip
    assert (spec.priority, spec.deadline, spec.metadata) == (1, deadline, {"a": "b"})
    assert spec.webhook == "https://x.example/h"


def test_a_path_with_a_reference_waits_for_its_value() -> None:
    http = {"kind": "http", "request": {"path": "${steps.0.text}"}}
    assert len(parse({"kind": "pipeline", "steps": [CHAT, http]}).steps) == 2


def test_the_fingerprint_sees_the_meaning_only() -> None:
    same = fingerprint(parse(dict(reversed(CHAT.items()))))
    assert fingerprint(parse(CHAT)) == same == fingerprint(parse({**CHAT, "priority": 3}))
    assert fingerprint(parse({**CHAT, "priority": 2})) != same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "request", "workflow", "steps", "pool", "path", "1"])
            | st.text(),
            inner | st.sampled_from(["chat", "render", "http", "pipeline", "${steps.0.text}"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON | st.binary())
def test_whatever_comes_is_parsed_or_refused_by_name(body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        parse_job(data, NOW)
    except MoyinError as error:
        assert isinstance(error, RequestError)


@pytest.mark.parametrize("labels", [{"a\0": "b"}, {"a": "b\0"}])
def test_labels_hold_what_every_database_can_look_for(labels: dict[str, str]) -> None:
    asked = {"kind": "http", "request": {"path": "/x"}, "metadata": labels}
    with pytest.raises(InvalidRequest) as caught:
        parse_job(json.dumps(asked).encode(), NOW)
    assert (caught.value.field or "").startswith("metadata")


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


def test_a_job_shows_its_outputs_and_never_its_owner_or_blobs() -> None:
    shown = job_detail(job(), [{"text": "hi", "body": {"a": 1}}]).model_dump(mode="json")
    artifact = {"id": "art_1", "url": "/artifacts/art_1", "name": "a", "media_type": "image/png",
                "size": 1}  # fmt: skip
    assert shown["outputs"] == [
        {"step": 0, "text": "hi", "body": {"a": 1}, "artifacts": [artifact], "backend": "b",
         "cost_usd": 0.25, "cached": False},
    ]  # fmt: skip
    assert shown["artifacts"] == [artifact]
    assert shown["cost_usd"] == 0.25
    assert not {"owner", "spec", "sha256"} & {*shown, *shown["artifacts"][0]}


def test_the_last_event_is_the_job_with_its_attempt() -> None:
    error = JobError(code="step_failed", message="no", details={"step": 0})
    kind, data = event_of(job(status=JobStatus.FAILED, error=error))
    assert kind is EventType.FAILED
    assert data["attempt"] == 2
    assert data["error"] == {"code": "step_failed", "message": "no", "details": {"step": 0}}
    json.dumps(data)


def test_a_cancelled_job_says_by_whom() -> None:
    by = Canceller(kind=CancellerKind.KEY, id="key_1")
    kind, data = event_of(job(status=JobStatus.CANCELLED, cancelled_by=by))
    assert kind is EventType.CANCELLED
    assert data["cancelled_by"] == {"kind": "key", "id": "key_1"}
    shown = job_detail(job(status=JobStatus.CANCELLED, cancelled_by=by), [{}])
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
def test_a_canceller_is_named_by_a_public_id(
    caller: Identity, kind: CancellerKind, shown: str
) -> None:
    assert Canceller.of(caller) == Canceller(kind=kind, id=shown)


def test_a_template_is_filled_and_brings_its_pool_and_outputs() -> None:
    shelf = read_folders([SHIPPED])
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "hi", "seed": 7}}
    [step] = parse_job(json.dumps(body).encode(), NOW, shelf.find).steps
    assert step.payload["colour"]["inputs"]["color"] == 7
    assert (step.template, step.outputs, step.pool) == ("swatch", ("save",), "default")
    assert step.inputs == body["inputs"]
    assert step.cache is True


@pytest.mark.parametrize(
    ("step", "field"),
    [
        ({}, "workflow"),
        ({"workflow": GRAPH, "template": "swatch"}, "template"),
        ({"workflow": GRAPH, "inputs": {}}, "inputs"),
        ({"template": "swotch"}, "template"),
        ({"template": "swatch"}, "inputs.prompt"),
        ({"template": "swatch", "inputs": {"prompt": "x", "width": 4}}, "inputs.width"),
        ({"template": "swatch", "inputs": {"prompt": {"from": "steps.0.text"}}}, "steps.0"),
    ],
)
def test_a_wrong_render_names_its_field(step: dict[str, Any], field: str) -> None:
    shelf = read_folders([SHIPPED])
    with pytest.raises(RequestError) as caught:
        parse_job(json.dumps({"kind": "render", **step}).encode(), NOW, shelf.find)
    assert caught.value.field == field


def test_the_steps_of_a_pipeline_feed_a_template() -> None:
    shelf = read_folders([SHIPPED])
    render = {
        "kind": "render",
        "template": "swatch",
        "inputs": {"prompt": {"from": "steps.0.text"}},
    }
    body = {"kind": "pipeline", "steps": [CHAT, render]}
    steps = parse_job(json.dumps(body).encode(), NOW, shelf.find).steps
    assert steps[1].payload["caption"]["inputs"]["source"] == "${steps.0.text:string}"
    body["steps"] = [render, CHAT]
    with pytest.raises(RequestError) as caught:
        parse_job(json.dumps(body).encode(), NOW, shelf.find)
    assert caught.value.field == "steps.0"


def test_a_batch_shows_its_children() -> None:
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
    shelf = read_folders([SHIPPED])
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "x", "seed": 0},
            "batch": {"seeds": 5}}  # fmt: skip
    spec = parse_job(json.dumps(body).encode(), NOW, shelf.find)
    shown = job_detail(batch, [{}, {}], spec).model_dump(mode="json")
    told = [(c["status"], c["progress"], c["inputs"], c["cached"]) for c in shown["children"]]
    assert told == [
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
    shown = job_detail(ended, [{}, {}]).model_dump(mode="json")
    assert [c["status"] for c in shown["children"]] == [
        "succeeded", "cancelled", "succeeded", "failed", "cancelled",
    ]  # fmt: skip
    assert shown["children"][3]["error"] == {"code": "c", "message": "m", "details": {}}
    assert job_detail(job(), [{}]).children is None
