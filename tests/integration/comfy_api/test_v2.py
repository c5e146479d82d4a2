"""Tests the raw HTTP responses of the Comfy API v2; tests/acceptance uses its SDK."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from blake3 import blake3

from moyin.domain.artifact import Artifact
from moyin.domain.job import EventType, JobStatus, Progress, StepResult
from moyin.domain.limits import Limit
from moyin.errors import InvalidGraph
from moyin.store.artifacts import ArtifactStore
from moyin.store.limits import LimitStore
from tests.integration.gateway.fixtures import Farm

JOBS, ASSETS = "/api/v2/jobs", "/api/v2/assets"
GRAPH = {"1": {"class_type": "EmptyImage", "inputs": {"text": "${steps.0.text}"}}}
PNG = b"\x89PNG\r\n\x1a\n a picture"
HASH = f"blake3:{blake3(PNG).hexdigest()}"


async def request_json(
    client: aiohttp.ClientSession,
    method: str,
    path: str,
    *,
    expected_status: int = 200,
    **options: Any,
) -> Any:
    async with client.request(method, path, **options) as response:
        text = await response.text()
        assert response.status == expected_status, text
        assert not text or response.content_type == "application/json"
        return json.loads(text) if text else None


async def read_status_and_code(
    client: aiohttp.ClientSession, method: str, path: str, **options: Any
) -> Any:
    async with client.request(method, path, **options) as response:
        return response.status, (await response.json())["error"]["code"]


def build_upload_form(**fields: str) -> aiohttp.FormData:
    form_data = aiohttp.FormData(quote_fields=False)
    for name, value in fields.items():
        form_data.add_field(name, value)
    form_data.add_field("file", PNG, filename="sent.png", content_type="application/octet-stream")
    return form_data


async def upload(farm: Farm, **fields: str) -> Any:
    fields = {"content_type": "image/png", "file_path": "dir/cat.png", **fields}
    async with farm.client.post(ASSETS, data=build_upload_form(**fields)) as response:
        assert response.status in (200, 201), await response.text()
        return await response.json()


async def read_frames(client: aiohttp.ClientSession, path: str) -> list[tuple[str, Any]]:
    async with client.get(path) as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    frames = []
    for frame in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if line[0] != ":")
        if fields:
            frames.append((fields["event"], json.loads(fields["data"])))
    return frames


async def finish_job(farm: Farm, job_id: str, *, row_ends_first: bool = False) -> Artifact:
    """Do what a worker does to finish the job, and return the stored output.

    Args:
        row_ends_first: True to update the job's row first, and then publish its last events.
    """
    artifact = Artifact(
        id=f"art_{job_id.replace('-', '')}", name="ComfyUI_00001_.png", media_type="image/png",
        size=len(PNG), sha256=await farm.blobs.put(PNG),
    )  # fmt: skip
    body = {"outputs": {"9": {"images": [f"artifact:{artifact.id}"]}}}
    output = await farm.blobs.put(json.dumps({"body": body}).encode())
    await farm.jobs.start(job_id, 1)
    await farm.jobs.record_progress(job_id, 1, Progress(value=1, max=2))
    result = StepResult(index=0, output=output, artifacts=(artifact,))
    if row_ends_first:
        await farm.jobs.record_step(job_id, 1, result)
        await farm.jobs.finish(job_id, 1, JobStatus.SUCCEEDED, None)
    await farm.events.publish(job_id, EventType.PROGRESS, {"value": 1, "max": 2, "step": 0})
    if not row_ends_first:
        await farm.jobs.record_step(job_id, 1, result)
    await farm.events.publish(job_id, EventType.STEP, {"step": 0, "artifacts": [], "attempt": 1})
    if not row_ends_first:
        await farm.jobs.finish(job_id, 1, JobStatus.SUCCEEDED, None)
    await farm.events.publish(job_id, EventType.SUCCEEDED, {"attempt": 1})
    return artifact


async def test_v2_and_gateway_routes_show_the_same_render_job(farm: Farm) -> None:
    body = {"workflow": GRAPH, "metadata": {"client": "acme"}}
    job = await request_json(farm.client, "POST", JOBS, json=body, expected_status=201)
    assert (job["status"], job["progress"], job["outputs"]) == ("queued", None, [])
    assert job["urls"]["self"] == f"{JOBS}/{job['id']}"
    plain_job = await farm.fetch_job(job["id"])
    assert (plain_job["kind"], plain_job["metadata"]) == ("render", {"client": "acme"})
    response_body = await request_json(farm.client, "GET", f"{JOBS}/{job['id']}/workflow")
    assert response_body == {"workflow": GRAPH, "format": "api"}
    for path in ("", "/workflow", "/events"):
        response_body = await read_status_and_code(farm.other, "GET", f"{JOBS}/{job['id']}{path}")
        assert response_body == (404, "not_found")
    assert await read_status_and_code(farm.other, "POST", f"{JOBS}/{job['id']}/cancel") == (
        404,
        "not_found",
    )
    http_job_body = {"kind": "http", "request": {"path": "/svc/x"}}
    http_job = await farm.submit_job(http_job_body)
    assert await read_status_and_code(farm.client, "GET", f"{JOBS}/{http_job['id']}") == (
        404,
        "not_found",
    )


async def test_idempotency_key_makes_one_job(farm: Farm) -> None:
    headers = {"Idempotency-Key": "k1"}
    job = await request_json(
        farm.client, "POST", JOBS, json={"workflow": GRAPH}, headers=headers, expected_status=201
    )
    for body in ({"workflow": GRAPH}, {"workflow": {"1": {"class_type": "Other"}}}):
        async with farm.client.post(JOBS, json=body, headers=headers) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (422, "idempotency_key_reuse")
        assert error["details"]["code"] == "idempotency_key_reused"
    assert error["details"].get("job_id") in (None, job["id"])
    # A submission that made no job leaves its key free.
    headers = {"Idempotency-Key": "k2"}
    bad_body: dict[str, Any] = {"workflow": {"nodes": [], "links": []}}
    status_and_code = await read_status_and_code(
        farm.client, "POST", JOBS, json=bad_body, headers=headers
    )
    assert status_and_code == (422, "workflow_format_ui")
    body = {"workflow": GRAPH}
    await request_json(farm.client, "POST", JOBS, json=body, headers=headers, expected_status=201)


async def test_jobs_are_listed_in_pages_and_by_their_labels(farm: Farm) -> None:
    ids = []
    for index in range(3):
        metadata = {"client": "acme" if index else "other", "run no": str(index)}
        body = {"workflow": GRAPH, "metadata": metadata}
        ids.append(
            (await request_json(farm.client, "POST", JOBS, json=body, expected_status=201))["id"]
        )
    await farm.submit_job({"kind": "http", "request": {"path": "/svc/x"}})
    first_page = await request_json(farm.client, "GET", f"{JOBS}?limit=2")
    assert [job["id"] for job in first_page["jobs"]] == [ids[2], ids[1]]
    last_page = await request_json(
        farm.client, "GET", f"{JOBS}?limit=2&cursor={first_page['next_cursor']}"
    )
    assert ([job["id"] for job in last_page["jobs"]], last_page["next_cursor"]) == ([ids[0]], None)
    labelled_page = await request_json(
        farm.client, "GET", JOBS, params={"metadata[client]": "acme"}
    )
    assert [job["id"] for job in labelled_page["jobs"]] == [ids[2], ids[1]]
    query = {"metadata[client]": "acme", "metadata[run no]": "1"}
    labelled_page = await request_json(farm.client, "GET", JOBS, params=query)
    assert [job["id"] for job in labelled_page["jobs"]] == [ids[1]]
    assert (await request_json(farm.other, "GET", JOBS))["jobs"] == []
    assert await read_status_and_code(farm.client, "GET", f"{JOBS}?cursor=x") == (
        400,
        "invalid_cursor",
    )
    query = {'metadata[a"]': "x"}
    status_and_code = await read_status_and_code(farm.client, "GET", JOBS, params=query)
    assert status_and_code == (400, "invalid_metadata_filter")


async def test_events_begin_with_the_state_and_continue_with_changes(farm: Farm) -> None:
    job = await request_json(
        farm.client, "POST", JOBS, json={"workflow": GRAPH}, expected_status=201
    )
    path = f"{JOBS}/{job['id']}/events"
    async with farm.client.get(path) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert await response.content.readline() == b"event: status\n"
        artifact = await finish_job(farm, job["id"])
        remaining_frames = (await response.text()).split("\n\n")
    event_lines = [
        line
        for frame in remaining_frames
        for line in frame.splitlines()
        if line.startswith("event: ")
    ]
    assert event_lines[-2:] == ["event: output", "event: status"]
    assert "event: progress" in event_lines
    assert event_lines.count("event: output") == 1
    # Whoever comes late gets the files and the end, and nothing of what was.
    late_frames = await read_frames(farm.client, path)
    assert [name for name, _ in late_frames] == ["output", "status"]
    assert late_frames[-1][1]["status"] == "succeeded"
    body = await request_json(farm.client, "GET", f"{JOBS}/{job['id']}")
    [output] = body["outputs"]
    # The same object, but for the moment at which it is told.
    late_frames[0][1].pop("url_expires_at"), output.pop("url_expires_at")
    assert late_frames[0][1] == output
    assert (output["node_id"], output["type"], output["id"]) == ("9", "image", artifact.id)
    assert output["url"] == f"{farm.url}{ASSETS}/{artifact.id}/content"
    async with farm.client.get(output["url"], headers={"Range": "bytes=0-3"}) as response:
        assert (response.status, await response.read()) == (206, PNG[:4])
    asset = await request_json(farm.client, "GET", f"{ASSETS}/{artifact.id}")
    assert (asset["job_id"], asset["hash"]) == (job["id"], None)
    body = await read_status_and_code(farm.client, "DELETE", f"{ASSETS}/{artifact.id}")
    assert body == (409, "asset_in_use")


async def test_the_end_is_reported_once_though_events_lag(farm: Farm) -> None:
    job = await request_json(
        farm.client, "POST", JOBS, json={"workflow": GRAPH}, expected_status=201
    )
    async with farm.client.get(f"{JOBS}/{job['id']}/events") as response:
        assert await response.content.readline() == b"event: status\n"
        await finish_job(farm, job["id"], row_ends_first=True)
        remaining_lines = (await response.text()).splitlines()
    event_lines = [line for line in remaining_lines if line.startswith("event: ")]
    assert event_lines == ["event: progress", "event: output", "event: status"]


async def test_cancelling_a_finished_job_is_harmless(farm: Farm) -> None:
    job = await request_json(
        farm.client, "POST", JOBS, json={"workflow": GRAPH}, expected_status=201
    )
    await finish_job(farm, job["id"])
    body = await request_json(farm.client, "POST", f"{JOBS}/{job['id']}/cancel")
    assert body["status"] == "succeeded"


async def test_uploads_are_found_by_content_only_by_their_tenant(farm: Farm) -> None:
    by_hash_path = f"{ASSETS}/by-hash/{HASH}"
    assert (await farm.client.head(by_hash_path)).status == 404
    asset = await upload(farm, expected_hash=HASH)
    assert (asset["hash"], asset["created_new"], asset["size_bytes"]) == (HASH, True, len(PNG))
    assert (asset["file_path"], asset["content_type"]) == ("cat.png", "image/png")
    assert (await farm.client.head(by_hash_path)).status == 200
    assert (await farm.other.head(by_hash_path)).status == 404, "others have no part in it"
    assert (await farm.client.head(f"{ASSETS}/by-hash/nonsense")).status == 404
    assert (await upload(farm))["created_new"] is False
    body = {"hash": HASH, "file_path": "again.png", "tags": ["input"]}
    second_asset = await request_json(
        farm.client, "POST", f"{ASSETS}/from-hash", json=body, expected_status=201
    )
    assert (second_asset["file_path"], second_asset["hash"], second_asset["created_new"]) == (
        "again.png",
        HASH,
        False,
    )
    assert second_asset["id"] != asset["id"]
    status_and_code = await read_status_and_code(
        farm.other, "POST", f"{ASSETS}/from-hash", json=body
    )
    assert status_and_code == (404, "blob_not_found")
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        status_and_code = await read_status_and_code(
            farm.other, method, f"{ASSETS}/{asset['id']}{path}"
        )
        assert status_and_code == (404, "not_found")


async def test_content_with_another_digest_is_refused(farm: Farm) -> None:
    data = build_upload_form(expected_hash=f"blake3:{'0' * 64}")
    assert await read_status_and_code(farm.client, "POST", ASSETS, data=data) == (
        409,
        "hash_mismatch",
    )
    assert (await farm.client.head(f"{ASSETS}/by-hash/{HASH}")).status == 404


async def test_upload_idempotency_key_stores_one_file(farm: Farm) -> None:
    headers = {"Idempotency-Key": "u1"}
    async with farm.client.post(ASSETS, data=build_upload_form(), headers=headers) as response:
        asset = await response.json()
        assert response.status == 201
    await farm.client.delete(f"{ASSETS}/{asset['id']}")
    # `/artifacts` stores the same content again.
    for path, status in ((ASSETS, 422), ("/artifacts", 201)):
        async with farm.client.post(path, data=build_upload_form(), headers=headers) as response:
            assert response.status == status, await response.text()


async def test_a_deleted_upload_is_visible_only_to_jobs_that_use_it(farm: Farm) -> None:
    asset = await upload(farm)
    reference = {"__type": "core/ASSET", "info": {"id": asset["id"]}}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": reference}}}
    await request_json(farm.client, "POST", JOBS, json={"workflow": graph}, expected_status=201)
    await request_json(farm.client, "DELETE", f"{ASSETS}/{asset['id']}", expected_status=204)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        status_and_code = await read_status_and_code(
            farm.client, method, f"{ASSETS}/{asset['id']}{path}"
        )
        assert status_and_code == (404, "not_found")
    assert (await farm.client.head(f"{ASSETS}/by-hash/{HASH}")).status == 404
    status_and_code = await read_status_and_code(
        farm.client, "POST", JOBS, json={"workflow": graph}
    )
    assert status_and_code == (422, "missing_asset")
    artifact = await ArtifactStore(farm.database).get_even_if_deleted("ann", asset["id"])
    assert await farm.blobs.get(artifact.sha256) == PNG


@pytest.mark.parametrize("info", [{"id": "art_" + "0" * 32}, {}, None])
async def test_a_missing_asset_is_not_found(farm: Farm, info: Any) -> None:
    reference = {"__type": "core/ASSET", "info": info}
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": reference}}}
    status_and_code = await read_status_and_code(
        farm.client, "POST", JOBS, json={"workflow": graph}
    )
    assert status_and_code == (422, "missing_asset")


async def test_validation_error_of_comfyui_is_returned(farm: Farm) -> None:
    comfyui_error = {
        "type": "value_not_in_list",
        "details": "no",
        "extra_info": {"input_name": "x"},
    }
    node_errors = {"error": {}, "node_errors": {"1": {"errors": [comfyui_error]}}}

    async def validate(pool: str, graph: Any, **_: Any) -> None:
        assert graph == GRAPH, "what looks like a reference is a text"
        raise InvalidGraph("no", details=node_errors)

    farm.validator.validate = validate
    async with farm.client.post(JOBS, json={"workflow": GRAPH}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (422, "invalid_workflow")
    detail = {"field": "x", "reason": "value_not_in_list", "message": "no"}
    assert error["details"]["node_errors"] == {"1": [detail]}


async def test_a_full_queue_returns_retry_after(farm: Farm) -> None:
    await LimitStore(farm.database).set(Limit(subject="owner:ann", open_jobs=1))
    async with farm.open_session(farm.key) as client:
        await request_json(client, "POST", JOBS, json={"workflow": GRAPH}, expected_status=201)
        async with client.post(JOBS, json={"workflow": GRAPH}) as response:
            error = (await response.json())["error"]
    assert (response.status, error["code"]) == (429, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


async def test_missing_keys_and_unknown_routes_have_v2_errors(farm: Farm) -> None:
    async with aiohttp.ClientSession(farm.url) as keyless_session:
        assert await read_status_and_code(keyless_session, "GET", JOBS) == (401, "unauthorized")
    assert await read_status_and_code(farm.client, "GET", f"{JOBS}/x/nothing") == (404, "not_found")
