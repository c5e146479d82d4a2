"""Tests lists, thumbnails, links and deletion of files over HTTP, without a gatekeeper."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image

from deployments.errors import render_error
from deployments.gateway.routes.archives import new_archive_routes
from deployments.gateway.routes.artifacts import new_artifact_routes, new_signed_link_routes
from deployments.ingress import new_fastapi
from moyin.access.gatekeeper.asgi import ASGIApp
from moyin.access.gatekeeper.context import RequestContext
from moyin.domain.identity import Identity
from moyin.domain.job import StepKind
from moyin.render.imaging import PictureConverter, PictureProcesses
from moyin.render.templates.catalog import SHIPPED_FOLDER, TemplateCatalog
from moyin.store.artifacts import ArtifactStore
from moyin.store.blobs import BlobStore
from moyin.store.jobs import JobStore, NewJob
from moyin.store.schema import artifacts as artifacts_table
from moyin.store.schema import jobs as jobs_table
from moyin.store.sql import Database
from tests.videos import make_lying_video, make_video

SIGNING_KEY = b"k" * 32


def identify(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that requests get the identity that their headers describe.

    ``x-owner`` is the tenant; ``x-job`` makes it an event token for that job.
    """

    async def identified(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        owner = headers.get(b"x-owner", b"").decode()
        job = headers[b"x-job"].decode() if b"x-job" in headers else None
        identity = Identity(owner=owner, key_id="k", job=job) if owner else None
        await app(
            {**scope, "moyin": RequestContext(request_id="r", identity=identity)}, receive, send
        )

    return identified


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ArtifactStore]:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await database.ensure_schema()
    yield ArtifactStore(database)
    await database.close()


@pytest.fixture
async def client(tmp_path: Path, store: ArtifactStore) -> AsyncIterator[httpx.AsyncClient]:
    jobs = JobStore(Database(f"sqlite:///{tmp_path / 'moyin.db'}"))
    blobs, processes = BlobStore(f"file://{tmp_path / 'blobs'}"), PictureProcesses()
    parts = (store, blobs, PictureConverter(blobs, processes), SIGNING_KEY)
    app = new_fastapi("test", errors=render_error, description="")
    app.include_router(new_signed_link_routes(*parts))
    app.include_router(new_artifact_routes(*parts, TemplateCatalog([SHIPPED_FOLDER])))
    app.include_router(new_archive_routes(store, jobs, blobs, SIGNING_KEY))
    transport = httpx.ASGITransport(app=identify(app))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-owner": "ann"}
    ) as client:
        yield client
    await processes.close()


def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


async def upload(client: httpx.AsyncClient, content: bytes, kind: str = "image/png") -> str:
    response = await client.post("/artifacts", content=content, headers={"content-type": kind})
    assert response.status_code == 201
    return str(response.json()["url"])


async def test_a_thumbnail_is_a_small_webp_that_never_changes(client: httpx.AsyncClient) -> None:
    url = await upload(client, png(400, 200))
    response = await client.get(url, params={"w": 100})
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    assert Image.open(BytesIO(response.content)).size == (100, 50)
    assert "immutable" in response.headers["cache-control"]
    etag = response.headers["etag"]
    repeated_response = await client.get(url, params={"w": 100}, headers={"if-none-match": etag})
    assert (repeated_response.status_code, repeated_response.content) == (304, b"")
    assert (await client.get(url)).headers["etag"] != etag
    wide_thumbnail = await client.get(url, params={"w": 1024})
    assert Image.open(BytesIO(wide_thumbnail.content)).size == (400, 200)


@pytest.mark.parametrize(
    ("container", "codec", "kind"),
    [
        ("mp4", "h264", "video/mp4"),
        ("mov", "mpeg4", "video/quicktime"),
        ("webm", "libvpx-vp9", "video/webm"),
        ("matroska", "ffv1", "video/x-matroska"),
    ],
)
async def test_the_thumbnail_of_a_video_is_its_poster(
    client: httpx.AsyncClient, container: str, codec: str, kind: str
) -> None:
    url = await upload(client, make_video(container, codec, size=(320, 160)), kind)
    response = await client.get(url, params={"w": 64})
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    assert "immutable" in response.headers["cache-control"]
    assert Image.open(BytesIO(response.content)).size == (64, 32)


