"""Tests the artifact store in a real S3, below the real gateway and worker."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from moyin.errors import ServiceUnavailable
from moyin.store.blobs import BlobStore
from tests.blob_contract import BlobContract
from tests.integration.gateway.fixtures import Farm, ScriptedService
from tests.integration.servers import TemporalServer, ValkeyServer
from tests.integration.store.s3_server import BUCKET, S3Server, s3_server

__all__ = ["s3_server"]

WRITE = """
import asyncio, sys
from moyin.store.blobs import BlobStore
print(asyncio.run(BlobStore(sys.argv[1]).put(sys.argv[2].encode())))
"""
CHAT = {
    "kind": "chat",
    "request": {"model": "auto", "messages": [{"role": "user", "content": "hello"}]},
}


@pytest.fixture(autouse=True)
def _set_aws_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url() -> str:
    return f"s3://{BUCKET}/{secrets.token_hex(4)}/below"


@pytest.fixture
def blobs(url: str) -> BlobStore:
    return BlobStore(url)


class TestS3BlobStore(BlobContract):
    pass


async def test_objects_are_stored_under_the_prefix_of_the_url(
    blobs: BlobStore, url: str, s3_server: S3Server
) -> None:
    digest = await blobs.put(b"abc")
    key = f"{url.removeprefix(f's3://{BUCKET}/')}/{digest[:2]}/{digest[2:4]}/{digest}"
    client = s3_server.create_client()
    assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"abc"
    client.close()


@pytest.mark.parametrize("uses_file", [False, True])
async def test_known_content_becomes_a_new_artifact_without_an_upload(
    blobs: BlobStore,
    url: str,
    s3_server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uses_file: bool,
) -> None:
    source_path = tmp_path / "source"
    source_path.write_bytes(b"abc")
    digest = await blobs.put(b"abc")
    key = f"{url.removeprefix(f's3://{BUCKET}/')}/{digest[:2]}/{digest[2:4]}/{digest}"
    client = s3_server.create_client()
    modified_before = client.head_object(Bucket=BUCKET, Key=key)["LastModified"]
    assert await blobs.renew(digest)
    assert client.head_object(Bucket=BUCKET, Key=key)["LastModified"] == modified_before
    # As if it were older than that.
    monkeypatch.setattr("moyin.store.blobs._RECENT", timedelta(hours=-1))
    async with asyncio.timeout(30):
        # S3 counts in seconds.
        while client.head_object(Bucket=BUCKET, Key=key)["LastModified"] == modified_before:
            await asyncio.sleep(0.2)
            await (blobs.put_file(source_path) if uses_file else blobs.renew(digest))
    client.close()
    assert await blobs.get(digest) == b"abc"
    assert not await blobs.renew("0" * 64)


async def test_writes_of_other_processes_are_visible(blobs: BlobStore, url: str) -> None:
    earlier_digest = await blobs.put(b"there before")
    content = "written elsewhere"
    digest = await BlobStore(f"s3://{BUCKET}/elsewhere").put(content.encode())
    assert not await blobs.exists(digest)
    with pytest.raises(FileNotFoundError):
        await blobs.get(digest)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", "-W", "error", "-c", WRITE, url, content,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    output, stderr = await process.communicate()
    assert (output.decode().strip(), process.returncode) == (digest, 0), stderr.decode()
    # Its connections are closed: nobody warns at its end.
    assert b"Unclosed" not in stderr and b"Warning" not in stderr, stderr.decode()
    assert await blobs.exists(digest)
    assert await blobs.get(digest) == content.encode()
    assert await blobs.exists(earlier_digest)


async def test_large_file_is_uploaded_in_parts(blobs: BlobStore, tmp_path: Path) -> None:
    source_path = tmp_path / "source"
    with source_path.open("wb") as file:
        for number in range(50):
            file.write(number.to_bytes() * 1024 * 1024)
    blob = await blobs.put_file(source_path)
    await blobs.copy_to(blob.sha256, tmp_path / "copy")
    assert (await blobs.put_file(tmp_path / "copy")) == blob
    part_border = 32 * 1024 * 1024
    border_chunks = [
        c async for c in blobs.read_chunks(blob.sha256, start=part_border - 2, end=part_border + 2)
    ]
    assert b"".join(border_chunks) == b"\x1f\x1f\x20\x20"


async def test_a_missing_bucket_is_an_error(tmp_path: Path, s3_server: S3Server) -> None:
    await _check_all_fail(BlobStore("s3://nowhere/below"), tmp_path)
    client = s3_server.create_client()
    bucket_names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
    client.close()
    assert bucket_names == [BUCKET]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
async def test_store_with_wrong_keys_fails(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong")
    await _check_all_fail(BlobStore(url), tmp_path)


async def test_store_without_keys_fails(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    await _check_all_fail(BlobStore(url), tmp_path)


async def test_cancelled_calls_close_their_connection(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_event, disconnect_event = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        request_event.set()
        await reader.read()
        disconnect_event.set()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{_get_port(server)}")
        get_task = asyncio.create_task(BlobStore(url).get("0" * 64))
        await request_event.wait()
        get_task.cancel()
        # Left alone it would hold the connection for ten seconds.
        async with asyncio.timeout(5):
            await disconnect_event.wait()
        assert get_task.cancelled()


@pytest.fixture
async def farm(
    tmp_path: Path,
    temporal_server: TemporalServer,
    valkey_server: ValkeyServer,
    url: str,
) -> AsyncIterator[Farm]:
    farm = Farm(tmp_path, temporal_server, valkey_server, ScriptedService())
    farm.artifacts_url = url
    await farm.open()
    yield farm
    await farm.close()


async def test_job_and_its_files_are_stored_in_s3(farm: Farm) -> None:
    await farm.start_worker()
    job = await farm.submit_job(CHAT)
    ended_job = await farm.wait_for_status(job["id"])
    assert (ended_job["status"], ended_job["outputs"][0]["text"]) == ("succeeded", "re: hello")


async def test_gateway_answers_while_the_server_restarts(farm: Farm, s3_server: S3Server) -> None:
    content = bytes(range(256)) * 4000
    async with farm.client.post("/artifacts", data=content) as response:
        assert response.status == 201
        artifact_path = (await response.json())["url"]
    headers = {"range": "bytes=1000-999999"}
    async with farm.client.get(artifact_path, headers=headers) as response:
        assert (response.status, await response.read()) == (206, content[1000:1_000_000])
    s3_server.kill()
    try:
        for method, path, body in (("GET", artifact_path, None), ("POST", "/artifacts", content)):
            async with farm.client.request(method, path, data=body) as response:
                response_body = await response.json()
                assert (response.status, response_body["code"]) == (503, "service_unavailable"), (
                    response_body
                )
                assert int(response.headers["retry-after"]) > 0
    finally:
        s3_server.start()
    async with farm.client.get(artifact_path) as response:
        assert (response.status, await response.read()) == (200, content)
    async with farm.client.post("/artifacts", data=b"new" + content) as response:
        assert response.status == 201


def _get_port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _check_all_fail(blobs: BlobStore, folder: Path) -> None:
    """Assert that every call fails with an error about the whole store, not about one blob."""
    source_path = folder / "source"
    source_path.write_bytes(b"abc")
    digest = "0" * 64
    for operation in (
        blobs.put(b"abc"),
        blobs.put_file(source_path),
        blobs.get(digest),
        blobs.exists(digest),
        blobs.copy_to(digest, folder / "copy"),
        anext(blobs.read_chunks(digest)),
        anext(blobs.read_chunks(digest, end=1)),
    ):
        with pytest.raises(ServiceUnavailable):
            await operation
    assert [path.name for path in folder.iterdir()] == ["source"]
