"""Tests that the client matches the gateway's OpenAPI description, and imports none of its code."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import tomllib
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import moyin_client as client
from moyin.domain.job import EventType, JobStatus
from moyin.errors import MoyinError
from moyin.jobs.protocol import event_bodies, wire
from moyin.jobs.protocol.filters import (
    parse_artifacts_query,
    parse_bulk_request,
    parse_jobs_query,
)
from moyin.jobs.protocol.wire import JOB_REQUEST
from moyin.text.protocol import usage
from moyin_client import retry
from moyin_client.models import FINAL_STATUSES
from moyin_client.requests import (
    ArtifactFilter,
    JobConditions,
    JobFilter,
    JobOptions,
    UsageQuery,
    Work,
    build_bulk,
    build_job,
    build_query,
    build_usage_query,
)
from scripts.api_pages import list_error_types

PROJECT = Path(__file__).parents[4] / "clients" / "python"
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("dataclass_type", "body", "extra_members"),
    [
        (client.Job, wire.JobDetail, set()),
        (client.Progress, wire.ProgressBody, {"node"}),
        (client.Progress, event_bodies.ProgressEvent, set()),
        (client.Preview, event_bodies.PreviewEvent, set()),
        (client.EventToken, wire.TokenBody, set()),
        (client.FinishedStep, event_bodies.StepEvent, set()),
        (client.Artifact, wire.ArtifactDetail, set()),
        (client.JobError, wire.ErrorBody, set()),
        (client.Canceller, wire.CancellerBody, set()),
        (client.Eta, wire.EtaBody, set()),
        (client.Seconds, wire.SecondsBody, set()),
        (client.Output, wire.OutputBody, set()),
        (client.Child, wire.ChildBody, set()),
        (client.Submission, wire.SubmittedJob, set()),
        (client.SubmittedStep, wire.SubmittedStep, set()),
        (client.Link, wire.LinkBody, set()),
        (client.Usage, usage.UsageBody, set()),
        (client.UsageGroup, usage.GroupBody, set()),
        (client.UsageReport, usage.UsageReport, set()),
        (client.Budget, usage.BudgetBody, set()),
    ],
)
def test_a_dataclass_has_the_members_of_its_body(
    dataclass_type: Any, body: type[BaseModel], extra_members: set[str]
) -> None:
    assert {
        field.name for field in fields(dataclass_type)
    } == body.model_fields.keys() | extra_members


def test_final_statuses_are_those_of_the_gateway() -> None:
    assert {status.value for status in JobStatus if status.is_final} == FINAL_STATUSES
    assert {kind.value for kind in EventType if kind.is_final} == FINAL_STATUSES


def test_the_default_lifetime_of_a_token_is_that_of_the_gateway() -> None:
    parameters = inspect.signature(client.Client.create_token).parameters
    assert parameters["expires_in"].default == wire.TokenRequest().expires_in


def test_error_codes_that_the_client_retries_are_retryable() -> None:
    error_types = list_error_types()
    codes = retry._CODES - {"connection_failed"}
    assert codes
    for code in codes:
        error_type: type[MoyinError] = error_types[code]
        assert error_type.retryable, code


@pytest.mark.parametrize(
    "work",
    [
        client.Chat(request={"model": "auto"}, protocol="anthropic"),
        client.Http(path="/a?b=c", method="PUT", headers={"a": "b"}, body=[1]),
        client.Render(workflow={"1": {}}, pool="fast", cache=True),
        client.Render(template="dawn", inputs={}, batch=client.Batch(inputs=[{"a": 1}])),
        client.Render(workflow={}, batch=client.Batch(sweep={"workflow.3.inputs.seed": [1, 2]})),
        client.Pipeline(steps=[client.Chat(request={}), client.Http(path="/")], pool="fast"),
    ],
    ids=lambda work: type(work).__name__,
)
def test_the_gateway_accepts_the_requests_of_the_client(work: Work) -> None:
    options = JobOptions(
        priority=1, deadline=NOON, metadata={"a": "b"}, webhook="https://a.example"
    )
    parsed_request = JOB_REQUEST.validate_python(build_job(work, options))
    assert parsed_request.kind == work.kind
    assert (parsed_request.priority, parsed_request.deadline, parsed_request.metadata) == (
        1,
        NOON,
        {"a": "b"},
    )


def test_the_gateway_accepts_the_filters_of_the_client() -> None:
    conditions = JobFilter(
        status=["failed", "cancelled"], kind="render", pool="fast", template="dawn",
        metadata={"project": "aurora"}, created_after=NOON, created_before=NOON, search="fox",
        page_size=7,
    )  # fmt: skip
    assert conditions.keys() == JobFilter.__annotations__.keys()
    query = parse_jobs_query(build_query(conditions, "c1").items())
    assert query.status == [JobStatus.FAILED, JobStatus.CANCELLED]
    assert (query.metadata, query.limit, query.cursor) == ({"project": "aurora"}, 7, "c1")
    assert (query.created_after, query.pool, query.template) == (NOON, "fast", "dawn")
    assert query.search == "fox"
    artifact_conditions = ArtifactFilter(
        job="j1", media_type="image/*", created_after=NOON, created_before=NOON, favourite=False,
        template="dawn", user="u1", metadata={"project": "aurora"}, page_size=7,
    )  # fmt: skip
    assert artifact_conditions.keys() == ArtifactFilter.__annotations__.keys()
    artifacts_query = parse_artifacts_query(build_query(artifact_conditions, None).items())
    assert (artifacts_query.media_type, artifacts_query.favourite, artifacts_query.user) == (
        "image/*",
        False,
        "u1",
    )
    assert (artifacts_query.template, artifacts_query.metadata) == ("dawn", {"project": "aurora"})


def test_the_gateway_accepts_bulk_requests_of_the_client() -> None:
    conditions = JobConditions(status="failed", metadata={"a": "b"}, created_after=NOON)
    body = json.dumps(build_bulk(conditions, True, "c1")).encode()
    parsed_request = parse_bulk_request(body)
    assert (parsed_request.filter.status, parsed_request.filter.created_after) == (
        [JobStatus.FAILED],
        NOON,
    )
    assert (parsed_request.dry_run, parsed_request.cursor) == (True, "c1")


def test_the_gateway_accepts_usage_queries_of_the_client() -> None:
    query = UsageQuery(
        group_by=["day", "key"], since=NOON, until=NOON, key="k", model="m", backend="b",
        requested_model="auto", owner="*", daily=True, limit=5, cursor="c1",
    )  # fmt: skip
    assert query.keys() == UsageQuery.__annotations__.keys()
    parsed_query = usage.UsageQuery.model_validate(build_usage_query(query))
    assert (parsed_query.group_by, parsed_query.since, parsed_query.until) == (
        ["day", "key"],
        NOON,
        NOON,
    )
    assert (parsed_query.limit, parsed_query.cursor) == (5, "c1")


def test_the_client_imports_only_declared_dependencies() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    dependency_names = {re.split(r"[^\w-]", text)[0] for text in project["dependencies"]}
    assert dependency_names == {"httpx"}
    imported_modules = set()
    paths = list((PROJECT / "moyin_client").glob("*.py"))
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported_modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported_modules.add((node.module or "").split(".")[0])
    assert imported_modules - sys.stdlib_module_names == {"httpx", "moyin_client"}