async def test_a_video_with_too_many_pixels_has_no_poster(client: httpx.AsyncClient) -> None:
    url = await upload(client, make_lying_video(16_000), "video/quicktime")
    response = await client.get(url, params={"w": 64})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (413, "picture_too_large")
    assert (problem["field"], problem["width"], problem["height"]) == ("w", 16_000, 16_000)


@pytest.mark.parametrize(
    ("content", "kind", "width"),
    [
        (png(8, 8), "image/png", 63),
        (png(8, 8), "image/png", 1025),
        (b"text", "text/plain", 64),
        (b"\x89PNG\r\n\x1a\n", "image/png", 64),
        (b"\x89PNG\r\n\x1a\n", "video/mp4", 64),
        (b"#EXTM3U\nfile:///etc/passwd\n", "video/mp4", 64),
        (b"RIFF", "video/x-msvideo", 64),
    ],
)
async def test_an_impossible_thumbnail_is_refused(
    client: httpx.AsyncClient, content: bytes, kind: str, width: int
) -> None:
    response = await client.get(await upload(client, content, kind), params={"w": width})
    problem = response.json()
    assert (response.status_code, problem["code"], problem["field"]) == (
        400,
        "invalid_request",
        "w",
    )


async def test_a_link_returns_one_file_to_anybody(client: httpx.AsyncClient) -> None:
    url, other_url = await upload(client, png(400, 200)), await upload(client, b"other")
    link = (await client.post(f"{url}/link", json={"expires_in": 60})).json()
    no_owner = {"x-owner": ""}
    response = await client.get(link["url"], headers=no_owner)
    assert (response.status_code, response.content) == (200, png(400, 200))
    small_thumbnail = await client.get(link["url"], params={"w": 64}, headers=no_owner)
    assert Image.open(BytesIO(small_thumbnail.content)).size == (64, 32)
    assert small_thumbnail.headers["cache-control"] == "private, max-age=3600"
    tampered_url = link["url"].replace(".", ".x", 1)
    assert (await client.get(tampered_url, headers=no_owner)).status_code == 401
    assert (await client.get(other_url, headers=no_owner)).status_code == 401
    assert (await client.delete(url)).status_code == 204
    assert (await client.get(link["url"], headers=no_owner)).status_code == 404


@pytest.mark.parametrize("seconds", [0, -1, 86_401, "60", 1.5, None])
async def test_the_lifetime_of_a_link_is_bounded(client: httpx.AsyncClient, seconds: Any) -> None:
    url = await upload(client, b"x")
    response = await client.post(f"{url}/link", json={"expires_in": seconds})
    assert (response.status_code, response.json()["field"]) == (400, "expires_in")


async def test_a_link_needs_no_body_and_an_artifact_of_the_caller(
    client: httpx.AsyncClient,
) -> None:
    url = await upload(client, b"x")
    assert (await client.post(f"{url}/link")).status_code == 200
    response = await client.post(f"{url}/link", headers={"x-owner": "bob"})
    assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")


async def test_files_are_listed_until_they_are_deleted(client: httpx.AsyncClient) -> None:
    urls = [await upload(client, b"%d" % number) for number in range(3)]
    page = (await client.get("/artifacts", params={"limit": 2})).json()
    assert [artifact["url"] for artifact in page["artifacts"]] == [urls[2], urls[1]]
    assert page["artifacts"][0]["job"] is None
    assert (await client.delete(urls[1])).status_code == 204
    parameters = {"cursor": page["next_cursor"]}
    second_page = (await client.get("/artifacts", params=parameters)).json()
    assert [artifact["url"] for artifact in second_page["artifacts"]] == [urls[0]]
    for method in ("GET", "DELETE"):
        response = await client.request(method, urls[1])
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    response = await client.get("/artifacts", params={"offset": "1"})
    assert (response.status_code, response.json()["field"]) == (400, "offset")
    response = await client.get("/artifacts", params={"cursor": "nonsense"})
    assert (response.status_code, response.json()["field"]) == (400, "cursor")
    others_response = await client.get("/artifacts", headers={"x-owner": "bob"})
    assert others_response.json() == {"artifacts": [], "next_cursor": None}


