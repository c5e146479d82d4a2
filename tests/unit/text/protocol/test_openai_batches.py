from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openai.types import Batch

from moyin.domain.identity import Identity
from moyin.domain.text_batch import (
    BatchDialect,
    BatchError,
    BatchLine,
    BatchStatus,
    LineResult,
    TextBatch,
)
from moyin.errors import InvalidRequest
from moyin.http.validation import validate
from moyin.text.protocol.openai.batches import (
    CreateBatch,
    InvalidLine,
    OpenAIBatchFormat,
    compute_output_expiry,
    render_batch,
    render_batch_page,
)

NOW = datetime(2026, 11, 28, tzinfo=UTC)
BATCH = TextBatch(
    id="batch_1",
    owner="ada",
    dialect=BatchDialect.OPENAI,
    endpoint="/v1/embeddings",
    input_file_id="file-1",
    created_at=NOW,
    expires_at=NOW + timedelta(hours=24),
)
FORMAT = OpenAIBatchFormat()


def make_body(**changes: Any) -> dict[str, Any]:
    body = {"input_file_id": "f", "endpoint": "/v1/responses", "completion_window": "24h"}
    return {**body, **changes}


def test_a_new_batch_has_its_submitters_rights() -> None:
    body = validate(CreateBatch, make_body(metadata={"a": "b"}))
    caller = Identity(owner="ada", key_id="k", user="u", scopes=frozenset({"text"}))
    batch = body.to_domain(caller)
    assert batch.id.startswith("batch_") and batch.submitter == caller
    assert batch.expires_at - batch.created_at == timedelta(hours=24)
    assert (batch.endpoint, batch.metadata) == ("/v1/responses", {"a": "b"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"input_file_id": None}, "input_file_id"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
        ),
    ],
)
def test_invalid_members_are_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        validate(CreateBatch, make_body(**changes))
    assert exc_info.value.field == field


@pytest.mark.parametrize(
    ("status", "member"),
    [
        (BatchStatus.COMPLETED, "completed_at"),
        (BatchStatus.FAILED, "failed_at"),
        (BatchStatus.EXPIRED, "expired_at"),
        (BatchStatus.CANCELLED, "cancelled_at"),
    ],
)
def test_a_batch_is_valid_in_openais_own_model(status: BatchStatus, member: str) -> None:
    errors = (BatchError(code="x", message="y", line=3, param="body"),)
    ended_batch = replace(BATCH, status=status, ended_at=NOW, errors=errors, completed=2, total=2)
    rendered_batch = render_batch(ended_batch)
    batch = Batch.model_validate(rendered_batch, strict=True)
    time_members = ("completed_at", "failed_at", "expired_at", "cancelled_at")
    assert {name for name in time_members if rendered_batch[name] is not None} == {member}
    assert batch.request_counts is not None and batch.request_counts.completed == 2
    assert batch.errors is not None and batch.errors.data is not None
    assert batch.errors.data[0].line == 3
    Batch.model_validate(render_batch(BATCH), strict=True)


def test_pages_have_the_ids_of_their_ends() -> None:
    page = render_batch_page([BATCH, replace(BATCH, id="batch_2")], True)
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("batch_1", "batch_2", True)
    assert render_batch_page([], False)["first_id"] is None


def test_results_are_rendered_as_json_lines() -> None:
    line = BatchLine(number=7, custom_id='a"ü', start=0, size=1)
    error_body = json.dumps({"error": {"code": "x\n"}}, indent=1).encode()
    result = LineResult(number=7, http_status=400, body=error_body, error_code="x")
    rendered_line = FORMAT.render_result(BATCH, replace(line, result=result))
    assert b"\n" not in rendered_line
    assert json.loads(rendered_line) == {
        "id": "batch_req_batch_1-7",
        "custom_id": 'a"ü',
        "response": {
            "status_code": 400,
            "request_id": "batch_1-7",
            "body": {"error": {"code": "x\n"}},
        },
        "error": None,
    }
    unrun_line = json.loads(FORMAT.render_result(BATCH, line))
    assert unrun_line["response"] is None and unrun_line["error"]["code"] == "batch_expired"
    unrun_line = json.loads(FORMAT.render_result(replace(BATCH, cancelling_at=NOW), line))
    assert unrun_line["error"]["code"] == "batch_cancelled"


def test_invalid_lines_are_refused_with_a_code() -> None:
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "m", "input": "x"},
    }

    def check_line(**changes: Any) -> str:
        raw_line = json.dumps({**line, **changes}).encode()
        return FORMAT.check_line(raw_line, "/v1/embeddings")

    assert check_line() == "a" and check_line(more=1) == "a"
    assert json.loads(FORMAT.read_body(json.dumps(line).encode())) == line["body"]
    for changes, line_code, field in (
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * 257}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "\0"}, "invalid_custom_id", "custom_id"),
        ({"custom_id": 1}, "missing_required_parameter", "custom_id"),
        ({"body": {"input": "x"}}, "missing_required_parameter", "body.model"),
        ({"body": {"model": "m", "background": True}}, "unsupported_parameter", "body.background"),
    ):
        with pytest.raises(InvalidLine) as exc_info:
            check_line(**changes)
        assert (exc_info.value.line_code, exc_info.value.field) == (line_code, field)


def test_results_expire_at_the_requested_time() -> None:
    assert compute_output_expiry(BATCH, NOW) is None
    expiring_batch = replace(BATCH, output_expires_after=3_600)
    assert compute_output_expiry(expiring_batch, NOW) == NOW + timedelta(hours=1)
