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
from tests.videos import make_video, make_video_with_false_size

SIGNING_KEY = b"k" * 32


def add_identity(app: ASGIApp) -> ASGIApp:
    """Wrap an app so that requests get the identity that their headers describe.

    ``x-owner`` is the tenant; ``x-job`` makes it an event token for that job.
    """

    async def call_with_identity(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        owner = headers.get(b"x-owner", b"").decode()
        job = headers[b"x-job"].decode() if b"x-job" in headers else None
        identity = Identity(owner=owner, key_id="k", job=job) if owner else None
        await app(
            {**scope, "moyin": RequestContext(request_id="r", identity=identity)}, receive, send
        )

    return call_with_identity


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
    services = (store, blobs, PictureConverter(blobs, processes), SIGNING_KEY)
    app = new_fastapi("test", errors=render_error, description="")
    app.include_router(new_signed_link_routes(*services))
    app.include_router(new_artifact_routes(*services, TemplateCatalog([SHIPPED_FOLDER])))
    app.include_router(new_archive_routes(store, jobs, blobs, SIGNING_KEY))
    transport = httpx.ASGITransport(app=add_identity(app))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"x-owner": "ann"}
    ) as client:
        yield client
    await processes.close()


def make_png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


async def upload_artifact(
    client: httpx.AsyncClient, content: bytes, media_type: str = "image/png"
) -> str:
    response = await client.post(
        "/artifacts", content=content, headers={"content-type": media_type}
    )
    assert response.status_code == 201
    return str(response.json()["url"])


async def test_a_thumbnail_is_a_small_webp_that_never_changes(client: httpx.AsyncClient) -> None:
    url = await upload_artifact(client, make_png(400, 200))
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
    ("container", "codec", "media_type"),
    [
        ("mp4", "h264", "video/mp4"),
        ("mov", "mpeg4", "video/quicktime"),
        ("webm", "libvpx-vp9", "video/webm"),
        ("matroska", "ffv1", "video/x-matroska"),
    ],
)
async def test_the_thumbnail_of_a_video_is_its_poster(
    client: httpx.AsyncClient, container: str, codec: str, media_type: str
) -> None:
    url = await upload_artifact(client, make_video(container, codec, size=(320, 160)), media_type)
    response = await client.get(url, params={"w": 64})
    assert (response.status_code, response.headers["content-type"]) == (200, "image/webp")
    assert "immutable" in response.headers["cache-control"]
    assert Image.open(BytesIO(response.content)).size == (64, 32)


async def test_a_video_with_too_many_pixels_has_no_poster(client: httpx.AsyncClient) -> None:
    url = await upload_artifact(client, make_video_with_false_size(16_000), "video/quicktime")
    response = await client.get(url, params={"w": 64})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (413, "picture_too_large")
    assert (problem["field"], problem["width"], problem["height"]) == ("w", 16_000, 16_000)


@pytest.mark.parametrize(
    ("content", "media_type", "width"),
    [
        (make_png(8, 8), "image/png", 63),
        (make_png(8, 8), "image/png", 1025),
        (b"text", "text/plain", 64),
        (b"\x89PNG\r\n\x1a\n", "image/png", 64),
        (b"\x89PNG\r\n\x1a\n", "video/mp4", 64),
        (b"#EXTM3U\nfile:///etc/passwd\n", "video/mp4", 64),
        (b"RIFF", "video/x-msvideo", 64),
    ],
)
async def test_an_impossible_thumbnail_is_refused(
    client: httpx.AsyncClient, content: bytes, media_type: str, width: int
) -> None:
    response = await client.get(
        await upload_artifact(client, content, media_type), params={"w": width}
    )
    problem = response.json()
    assert (response.status_code, problem["code"], problem["field"]) == (
        400,
        "invalid_request",
        "w",
    )


async def test_a_link_opens_one_file_without_a_key(client: httpx.AsyncClient) -> None:
    url, other_url = (
        await upload_artifact(client, make_png(400, 200)),
        await upload_artifact(client, b"other"),
    )
    link = (await client.post(f"{url}/link", json={"expires_in": 60})).json()
    anonymous_headers = {"x-owner": ""}
    response = await client.get(link["url"], headers=anonymous_headers)
    assert (response.status_code, response.content) == (200, make_png(400, 200))
    small_thumbnail = await client.get(link["url"], params={"w": 64}, headers=anonymous_headers)
    assert Image.open(BytesIO(small_thumbnail.content)).size == (64, 32)
    assert small_thumbnail.headers["cache-control"] == "private, max-age=3600"
    tampered_url = link["url"].replace(".", ".x", 1)
    assert (await client.get(tampered_url, headers=anonymous_headers)).status_code == 401
    assert (await client.get(other_url, headers=anonymous_headers)).status_code == 401
    assert (await client.delete(url)).status_code == 204
    assert (await client.get(link["url"], headers=anonymous_headers)).status_code == 404


@pytest.mark.parametrize("seconds", [0, -1, 86_401, "60", 1.5, None])
async def test_the_lifetime_of_a_link_is_bounded(client: httpx.AsyncClient, seconds: Any) -> None:
    url = await upload_artifact(client, b"x")
    response = await client.post(f"{url}/link", json={"expires_in": seconds})
    assert (response.status_code, response.json()["field"]) == (400, "expires_in")


async def test_a_link_needs_no_body_and_an_artifact_of_the_caller(
    client: httpx.AsyncClient,
) -> None:
    url = await upload_artifact(client, b"x")
    assert (await client.post(f"{url}/link")).status_code == 200
    response = await client.post(f"{url}/link", headers={"x-owner": "bob"})
    assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")


