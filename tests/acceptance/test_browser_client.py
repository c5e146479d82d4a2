"""Tests the TypeScript client in a real browser, on a page without TLS."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.acceptance.typescript_client import FOLDER, build_typescript_client
from tests.unit.clients.python.scripted_gateway import (
    LOST,
    Reply,
    ScriptedGateway,
    build_event,
    json_reply,
    problem_reply,
    stream_reply,
)

# Browsers trust 127.0.0.1 as if it had TLS, and offer more of their API there.
_HOST = "gateway.studio"
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    f"--host-resolver-rules=MAP {_HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
_SCRIPT = """
async () => {
  const { Client } = await import("/client/index.js");
  const retry = { firstPause: 0.01, longestPause: 0.02 };
  const client = new Client({ url: location.origin, apiKey: "key-1", retry });
  const file = await client.upload(new File(["photo"], "photo.png", { type: "image/png" }));
  const job = await client.submit({
    kind: "render", template: "restyle", inputs: { image: `artifact:${file.id}` },
  });
  const events = [];
  for await (const { type, id } of client.events(job)) events.push([type, id]);
  const picture = await client.download("art_2", { width: 64 });
  const error = await client.job("j2").catch((error) => error);
  return {
    events, picture: [picture.type, await picture.text()],
    error: [error.name, error.status, error.code, error.requestId],
  };
}
"""


@pytest.fixture
def page_gateway() -> Iterator[ScriptedGateway]:
    build_typescript_client()
    gateway = ScriptedGateway()
    gateway.script("GET", "/page", Reply(headers={"content-type": "text/html"}, body=b"<p>Page"))
    for path in (FOLDER / "dist").glob("*.js"):
        script = Reply(headers={"content-type": "text/javascript"}, body=path.read_bytes())
        gateway.script("GET", f"/client/{path.name}", script)
    yield gateway
    gateway.stop()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is missing: run scripts/chromium.sh"
    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        context = playwright.chromium.launch_persistent_context(
            tmp_path / "browser", executable_path=chromium, args=[*_FLAGS], timeout=120_000
        )
        stack.callback(context.close)
        context.set_default_timeout(60_000)
        yield context.pages[0]


def test_a_page_uploads_submits_follows_and_downloads(
    page_gateway: ScriptedGateway, page: Page
) -> None:
    gateway = page_gateway
    ended_job = {"id": "j1", "status": "succeeded"}
    gateway.script("POST", "/artifacts", LOST, json_reply({"id": "art_1"}, 201))
    gateway.script("POST", "/jobs", json_reply({"id": "j1", "status": "queued"}, 202))
    gateway.script(
        "GET", "/jobs/j1/events",
        # It ends early but in order: after a reset, Chromium drops what it has not read.
        stream_reply(build_event("running", {"id": "j1", "status": "running"}, "1-0")),
        stream_reply(build_event("succeeded", ended_job, "2-0")),
    )  # fmt: skip
    picture = Reply(headers={"content-type": "image/webp"}, body=b"picture")
    gateway.script("GET", "/artifacts/art_2", picture)
    gateway.script("GET", "/jobs/j2", problem_reply(404, "job_not_found"))
    page.goto(f"http://{_HOST}:{urlsplit(gateway.url).port}/page")
    assert page.evaluate("isSecureContext") is False
    result: Any = page.evaluate(_SCRIPT)
    assert result == {
        "events": [["running", "1-0"], ["succeeded", "2-0"]],
        "picture": ["image/webp", "picture"],
        "error": ["MoyinError", 404, "job_not_found", "req_7"],
    }
    calls = [
        request for request in gateway.requests if request.path.startswith(("/jobs", "/artifacts"))
    ]
    uploads = [request for request in calls if request.path == "/artifacts"]
    assert [request.body for request in uploads] == [b"photo", b"photo"]
    assert len({request.headers["idempotency-key"] for request in uploads}) == 1
    assert uploads[0].query == {"name": "photo.png"}
    assert {request.headers["authorization"] for request in calls} == {"Bearer key-1"}
    follow_requests = [request for request in calls if request.path == "/jobs/j1/events"]
    assert [request.headers.get("last-event-id") for request in follow_requests] == [None, "1-0"]
