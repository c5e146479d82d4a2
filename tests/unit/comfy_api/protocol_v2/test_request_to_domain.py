from __future__ import annotations

import json
from typing import Any

import pytest

from moyin.comfy_api.protocol_v2.errors import render_error
from moyin.comfy_api.protocol_v2.request_to_domain import parse_hash, parse_job, parse_label_filters
from moyin.domain.job import StepKind
from moyin.domain.references import resolve_references
from moyin.errors import InvalidJson, InvalidRequest, MoyinError

GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"text": "a ${steps.0.text}"}}}


def parse_body(body: Any) -> Any:
    return parse_job(json.dumps(body).encode())


def test_a_graph_is_kept_unchanged() -> None:
    spec = parse_body({"workflow": GRAPH, "metadata": {"client": "acme"}})
    [step] = spec.steps
    assert (spec.kind, spec.metadata, step.kind) == ("render", {"client": "acme"}, StepKind.RENDER)
    assert resolve_references(step.payload, ()) == GRAPH


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "invalid_workflow"),
        ({"workflow": []}, 422, "invalid_workflow"),
        ({"workflow": {}}, 422, "invalid_workflow"),
        ({"workflow": {"1": {"inputs": {}}}}, 422, "invalid_workflow"),
        ({"workflow": {"nodes": [], "links": []}}, 422, "workflow_format_ui"),
        ({"workflow": GRAPH, "metadata": {"a": 1}}, 422, "metadata_invalid"),
        ({"workflow": GRAPH, "metadata": {str(n): "" for n in range(17)}}, 422, "metadata_invalid"),
        ({"workflow": GRAPH, "webhook_url": "https://x.example"}, 400, "invalid_request"),
        ({"workflow": GRAPH, "extra_data": {"extra_pnginfo": {}}}, 400, "invalid_request"),
        (
            {"workflow": GRAPH, "extra_data": {"api_key_comfy_org": "secret"}},
            400,
            "unsupported_feature",
        ),
        ([], 400, "invalid_request"),
    ],
)
def test_invalid_submissions_have_the_sdks_error_codes(body: Any, status: int, code: str) -> None:
    with pytest.raises(MoyinError) as exc_info:
        parse_body(body)
    error_response = render_error(exc_info.value, "r1", "/api/v2/jobs")
    error = json.loads(error_response.body)["error"]
    assert (error_response.status, error["code"]) == (status, code)
    assert (error["details"]["code"], error["details"]["request_id"]) == (exc_info.value.code, "r1")
    assert "secret" not in error["message"]


def test_a_body_that_is_not_json_is_refused() -> None:
    with pytest.raises(InvalidJson):
        parse_job(b"{")


def test_only_blake3_hashes_are_parsed() -> None:
    assert parse_hash(f"blake3:{'a' * 64}") == "a" * 64
    for wrong_hash in (
        "",
        "a" * 64,
        f"blake3:{'A' * 64}",
        f"sha256:{'a' * 64}",
        f"blake3:{'a' * 64}\n",
    ):
        assert parse_hash(wrong_hash) is None


def test_label_filters_are_parsed_from_the_query() -> None:
    query = [("metadata[client]", "acme"), ("metadata[run no]", "7"), ("limit", "5")]
    assert parse_label_filters(query) == {"client": "acme", "run no": "7"}


@pytest.mark.parametrize(
    "query",
    [
        [("metadata[]", "x")],
        [('metadata[a"b]', "x")],
        [("metadata[a]", "x"), ("metadata[a]", "y")],
        [(f"metadata[{n}]", "x") for n in range(17)],
    ],
)
def test_invalid_label_filters_are_refused(query: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest) as exc_info:
        parse_label_filters(query)
    error_body = json.loads(render_error(exc_info.value, "r", "/api/v2/jobs").body)
    assert error_body["error"]["code"] == "invalid_metadata_filter"
