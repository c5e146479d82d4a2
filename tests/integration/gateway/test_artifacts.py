"""Tests uploads and downloads on a real gateway."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moyin.store import artifacts as artifact_store
from tests.integration.gateway.fixtures import Farm

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 1000


async def upload_artifact(farm: Farm, data: Any, **options: Any) -> dict[str, Any]:
    async with farm.client.post("/artifacts", data=data, **options) as response:
        body: dict[str, Any] = await response.json()
        assert response.status == 201, body
        assert response.headers["location"] == body["url"]
        return body


async def test_download_returns_the_uploaded_file(farm: Farm) -> None:
    headers = {"content-type": "image/png"}
    artifact = await upload_artifact(farm, PNG, headers=headers, params={"name": "a b.png"})
    assert (artifact["name"], artifact["media_type"], artifact["size"]) == (
        "a b.png",
        "image/png",
        len(PNG),
    )
    async with farm.client.get(artifact["url"]) as response:
        assert await response.read() == PNG
        assert response.headers["etag"] == f'"{hashlib.sha256(PNG).hexdigest()}"'
        assert response.headers["content-type"] == "image/png"
        assert response.headers["content-disposition"] == 'inline; filename="a b.png"'
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["content-length"] == str(len(PNG))


async def test_form_body_is_accepted(farm: Farm) -> None:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", PNG, filename="../../etc/x.png", content_type="image/png")
    artifact = await upload_artifact(farm, form)
    assert (artifact["name"], artifact["media_type"], artifact["size"]) == (
        "x.png",
        "image/png",
        len(PNG),
    )


async def test_type_of_an_unnamed_file_is_detected(farm: Farm) -> None:
    artifact = await upload_artifact(farm, PNG)
    assert (artifact["name"], artifact["media_type"]) == ("upload.png", "image/png")


@pytest.mark.parametrize(
    "media_type", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml"]
)
async def test_files_that_could_run_scripts_are_downloads(farm: Farm, media_type: str) -> None:
    artifact = await upload_artifact(
        farm, b"<script>alert(1)</script>", headers={"content-type": media_type}
    )
    async with farm.client.get(artifact["url"]) as response:
        assert response.headers["content-type"] == "application/octet-stream"
        assert response.headers["content-disposition"].startswith("attachment;")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"].startswith("sandbox;")


@pytest.mark.parametrize(
    ("range_header", "status", "content", "content_range"),
    [
        ("bytes=0-3", 206, PNG[:4], f"bytes 0-3/{len(PNG)}"),
        ("bytes=8-", 206, PNG[8:], f"bytes 8-{len(PNG) - 1}/{len(PNG)}"),
        ("bytes=-5", 206, PNG[-5:], f"bytes {len(PNG) - 5}-{len(PNG) - 1}/{len(PNG)}"),
        ("bytes=5-999999999", 206, PNG[5:], f"bytes 5-{len(PNG) - 1}/{len(PNG)}"),
        ("bytes=999999999-", 416, b"", f"bytes */{len(PNG)}"),
        ("bytes=-0", 416, b"", f"bytes */{len(PNG)}"),
        ("bytes=5-2", 200, PNG, None),
        ("bytes=0-1,4-5", 200, PNG, None),
        ("lines=1-2", 200, PNG, None),
    ],
)
async def test_range_headers_are_served_ignored_or_refused(
    farm: Farm, range_header: str, status: int, content: bytes, content_range: str | None
) -> None:
    artifact = await upload_artifact(farm, PNG)
    async with farm.client.get(artifact["url"], headers={"range": range_header}) as response:
        assert response.status == status
        assert await response.read() == content
        assert response.headers.get("content-range") == content_range


async def test_conditional_and_head_requests_are_answered(farm: Farm) -> None:
    artifact = await upload_artifact(farm, PNG)
    async with farm.client.head(artifact["url"]) as response:
        etag = response.headers["etag"]
        assert (response.status, response.headers["content-length"]) == (200, str(len(PNG)))
    async with farm.client.get(artifact["url"], headers={"if-none-match": etag}) as response:
        assert response.status == 304
    stale_range_headers = {"range": "bytes=0-3", "if-range": '"other"'}
    async with farm.client.get(artifact["url"], headers=stale_range_headers) as response:
        assert response.status == 200


async def test_artifact_is_visible_only_to_its_owner(farm: Farm) -> None:
    artifact = await upload_artifact(farm, PNG)
    async with farm.other.get(artifact["url"]) as response:
        assert (response.status, (await response.json())["code"]) == (404, "artifact_not_found")


async def test_an_idempotency_key_keeps_one_file(farm: Farm) -> None:
    headers = {"Idempotency-Key": "k"}
    first_artifact = await upload_artifact(farm, PNG, headers=headers)
    async with farm.client.post("/artifacts", data=PNG, headers=headers) as response:
        assert (await response.json())["id"] == first_artifact["id"]
        assert response.headers["idempotent-replayed"] == "true"
    async with farm.client.post("/artifacts", data=b"other", headers=headers) as response:
        assert response.status == 422
    async with farm.other.post("/artifacts", data=b"other", headers=headers) as response:
        assert (await response.json())["id"] != first_artifact["id"]


async def test_a_deleted_upload_can_be_uploaded_again_with_its_key(farm: Farm) -> None:
    headers = {"Idempotency-Key": "again"}
    first_artifact = await upload_artifact(farm, PNG, headers=headers)
    async with farm.client.delete(first_artifact["url"]) as response:
        assert response.status == 204
    async with farm.client.post("/artifacts", data=b"other", headers=headers) as response:
        assert response.status == 422, "open jobs may still read the first content"
    async with farm.client.post("/artifacts?name=b.png", data=PNG, headers=headers) as response:
        assert response.status == 201 and "idempotent-replayed" not in response.headers
        second_artifact = await response.json()
    assert (second_artifact["id"], second_artifact["name"]) == (first_artifact["id"], "b.png")
    async with farm.client.get(second_artifact["url"]) as response:
        assert await response.read() == PNG


async def test_an_idempotency_key_that_many_use_at_once_keeps_one_file(farm: Farm) -> None:
    async def upload_numbered(number: int) -> tuple[int, bytes, str]:
        data, headers = b"file %d" % number, {"Idempotency-Key": "race"}
        async with farm.client.post("/artifacts", data=data, headers=headers) as response:
            return response.status, data, (await response.json()).get("url", "")

    uploads = await asyncio.gather(*map(upload_numbered, range(8)))
    (accepted_upload,) = [(data, url) for status, data, url in uploads if status == 201]
    assert [status for status, _, _ in uploads].count(422) == 7
    async with farm.client.get(accepted_upload[1]) as response:
        assert await response.read() == accepted_upload[0]


@pytest.mark.parametrize(
    ("data", "headers", "field"),
    [
        (b"", {}, "file"),
        (b"x", {"content-type": "nonsense"}, "Content-Type"),
        (b"--x\r\n", {"content-type": "multipart/form-data; boundary=x"}, "file"),
        (b"nothing", {"content-type": "multipart/form-data"}, None),
    ],
)
async def test_invalid_uploads_are_refused(
    farm: Farm, data: bytes, headers: dict[str, str], field: str | None
) -> None:
    async with farm.client.post("/artifacts", data=data, headers=headers) as response:
        problem = await response.json()
    assert (response.status, problem["code"]) == (400, "invalid_request"), problem
    assert problem.get("field") == field


async def test_interrupted_upload_leaves_no_files(farm: Farm) -> None:
    async def generate_broken_body() -> Any:
        yield PNG
        raise ConnectionResetError

    with pytest.raises(aiohttp.ClientError):
        await farm.client.post("/artifacts", data=generate_broken_body())

    async def generate_too_large_body() -> Any:
        for _ in range(64):
            yield b"x" * 65_536

    async with farm.client.post("/artifacts", data=generate_too_large_body()) as response:
        assert response.status == 413
    for _ in range(100):
        remaining_files = list(Path(tempfile.gettempdir()).glob("moyin-upload-*"))
        if not remaining_files:
            break
        await farm.fetch_job(
            (await farm.submit_job({"kind": "http", "request": {"path": "/x"}}))["id"]
        )
    assert remaining_files == []


@pytest.mark.parametrize("path", ["/artifacts", "/upload/image", "/api/v2/assets"])
async def test_an_upload_beyond_the_quota_is_refused(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    enforce_quota = partial(artifact_store.enforce_upload_quota)

    def enforce_small_quota(connection: Any, owner: str, size: int, *, max_bytes: int) -> None:
        assert max_bytes == artifact_store.MAX_UPLOAD_BYTES
        enforce_quota(connection, owner, size, max_bytes=1)

    monkeypatch.setattr(artifact_store, "enforce_upload_quota", enforce_small_quota)
    content = PNG + path.encode()
    form = aiohttp.FormData()
    form.add_field("image" if "image" in path else "file", content, filename="a.png")
    async with farm.client.post(path, data=form) as response:
        assert response.status == 413
        assert "file_storage_full" in await response.text()
    assert not await farm.blobs.exists(hashlib.sha256(content).hexdigest())
