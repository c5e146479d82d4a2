"""Tests the parsing of filters of jobs and artifacts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from moyin.domain.job import JobStatus
from moyin.errors import InvalidRequest, MoyinError
from moyin.jobs.protocol.filters import (
    parse_artifacts_query,
    parse_bulk_request,
    parse_jobs_query,
)


def test_all_parameters_become_conditions() -> None:
    query = parse_jobs_query(
        [
            ("status", "queued,failed"),
            ("status", "running"),
            ("kind", "render"),
            ("pool", "big"),
            ("template", "old-name"),
            ("metadata.shot", "12"),
            ("metadata.a.b", ""),
            ("created_after", "2026-01-01T01:00:00+01:00"),
            ("created_before", "2026-02-01T00:00:00Z"),
            ("search", "red fox"),
            ("limit", "7"),
        ]
    )
    job_filter = query.to_domain({"old-name": "swatch", "swatch": "swatch"})
    assert job_filter.statuses == (JobStatus.QUEUED, JobStatus.FAILED, JobStatus.RUNNING)
    assert (job_filter.kind, job_filter.pool, job_filter.template) == ("render", "big", "swatch")
    assert job_filter.metadata == {"shot": "12", "a.b": ""}
    assert job_filter.search == "red fox"
    assert job_filter.created_after == datetime(2026, 1, 1, tzinfo=UTC)
    assert job_filter.created_before == datetime(2026, 2, 1, tzinfo=UTC)
    assert (query.limit, query.cursor) == (7, None)
    assert parse_jobs_query([]).to_domain({}).is_empty


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ([("offset", "1")], "offset"),
        ([("status", "done")], "status"),
        ([("status", "")], "status"),
        ([("kind", "video")], "kind"),
        ([("kind", "chat"), ("kind", "chat")], "kind"),
        ([("pool", 'x"]')], "pool"),
        ([("template", "A b")], "template"),
        ([("metadata", "x")], "metadata"),
        ([("metadata.", "x")], "metadata."),
        ([("metadata.a", "1"), ("metadata.a", "2")], "metadata.a"),
        ([("metadata.a", "x" * 1025)], "metadata.a"),
        ([(f"metadata.{n}", "x") for n in range(17)], "metadata"),
        ([("created_after", "1700000000")], "created_after"),
        ([("created_after", "2026-01-01")], "created_after"),
        ([("created_before", "2026-01-01T00:00:00")], "created_before"),
        ([("search", "")], "search"),
        ([("search", " -_* ")], "search"),
        ([("search", "x" * 257)], "search"),
        ([("search", "a"), ("search", "b")], "search"),
        ([("limit", "0")], "limit"),
        ([("limit", "201")], "limit"),
        ([("cursor", "x" * 257)], "cursor"),
    ],
)
def test_an_invalid_parameter_is_named(parameters: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_jobs_query(parameters)
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("media_type", "image"),
        ("media_type", "*/*"),
        ("media_type", "image/%"),
        ("kind", "x"),
        ("w", "64"),
    ],
)
def test_an_invalid_parameter_of_artifacts_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_artifacts_query([(name, value)])
    assert exc_info.value.field == name


def test_a_bulk_request_has_the_same_filter() -> None:
    body = b'{"filter": {"status": "failed,cancelled", "metadata": {"a": "b"}}, "dry_run": true}'
    request = parse_bulk_request(body)
    assert request.dry_run
    job_filter = request.filter.to_domain({})
    assert job_filter.statuses == (JobStatus.FAILED, JobStatus.CANCELLED)
    assert job_filter.metadata == {"a": "b"}
    list_request = parse_bulk_request(b'{"filter": {"status": ["failed"]}}')
    assert (
        list_request.filter.to_domain({}).statuses == (JobStatus.FAILED,)
        and not list_request.dry_run
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "filter"),
        (b"[]", None),
        (b"nonsense", None),
        (b'{"filter": {"state": "failed"}}', "filter.state"),
        (b'{"filter": {"status": []}}', "filter.status"),
        (b'{"filter": {"created_before": 1}}', "filter.created_before"),
        (b'{"filter": {"metadata": {"a": 1}}}', "filter.metadata.a"),
        (b'{"filter": {"search": ["a"]}}', "filter.search"),
        (b'{"filter": {"kind": "chat"}, "dry_run": "no"}', "dry_run"),
        (b'{"filter": {"kind": "chat"}, "limit": 1}', "limit"),
    ],
)
def test_an_invalid_bulk_request_is_refused(body: bytes, field: Any) -> None:
    with pytest.raises(MoyinError) as exc_info:
        parse_bulk_request(body)
    assert exc_info.value.field == field
    assert exc_info.value.code in ("invalid_request", "invalid_json")