async def test_an_event_token_reads_files_of_its_job_and_nothing_else(
    client: httpx.AsyncClient, store: ArtifactStore
) -> None:
    url = await upload(client, png(100, 80))
    uploaded_artifact = await store.get("ann", url.rpartition("/")[2])
    artifact_of_job = replace(uploaded_artifact, id="art_" + "1" * 32)
    await store.add(artifact_of_job, owner="ann", job_id="j")
    path, token = f"/artifacts/{artifact_of_job.id}", {"x-job": "j"}
    for params in ({}, {"w": 64}):
        response = await client.get(path, params=params, headers=token)
        assert response.status_code == 200
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["cache-control"] == "private, max-age=3600"
    for other_url, headers in (
        (path, {"x-job": "k"}),
        (url, token),
        (path, {**token, "x-owner": "b"}),
    ):
        response = await client.get(other_url, headers=headers)
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    for response in (
        await client.get("/artifacts", headers=token),
        await client.delete(path, headers=token),
        await client.post(f"{path}/link", headers=token),
        await client.post("/artifacts", content=b"x", headers=token),
    ):
        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
    assert (await client.get(path)).headers["cross-origin-resource-policy"] == "same-site"


async def test_favourites_are_marked_and_listed(client: httpx.AsyncClient) -> None:
    marked_url, other_url = [await upload(client, png(64 + number, 64)) for number in range(2)]
    for _ in range(2):
        assert (await client.put(f"{marked_url}/favourite")).status_code == 204

    async def find(**query: str) -> list[tuple[str, bool]]:
        response = await client.get("/artifacts", params=query)
        return [(item["url"], item["favourite"]) for item in response.json()["artifacts"]]

    assert await find(favourite="true") == [(marked_url, True)]
    assert await find(favourite="false") == [(other_url, False)]
    assert await find() == [(other_url, False), (marked_url, True)]
    assert (await client.delete(f"{marked_url}/favourite")).status_code == 204
    assert await find(favourite="true") == []
    assert await find(template="swatch") == await find(user="u") == []
    assert await find(**{"metadata.project": "dawn"}) == []


async def test_a_favourite_of_another_tenant_is_not_found(client: httpx.AsyncClient) -> None:
    url = await upload(client, png(64, 64))
    other_owner = {"x-owner": "bob"}
    for method in ("PUT", "DELETE"):
        response = await client.request(method, f"{url}/favourite", headers=other_owner)
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    listed_artifacts = (await client.get("/artifacts")).json()["artifacts"]
    assert [item["favourite"] for item in listed_artifacts] == [False]


JOB = "00000000-0000-4000-8000-00000000000a"


async def test_an_archive_has_the_chosen_files_and_needs_no_key(client: httpx.AsyncClient) -> None:
    contents = [png(64 + number, 64) for number in range(3)]
    urls = [await upload(client, content) for content in contents]
    ids = [url.rpartition("/")[2] for url in urls]
    body = {"artifacts": [ids[2], ids[0], ids[2]], "name": "../shots/day 1"}
    link = (await client.post("/artifacts/archive", json=body)).json()
    assert (link["files"], link["url"].rpartition("/")[2]) == (2, "day%201.zip")
    no_owner = {"x-owner": ""}
    head = await client.head(link["url"], headers=no_owner)
    response = await client.get(link["url"], headers=no_owner)
    assert (head.status_code, response.status_code) == (200, 200)
    for name, value in {
        "content-length": str(link["size"]),
        "content-type": "application/zip",
        "content-disposition": 'attachment; filename="day 1.zip"',
        "cache-control": "private, no-store",
        "referrer-policy": "no-referrer",
    }.items():
        assert head.headers[name] == response.headers[name] == value
    assert len(response.content) == link["size"]
    with ZipFile(BytesIO(response.content)) as archive:
        assert archive.namelist() == ["upload.png", "upload (2).png"]
        assert [archive.read(name) for name in archive.namelist()] == [contents[2], contents[0]]
    tampered_url = link["url"].replace(".", ".x", 1)
    assert (await client.get(tampered_url, headers=no_owner)).status_code == 401
    assert (await client.delete(urls[0])).status_code == 204
    assert (await client.get(link["url"], headers=no_owner)).status_code == 404


