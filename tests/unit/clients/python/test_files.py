from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from moyin_client import MoyinError
from tests.unit.clients.python.conftest import AnyClient
from tests.unit.clients.python.scripted_gateway import (
    LOST,
    Reply,
    ScriptedGateway,
    json_reply,
    problem_reply,
)

STORED = {
    "id": "art_1",
    "url": "/artifacts/art_1",
    "name": "ü.png",
    "media_type": "image/png",
    "size": 3,
}
# More than is read at a time.
LARGE = bytes(range(256)) * 3_000


async def test_an_upload_is_repeated_as_a_whole_with_its_key(
    client: AnyClient, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    (tmp_path / "ü.png").write_bytes(LARGE)
    gateway.script("POST", "/artifacts", LOST, json_reply(STORED, 201))
    artifact = await client.call("upload", tmp_path / "ü.png")
    assert (artifact.id, artifact.name) == ("art_1", "ü.png")
    assert [request.body for request in gateway.requests] == [LARGE, LARGE]
    assert gateway.requests[0].query == {"name": "ü.png"}
    assert gateway.requests[0].headers["content-type"] == "image/png"
    keys = [request.headers["idempotency-key"] for request in gateway.requests]
    assert keys[0] == keys[1]


async def test_bytes_are_uploaded(client: AnyClient, gateway: ScriptedGateway) -> None:
    gateway.script("POST", "/artifacts", json_reply(STORED, 201), json_reply(STORED, 201))
    await client.call("upload", b"abc", name="a.bin", media_type="text/plain")
    await client.call("upload", b"")
    first_request, second_request = gateway.requests
    assert (first_request.body, first_request.headers["content-type"], first_request.query) == (
        b"abc", "text/plain", {"name": "a.bin"},
    )  # fmt: skip
    assert (second_request.body, second_request.query) == (b"", {})
    assert second_request.headers["content-type"] == "application/octet-stream"


async def test_an_interrupted_download_starts_again(
    client: AnyClient, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    broken_reply = Reply(pieces=(LARGE[:100_000],), breaks=True)
    short_reply = Reply(headers={"content-length": str(len(LARGE))}, body=LARGE[:5], breaks=True)
    whole_reply = Reply(body=LARGE)
    gateway.script(
        "GET", "/artifacts/art_1", broken_reply, short_reply, whole_reply, broken_reply, whole_reply
    )
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    assert await client.call("download", "art_1", str(target)) == target
    assert target.read_bytes() == LARGE
    assert await client.call("download", "art_1", width=256) == LARGE
    assert [request.query for request in gateway.requests] == [
        {},
        {},
        {},
        {"w": "256"},
        {"w": "256"},
    ]
    assert list(tmp_path.iterdir()) == [target]


async def test_a_failed_download_leaves_the_file_as_it_was(
    client: AnyClient, gateway: ScriptedGateway, tmp_path: Path
) -> None:
    broken_reply = Reply(pieces=(b"half",), breaks=True)
    gateway.script(
        "GET", "/artifacts/art_1", broken_reply, problem_reply(404, "artifact_not_found")
    )
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with pytest.raises(MoyinError) as exc_info:
        await client.call("download", "art_1", target)
    assert exc_info.value.code == "artifact_not_found"
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


async def test_files_are_listed_linked_and_deleted(
    client: AnyClient, gateway: ScriptedGateway
) -> None:
    listed_artifact = STORED | {"job": "j1", "created_at": "2026-11-28T12:00:00Z"}
    gateway.script(
        "GET", "/artifacts", json_reply({"artifacts": [listed_artifact], "next_cursor": None})
    )
    link = {"url": "/files/signed/abc/a.png", "expires_at": "2026-11-28T13:00:00Z"}
    gateway.script("POST", "/artifacts/art_1/link", json_reply(link))
    gateway.script(
        "DELETE",
        "/artifacts/art_1",
        LOST,
        problem_reply(404, "artifact_not_found"),
        Reply(status=204),
    )
    [artifact] = await client.collect("artifacts", job="j1", media_type="image/*")
    assert (artifact.job, artifact.created_at) == ("j1", datetime(2026, 11, 28, 12, tzinfo=UTC))
    assert gateway.requests[0].query == {"job": "j1", "media_type": "image/*"}
    created_link = await client.call("link", artifact, expires_in=600)
    assert created_link.url == gateway.url + "/files/signed/abc/a.png"
    assert gateway.requests[1].json == {"expires_in": 600}
    await client.call("delete_artifact", artifact)
    await client.call("delete_artifact", "art_1")


async def test_the_secret_of_webhooks_is_read(client: AnyClient, gateway: ScriptedGateway) -> None:
    gateway.script("GET", "/jobs/webhook-secret", json_reply({"secret": "whsec_YQ=="}))
    assert await client.call("webhook_secret") == "whsec_YQ=="