async def test_files_are_listed_until_they_are_deleted(client: httpx.AsyncClient) -> None:
    urls = [await upload_artifact(client, b"%d" % number) for number in range(3)]
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
    url = await upload_artifact(client, make_png(100, 80))
    uploaded_artifact = await store.get("ann", url.rpartition("/")[2])
    artifact_of_job = replace(uploaded_artifact, id="art_" + "1" * 32)
    await store.add(artifact_of_job, owner="ann", job_id="j")
    path, token_headers = f"/artifacts/{artifact_of_job.id}", {"x-job": "j"}
    for params in ({}, {"w": 64}):
        response = await client.get(path, params=params, headers=token_headers)
        assert response.status_code == 200
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["cache-control"] == "private, max-age=3600"
    for other_url, headers in (
        (path, {"x-job": "k"}),
        (url, token_headers),
        (path, {**token_headers, "x-owner": "b"}),
    ):
        response = await client.get(other_url, headers=headers)
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    for response in (
        await client.get("/artifacts", headers=token_headers),
        await client.delete(path, headers=token_headers),
        await client.post(f"{path}/link", headers=token_headers),
        await client.post("/artifacts", content=b"x", headers=token_headers),
    ):
        assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")
    assert (await client.get(path)).headers["cross-origin-resource-policy"] == "same-site"


async def test_favourites_are_marked_and_listed(client: httpx.AsyncClient) -> None:
    marked_url, other_url = [
        await upload_artifact(client, make_png(64 + number, 64)) for number in range(2)
    ]
    for _ in range(2):
        assert (await client.put(f"{marked_url}/favourite")).status_code == 204

    async def list_artifacts(**query: str) -> list[tuple[str, bool]]:
        response = await client.get("/artifacts", params=query)
        return [
            (artifact["url"], artifact["favourite"]) for artifact in response.json()["artifacts"]
        ]

    assert await list_artifacts(favourite="true") == [(marked_url, True)]
    assert await list_artifacts(favourite="false") == [(other_url, False)]
    assert await list_artifacts() == [(other_url, False), (marked_url, True)]
    assert (await client.delete(f"{marked_url}/favourite")).status_code == 204
    assert await list_artifacts(favourite="true") == []
    assert await list_artifacts(template="swatch") == await list_artifacts(user="u") == []
    assert await list_artifacts(**{"metadata.project": "dawn"}) == []


async def test_a_favourite_of_another_tenant_is_not_found(client: httpx.AsyncClient) -> None:
    url = await upload_artifact(client, make_png(64, 64))
    other_owner_headers = {"x-owner": "bob"}
    for method in ("PUT", "DELETE"):
        response = await client.request(method, f"{url}/favourite", headers=other_owner_headers)
        assert (response.status_code, response.json()["code"]) == (404, "artifact_not_found")
    listed_artifacts = (await client.get("/artifacts")).json()["artifacts"]
    assert [artifact["favourite"] for artifact in listed_artifacts] == [False]


JOB = "00000000-0000-4000-8000-00000000000a"


async def test_an_archive_has_the_chosen_files_and_needs_no_key(client: httpx.AsyncClient) -> None:
    contents = [make_png(64 + number, 64) for number in range(3)]
    urls = [await upload_artifact(client, content) for content in contents]
    ids = [url.rpartition("/")[2] for url in urls]
    body = {"artifacts": [ids[2], ids[0], ids[2]], "name": "../shots/day 1"}
    link = (await client.post("/artifacts/archive", json=body)).json()
    assert (link["files"], link["url"].rpartition("/")[2]) == (2, "day%201.zip")
    anonymous_headers = {"x-owner": ""}
    head_response = await client.head(link["url"], headers=anonymous_headers)
    response = await client.get(link["url"], headers=anonymous_headers)
    assert (head_response.status_code, response.status_code) == (200, 200)
    for name, value in {
        "content-length": str(link["size"]),
        "content-type": "application/zip",
        "content-disposition": 'attachment; filename="day 1.zip"',
        "cache-control": "private, no-store",
        "referrer-policy": "no-referrer",
    }.items():
        assert head_response.headers[name] == response.headers[name] == value
    assert len(response.content) == link["size"]
    with ZipFile(BytesIO(response.content)) as archive:
        assert archive.namelist() == ["upload.png", "upload (2).png"]
        assert [archive.read(name) for name in archive.namelist()] == [contents[2], contents[0]]
    tampered_url = link["url"].replace(".", ".x", 1)
    assert (await client.get(tampered_url, headers=anonymous_headers)).status_code == 401
    assert (await client.delete(urls[0])).status_code == 204
    assert (await client.get(link["url"], headers=anonymous_headers)).status_code == 404


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
        url = await upload_artifact(client, b"%d" % number)
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
    own_id = (await upload_artifact(client, b"x")).rpartition("/")[2]
    body = {"artifacts": [own_id]}
    others_response = await client.post("/artifacts/archive", json=body, headers={"x-owner": "bob"})
    unknown_id_response = await client.post(
        "/artifacts/archive", json={"artifacts": [own_id, "nonsense"]}
    )
    for response in (others_response, unknown_id_response):
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
    ids = [
        (await upload_artifact(client, b"%d" % number)).rpartition("/")[2] for number in range(200)
    ]
    link = (await client.post("/artifacts/archive", json={"artifacts": ids})).json()
    assert link["files"] == 200
    assert len(link["url"]) < 7_000
    assert (await client.get(link["url"], headers={"x-owner": ""})).status_code == 200