async def test_an_archive_of_a_job_has_all_its_files_in_their_order(
    client: httpx.AsyncClient, store: ArtifactStore, tmp_path: Path
) -> None:
    database = Database(f"sqlite:///{tmp_path / 'moyin.db'}")
    await JobStore(database).create(
        NewJob(
            id=JOB, owner="ann", kind="render", spec="0" * 64, heads=((StepKind.RENDER, "default"),)
        )
    )
    response = await client.post("/artifacts/archive", json={"job": JOB})
    assert (response.status_code, response.json()["field"]) == (400, "job")
    for number in range(3):
        url = await upload(client, b"%d" % number)
        uploaded_artifact = await store.get("ann", url.rpartition("/")[2])
        artifact = replace(uploaded_artifact, id=f"art_{3 - number:032x}", name="a.txt")
        await store.add(artifact, owner="ann", job_id=JOB)
    link = (await client.post("/artifacts/archive", json={"job": JOB})).json()
    assert link["url"].endswith(f"/{JOB}.zip")
    response = await client.get(link["url"], headers={"x-owner": ""})
    with ZipFile(BytesIO(response.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a.txt": b"0",
            "a (2).txt": b"1",
            "a (3).txt": b"2",
        }
    others_response = await client.post(
        "/artifacts/archive", json={"job": JOB}, headers={"x-owner": "bob"}
    )
    assert (others_response.status_code, others_response.json()["code"]) == (404, "job_not_found")
    nul_response = await client.post("/artifacts/archive", json={"job": "a\0"})
    assert (nul_response.status_code, nul_response.json()["field"]) == (400, "job")
    for table, column in ((artifacts_table, "job_id"), (jobs_table, "id")):
        await database.execute(sa.delete(table).where(table.c[column] == JOB))
    response = await client.get(link["url"], headers={"x-owner": ""})
    assert (response.status_code, response.json()["code"]) == (404, "job_not_found")


async def test_other_tenants_files_are_in_no_archive(client: httpx.AsyncClient) -> None:
    own_id = (await upload(client, b"x")).rpartition("/")[2]
    body = {"artifacts": [own_id]}
    others_response = await client.post("/artifacts/archive", json=body, headers={"x-owner": "bob"})
    unknown = await client.post("/artifacts/archive", json={"artifacts": [own_id, "nonsense"]})
    for response in (others_response, unknown):
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, None),
        ({"artifacts": []}, None),
        ({"artifacts": ["art_1"], "job": JOB}, None),
        ({"artifacts": ["art_1"] * 201}, "artifacts"),
        ({"artifacts": "art_1"}, "artifacts"),
        ({"artifacts": [1]}, "artifacts.0"),
        ({"artifacts": ["art_1"], "expires_in": 3601}, "expires_in"),
        ({"artifacts": ["art_1"], "name": "n" * 201}, "name"),
        ({"artifacts": ["art_1"], "path": "/etc"}, "path"),
    ],
)
async def test_a_wrong_request_for_an_archive_is_refused(
    client: httpx.AsyncClient, body: dict[str, Any], field: str | None
) -> None:
    response = await client.post("/artifacts/archive", json=body)
    problem = response.json()
    assert (response.status_code, problem["code"], problem.get("field")) == (
        400,
        "invalid_request",
        field,
    )


async def test_the_link_of_the_largest_archive_fits_into_a_request_line(
    client: httpx.AsyncClient,
) -> None:
    ids = [(await upload(client, b"%d" % number)).rpartition("/")[2] for number in range(200)]
    link = (await client.post("/artifacts/archive", json={"artifacts": ids})).json()
    assert link["files"] == 200
    assert len(link["url"]) < 7_000
    assert (await client.get(link["url"], headers={"x-owner": ""})).status_code == 200
