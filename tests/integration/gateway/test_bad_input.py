"""Tests the responses of a real gateway to invalid input."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import aiohttp
import pytest

from moyin.errors import InvalidGraph
from tests.integration.gateway.fixtures import Farm

CHAT = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "x"}]},
}
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {}}}
RENDER = {"kind": "render", "workflow": GRAPH}


def build_job_with_reference(index: int) -> dict[str, Any]:
    http_step = {"kind": "http", "request": {"path": "/x", "body": f"${{steps.{index}.text}}"}}
    return {"kind": "pipeline", "steps": [http_step, CHAT]}


BAD: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("no kind", {}, "invalid_request", "kind"),
    ("unknown kind", {"kind": "dance"}, "invalid_request", "kind"),
    ("unknown member", {**CHAT, "prio": 1}, "invalid_request", "prio"),
    ("no request", {"kind": "chat"}, "invalid_request", "request"),
    ("no messages", {"kind": "chat", "request": {"model": "m"}}, "invalid_request", "request.messages"),
    ("no model", {"kind": "chat", "request": {"messages": [{}]}}, "invalid_request", "request.model"),
    ("a stream", {"kind": "chat", "request": {**CHAT["request"], "stream": True}},  # type: ignore[dict-item]
     "invalid_request", "request.stream"),
    ("empty graph", {"kind": "render", "workflow": {}}, "invalid_request", "workflow"),
    ("editor format", {"kind": "render", "workflow": {"nodes": [], "links": []}},
     "editor_format", "workflow"),
    ("node without class", {"kind": "render", "workflow": {"3": {"inputs": {}}}},
     "invalid_request", "workflow.3.class_type"),
    ("node inputs", {"kind": "render", "workflow": {"3": {"class_type": "A", "inputs": 1}}},
     "invalid_request", "workflow.3.inputs"),
    ("unknown pool", {**RENDER, "pool": "gold"}, "invalid_request", "pool"),
    ("unknown pool in a step", {"kind": "pipeline", "steps": [CHAT, {**RENDER, "pool": "gold"}]},
     "invalid_request", "steps.1.pool"),
    ("no steps", {"kind": "pipeline", "steps": []}, "invalid_request", "steps"),
    ("too many steps", {"kind": "pipeline", "steps": [CHAT] * 21}, "invalid_request", "steps"),
    ("bad step", {"kind": "pipeline", "steps": [CHAT, {"kind": "render"}]},
     "invalid_request", "steps.1.workflow"),
    ("bad kind of step", {"kind": "pipeline", "steps": [{"kind": "pipeline", "steps": []}]},
     "invalid_request", "steps.0.kind"),
    ("reference to itself", build_job_with_reference(0), "invalid_request", "steps.0"),
    ("reference forward", build_job_with_reference(1), "invalid_request", "steps.0"),
    ("priority", {**CHAT, "priority": 6}, "invalid_request", "priority"),
    ("past deadline", {**CHAT, "deadline": (datetime.now(UTC) - timedelta(1)).isoformat()},
     "invalid_request", "deadline"),
    ("naive deadline", {**CHAT, "deadline": "2099-01-01T00:00:00"}, "invalid_request", "deadline"),
    ("metadata value", {**CHAT, "metadata": {"a": "x" * 1025}}, "invalid_request", "metadata.a"),
    ("metadata count", {**CHAT, "metadata": {str(i): "" for i in range(17)}},
     "invalid_request", "metadata"),
    ("webhook scheme", {**CHAT, "webhook": "ftp://x.example"}, "invalid_request", "webhook"),
    ("webhook password", {**CHAT, "webhook": "https://a:b@x.example"}, "invalid_request", "webhook"),
    ("webhook inside", {**CHAT, "webhook": "http://10.0.0.1/"}, "address_refused", "webhook"),
    ("webhook metadata service", {**CHAT, "webhook": "http://169.254.169.254/"},
     "address_refused", "webhook"),
    ("path elsewhere", {"kind": "http", "request": {"path": "http://evil.example/"}},
     "invalid_request", "request.path"),
    ("path host", {"kind": "http", "request": {"path": "//evil.example/"}},
     "invalid_request", "request.path"),
    ("path jobs", {"kind": "http", "request": {"method": "POST", "path": "/jobs"}},
     "invalid_request", "request.path"),
    ("path jobs hidden", {"kind": "http", "request": {"method": "POST", "path": "/x/%2e%2e/jobs"}},
     "invalid_request", "request.path"),
    ("method", {"kind": "http", "request": {"method": "TRACE", "path": "/x"}},
     "invalid_request", "request.method"),
    ("header", {"kind": "http", "request": {"path": "/x", "headers": {"a": "b\r\nc: d"}}},
     "invalid_request", "request.headers.a"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
async def test_a_bad_job_is_refused(
    farm: Farm, body: dict[str, Any], code: str, field: str | None
) -> None:
    async with farm.client.post("/jobs", json=body) as response:
        problem = await response.json()
        assert response.status == 400, problem
        assert response.content_type == "application/problem+json"
    assert (problem["code"], problem.get("field")) == (code, field)
    assert problem["request_id"] == response.headers["x-request-id"]
    async with farm.client.get("/jobs") as list_response:
        assert (await list_response.json())["jobs"] == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"kind": NaN}', b"\xff", b'{"a":"\\ud800"}', b"[" * 100_000]
)
async def test_bodies_that_are_not_json_are_refused(farm: Farm, body: bytes) -> None:
    async with farm.client.post("/jobs", data=body) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null"])
async def test_bodies_that_are_not_objects_are_refused(farm: Farm, body: bytes) -> None:
    async with farm.client.post("/jobs", data=body) as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid_request"


async def test_a_large_body_is_cut_off_on_the_stream(farm: Farm) -> None:
    async def generate_chunks() -> Any:
        for _ in range(64):
            yield b"x" * 65_536

    for path in ("/jobs", "/artifacts"):
        async with farm.client.post(path, data=generate_chunks()) as response:
            assert response.status == 413
            assert (await response.json())["code"] == "body_too_large"


async def test_missing_and_wrong_keys_are_refused(farm: Farm) -> None:
    async with aiohttp.ClientSession(farm.url) as anonymous_session:
        async with anonymous_session.get("/jobs") as response:
            assert (response.status, (await response.json())["code"]) == (401, "missing_api_key")
        async with anonymous_session.get("/jobs", headers={"x-api-key": "moyin_a_b"}) as response:
            assert (response.status, (await response.json())["code"]) == (401, "invalid_api_key")


async def test_unknown_and_foreign_jobs_look_the_same(farm: Farm) -> None:
    job = await farm.submit_job(CHAT)
    for job_id in (job["id"], "b4a1b6b2-0000-4000-8000-000000000000", "nonsense"):
        for method, path in [
            ("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/events"),
        ]:  # fmt: skip
            async with farm.other.request(method, f"/jobs/{job_id}{path}") as response:
                assert (response.status, (await response.json())["code"]) == (404, "job_not_found")
        async with farm.other.ws_connect(f"/jobs/{job_id}/ws") as socket:
            message = await socket.receive()
            assert (message.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 4404)
    async with farm.other.get("/jobs") as response:
        assert (await response.json())["jobs"] == []
    assert (await farm.fetch_job(job["id"]))["status"] == "queued"


async def test_an_idempotency_key_makes_one_job(farm: Farm) -> None:
    async def post_job(client: aiohttp.ClientSession, body: Any) -> tuple[int, Any, str | None]:
        headers = {"Idempotency-Key": "k1"}
        async with client.post("/jobs", data=json.dumps(body), headers=headers) as response:
            replayed_header = response.headers.get("Idempotent-Replayed")
            return response.status, await response.json(), replayed_header

    first_response = await post_job(farm.client, CHAT)
    repeated_response = await post_job(farm.client, dict(reversed(CHAT.items())))
    changed_response = await post_job(farm.client, {**CHAT, "priority": 1})
    other_tenant_response = await post_job(farm.other, CHAT)
    assert (first_response[0], first_response[2]) == (202, None)
    assert (repeated_response[0], repeated_response[1]["id"], repeated_response[2]) == (
        202,
        first_response[1]["id"],
        "true",
    )
    assert (changed_response[0], changed_response[1]["code"]) == (422, "idempotency_key_reused")
    assert other_tenant_response[1]["id"] != first_response[1]["id"]


async def test_invalid_idempotency_key_is_refused(farm: Farm) -> None:
    headers = {"Idempotency-Key": "x" * 256}
    async with farm.client.post("/jobs", json=CHAT, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["field"] == "Idempotency-Key"


async def test_graph_that_comfyui_refuses_is_an_error(farm: Farm) -> None:
    comfy_error = {"error": {"type": "invalid_prompt", "message": "no", "details": "", "extra_info": {}},
            "node_errors": {"1": {"errors": []}}}  # fmt: skip
    validated_graphs: list[Any] = []

    async def validate(pool: str, graph: Any, **_: Any) -> None:
        validated_graphs.append((pool, graph))
        raise InvalidGraph("no", details=comfy_error)

    farm.validator.validate = validate
    async with farm.client.post("/jobs", json=RENDER) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (400, "invalid_graph")
    assert {"error": problem["error"], "node_errors": problem["node_errors"]} == comfy_error
    referring_graph = {"1": {"class_type": "A", "inputs": {"text": "${steps.0.text}"}}}
    job = {"kind": "pipeline", "steps": [CHAT, {"kind": "render", "workflow": referring_graph}]}
    await farm.submit_job(job)
    assert validated_graphs == [("default", GRAPH)]


async def test_a_graph_is_validated_with_the_names_that_its_files_will_have(farm: Farm) -> None:
    async with farm.client.post("/artifacts?name=cat.png", data=b"meow") as response:
        artifact_id = (await response.json())["id"]
    validated_names: list[Any] = []

    async def validate(pool: str, graph: Any, **_: Any) -> dict[str, Any]:
        validated_names.append(graph["1"]["inputs"]["image"])
        return {}

    farm.validator.validate = validate
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": f"artifact:{artifact_id}"}}}
    job = {"kind": "render", "workflow": graph}
    await farm.submit_job(job)
    assert validated_names == [f"moyin/{sha256(b'meow').hexdigest()}.png"]
    async with farm.other.post("/jobs", json=job) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (400, "input_not_found")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=x", "status=done", "kind=x", "cursor=nope"]
)
async def test_invalid_query_is_refused(farm: Farm, query: str) -> None:
    async with farm.client.get(f"/jobs?{query}") as response:
        assert response.status == 400
        assert (await response.json())["field"] == query.partition("=")[0]


async def test_invalid_event_id_is_refused(farm: Farm) -> None:
    job = await farm.submit_job(CHAT)
    path = f"/jobs/{job['id']}/events"
    async with farm.client.get(path, headers={"Last-Event-ID": "x"}) as response:
        assert (response.status, (await response.json())["field"]) == (400, "Last-Event-ID")


async def test_unknown_routes_are_not_found(farm: Farm) -> None:
    async with farm.client.get("/nothing") as response:
        assert (response.status, (await response.json())["code"]) == (404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/etn/languages"), ("PUT", "/api/etn/image/0")]
)
async def test_routes_of_node_packages_are_refused_with_what_to_do(
    farm: Farm, method: str, path: str
) -> None:
    async with farm.client.request(method, path, data=b"") as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (404, "route_not_found")
    text = problem.get("detail") or problem["error"]["message"]
    assert "Routes that node packages add to ComfyUI are not passed on" in text
    assert "POST /upload/image" in text
