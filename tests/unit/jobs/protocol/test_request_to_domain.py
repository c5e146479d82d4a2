from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moyin.domain.job import (
    StepKind,
)
from moyin.errors import InvalidRequest, MoyinError, RequestError
from moyin.jobs.protocol.request_to_domain import compute_fingerprint, parse_job
from moyin.render.templates.catalog import SHIPPED_FOLDER, read_templates

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}


def parse_body(body: Any) -> Any:
    return parse_job(json.dumps(body).encode(), NOW)


def test_a_chat_request_becomes_a_job_with_defaults() -> None:
    spec = parse_body(CHAT)
    assert (spec.kind, spec.priority, spec.webhook) == ("chat", 3, None)
    assert [(s.kind, s.payload) for s in spec.steps] == [(StepKind.CHAT, CHAT["request"])]


def test_a_deadline_is_converted_to_utc() -> None:
    deadline = parse_body({**CHAT, "deadline": "2099-01-01T18:00:00+09:00"}).deadline
    # SQLite would otherwise return 18:00 as a time in UTC.
    assert deadline.isoformat() == "2099-01-01T09:00:00+00:00"


def test_a_pool_comes_from_the_step_or_the_job_or_the_default() -> None:
    render_job = {"kind": "render", "workflow": GRAPH}
    job = {
        "kind": "pipeline",
        "pool": "slow",
        "steps": [render_job, {**render_job, "pool": "fast"}],
    }
    assert [step.pool for step in parse_body(job).steps] == ["slow", "fast"]
    assert parse_body(render_job).steps[0].pool == "default"
    assert parse_body({**render_job, "pool": "fast"}).steps[0].pool == "fast"


def test_an_http_step_keeps_its_request() -> None:
    http_request = {
        "method": "PUT",
        "path": "/a?b=c",
        "headers": {"x-a": "b"},
        "body": {"c": [1, None]},
    }
    assert parse_body({"kind": "http", "request": http_request}).steps[0].payload == http_request


def test_the_options_of_a_job_are_kept() -> None:
    deadline = NOW + timedelta(hours=1)
    spec = parse_body({**CHAT, "priority": 1, "deadline": deadline.isoformat(),
                  "metadata": {"a": "b"}, "webhook": "https://x.example/h"})  # fmt: skip
    assert (spec.priority, spec.deadline, spec.metadata) == (1, deadline, {"a": "b"})
    assert spec.webhook == "https://x.example/h"


def test_a_path_with_a_reference_is_checked_when_the_step_runs() -> None:
    http_step = {"kind": "http", "request": {"path": "${steps.0.text}"}}
    assert len(parse_body({"kind": "pipeline", "steps": [CHAT, http_step]}).steps) == 2


def test_equivalent_requests_have_the_same_fingerprint() -> None:
    fingerprint = compute_fingerprint(parse_body(dict(reversed(CHAT.items()))))
    assert (
        compute_fingerprint(parse_body(CHAT))
        == fingerprint
        == compute_fingerprint(parse_body({**CHAT, "priority": 3}))
    )
    assert compute_fingerprint(parse_body({**CHAT, "priority": 2})) != fingerprint


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
def test_any_body_is_parsed_or_refused_with_its_field(body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        parse_job(data, NOW)
    except MoyinError as error:
        assert isinstance(error, RequestError)


@pytest.mark.parametrize("metadata", [{"a\0": "b"}, {"a": "b\0"}])
def test_metadata_with_nul_is_refused(metadata: dict[str, str]) -> None:
    body = {"kind": "http", "request": {"path": "/x"}, "metadata": metadata}
    with pytest.raises(InvalidRequest) as exc_info:
        parse_job(json.dumps(body).encode(), NOW)
    assert (exc_info.value.field or "").startswith("metadata")


def test_a_template_is_filled_and_sets_pool_and_outputs() -> None:
    catalog = read_templates([SHIPPED_FOLDER])
    body = {"kind": "render", "template": "swatch", "inputs": {"prompt": "hi", "seed": 7}}
    [step] = parse_job(json.dumps(body).encode(), NOW, catalog.find).steps
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
def test_an_invalid_render_names_its_field(step: dict[str, Any], field: str) -> None:
    catalog = read_templates([SHIPPED_FOLDER])
    with pytest.raises(RequestError) as exc_info:
        parse_job(json.dumps({"kind": "render", **step}).encode(), NOW, catalog.find)
    assert exc_info.value.field == field


def test_a_template_takes_inputs_from_earlier_steps() -> None:
    catalog = read_templates([SHIPPED_FOLDER])
    render_step = {
        "kind": "render",
        "template": "swatch",
        "inputs": {"prompt": {"from": "steps.0.text"}},
    }
    body = {"kind": "pipeline", "steps": [CHAT, render_step]}
    steps = parse_job(json.dumps(body).encode(), NOW, catalog.find).steps
    assert steps[1].payload["caption"]["inputs"]["source"] == "${steps.0.text:string}"
    body["steps"] = [render_step, CHAT]
    with pytest.raises(RequestError) as exc_info:
        parse_job(json.dumps(body).encode(), NOW, catalog.find)
    assert exc_info.value.field == "steps.0"
