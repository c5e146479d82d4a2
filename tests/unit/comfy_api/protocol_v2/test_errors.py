from __future__ import annotations

import json

import pytest
from comfy_low.errors import _BY_CODE

from moyin import errors
from moyin.comfy_api.protocol_v2.errors import render_error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.MissingKey("no"), 401, "unauthorized"),
        (errors.InvalidKey("no"), 401, "unauthorized"),
        (errors.InsufficientScope("no"), 403, "forbidden"),
        (errors.BudgetExceeded("no"), 402, "insufficient_credits"),
        (errors.TooManyJobs("no", retry_after=4.2), 429, "queue_full"),
        (errors.JobNotFound("no"), 404, "not_found"),
        (errors.ContentNotFound("no"), 404, "blob_not_found"),
        (errors.ContentMismatch("no"), 409, "hash_mismatch"),
        (errors.IdempotencyMismatch("no"), 422, "idempotency_key_reuse"),
        (errors.InputNotFound("no", field="workflow"), 422, "missing_asset"),
        (errors.EditorGraphFormat("no", field="workflow"), 422, "workflow_format_ui"),
    ],
)
def test_the_sdk_has_an_exception_for_the_code(
    error: errors.MoyinError, status: int, code: str
) -> None:
    error_response = render_error(error, "r1", "/api/v2/jobs")
    assert (error_response.status, json.loads(error_response.body)["error"]["code"]) == (
        status,
        code,
    )
    assert code in _BY_CODE


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.RateLimited("no", retry_after=1), 429, "rate_limited"),
        (errors.ArtifactInUse("no"), 409, "asset_in_use"),
        (errors.ServiceUnavailable("no"), 503, "service_unavailable"),
        (errors.BodyTooLarge("no"), 413, "body_too_large"),
        (errors.MoyinError("no"), 500, "internal_error"),
    ],
)
def test_errors_unknown_to_the_sdk_have_a_suitable_code(
    error: errors.MoyinError, status: int, code: str
) -> None:
    error_response = render_error(error, "r1", "/api/v2/jobs")
    assert (error_response.status, json.loads(error_response.body)["error"]["code"]) == (
        status,
        code,
    )


def test_retry_after_is_in_whole_seconds() -> None:
    error_response = render_error(errors.TooManyJobs("no", retry_after=4.2), "r1", "/api/v2/jobs")
    assert error_response.headers["retry-after"] == "5"
    assert error_response.headers["x-comfy-request-id"] == "r1"


def test_node_errors_name_field_and_reason() -> None:
    node_error = {
        "type": "required_input_missing", "message": "Required input is missing",
        "details": "images", "extra_info": {"input_name": "images"},
    }  # fmt: skip
    details = {
        "error": {},
        "node_errors": {"2": {"errors": [node_error], "class_type": "SaveImage"}},
    }
    error_response = render_error(errors.InvalidGraph("no", details=details), "r1", "/api/v2/jobs")
    error = json.loads(error_response.body)["error"]
    assert (error_response.status, error["code"]) == (422, "invalid_workflow")
    assert error["details"]["node_errors"] == {
        "2": [{"field": "images", "reason": "required_input_missing", "message": "images"}]
    }
