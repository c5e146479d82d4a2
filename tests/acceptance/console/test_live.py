"""Tests that pages follow the server's events instead of polling."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
from playwright.sync_api import Page, Request, Route, expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

EVENTS = "**/cluster/events?**"
# A pause of the page between two tries to connect, in seconds, and the ones that follow it.
PAUSES = (3, 6, 12, 24, 48, 60, 60)
# Milliseconds between the beginning of a pause and the moment when the test sees it.
_TOLERANCE = 1_500


def record_requests(page: Page, path: str) -> list[str]:
    """Return a list to which the URLs of the page's later requests to ``path`` are added."""
    urls: list[str] = []

    def record_url(request: Request) -> None:
        if urlsplit(request.url).path == path:
            urls.append(request.url)

    page.on("request", record_url)
    return urls


def send_events(page: Page, **data_by_event: Any) -> None:
    """Answer the page's event streams with these events.

    Args:
        data_by_event: the data of each event by the event's name.
    """
    frames = "".join(
        f"event: {name}\ndata: {json.dumps(body)}\n\n" for name, body in data_by_event.items()
    )
    page.route(EVENTS, lambda route: route.fulfill(content_type="text/event-stream", body=frames))


def test_the_list_shows_jobs_as_they_come_and_end(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api = Api(gateway)
    page = console.sign_in_with_key(gateway.api_key).page
    # Not what the first page still asks for.
    page.goto("about:blank")
    job_requests = record_requests(page, "/jobs")
    event_requests = record_requests(page, "/cluster/events")
    console.open("/jobs")
    page.get_by_role("heading", name="Jobs").wait_for()
    eventually_blocking(lambda: event_requests and job_requests)
    job = api.render(template="swatch", inputs={"prompt": "live", "width": 64, "height": 64})
    row = page.get_by_role("row").filter(has_text=job["id"][:8])
    row.get_by_text("Succeeded", exact=True).wait_for()
    assert len(job_requests) == 1, "the list was requested again, although events bring new jobs"
    # Of another page the rows are followed, and it is read again when a job has come or gone.
    console.open(f"/jobs?metadata.project={api.project}")
    page.get_by_role("row").filter(has_text=job["id"][:8]).wait_for()
    second_job = api.render(template="swatch", inputs={"prompt": "live", "width": 72, "height": 64})
    page.get_by_role("row").filter(has_text=second_job["id"][:8]).wait_for()
    assert {url.split("?")[1] for url in event_requests} == {"include=jobs&cluster=false"}


def test_models_and_back_ends_change_by_events(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    models = httpx.get(f"{gateway.url}/v1/models", headers=headers, timeout=60).json()
    backends = httpx.get(f"{gateway.url}/v1/backends", headers=headers, timeout=60).json()
    models_with_new = {**models, "data": [{**models["data"][0], "id": "brand-new", "backends": []}]}
    [local_backend] = [backend for backend in backends["backends"] if backend["name"] == "local"]
    page = console.sign_in_with_key(gateway.api_key).page
    send_events(
        page,
        models=models_with_new,
        backends={"backends": [{**local_backend, "breaker": "open"}]},
    )
    page.route("**/v1/models?**", lambda route: route.fulfill(json=models))
    console.open("/models")
    page.get_by_role("row").filter(has_text=models["data"][0]["id"]).first.wait_for()
    # The event says that something has changed, and the pages are read anew.
    page.route("**/v1/models?**", lambda route: route.fulfill(json=models_with_new))
    page.get_by_role("row").filter(has_text="brand-new").wait_for()
    page.get_by_role("tab", name="Back ends").click()
    page.get_by_role("region", name="local").get_by_text("Breaker: open").wait_for()
    page.get_by_text("connecting again").wait_for()
    console.check_accessibility()


def test_routes_change_by_events(console: ConsoleBrowser, gateway: RunningStack) -> None:
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    routes_body = httpx.get(f"{gateway.url}/cluster/routes", headers=headers, timeout=60).json()
    cluster = httpx.get(f"{gateway.url}/cluster", headers=headers, timeout=60).json()
    problem = {
        "code": "template_invalid", "subject": "/studio/banner.yaml", "since": "2026-11-28T09:00:00Z",
        "parameters": {"error": "title: is missing"},
        "message": "The template file /studio/banner.yaml is not valid: title: is missing",
        "advice": "Correct the file.",
    }  # fmt: skip
    kill = {
        "code": "memory_kill", "subject": "render-default-0", "since": "2026-11-28T09:00:00Z",
        "parameters": {
            "by": "moyin", "process_bytes": 9 << 30, "available_bytes": 1 << 29, "total_bytes": 24 << 30,
        },
        "message": "Moyin ended render-default-0, because 512 MiB of 24.0 GiB of memory were available.",
        "advice": "It starts again when there is enough memory.",
    }  # fmt: skip
    page = console.sign_in_with_key(gateway.api_key).page
    send_events(
        page,
        cluster={**cluster, "problems": [problem, kill]},
        routes={**routes_body, "applications": {"brand-new": "RUNNING"}},
    )
    route_requests = record_requests(page, "/cluster/routes")
    console.open("/operate")
    page.get_by_role("region", name="Apps").get_by_text("brand-new").wait_for()
    checks = page.get_by_role("region", name="Checks", exact=True)
    checks.get_by_text("The template file /studio/banner.yaml is not valid").wait_for()
    memory = checks.get_by_role("listitem").filter(has_text="Memory of the nodes")
    memory.get_by_text("Moyin ended render-default-0").wait_for()
    assert len(route_requests) == 1
    console.check_accessibility()


def test_refused_streams_are_reported_and_retried_ever_more_rarely(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).page
    stream_requests: list[str] = []

    def refuse_stream(route: Route) -> None:
        stream_requests.append(route.request.url)
        body = {
            "code": "overloaded", "detail": f"The {len(stream_requests)}th stream is one too many.",
            "request_id": "req-of-the-stream",
        }  # fmt: skip
        route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(body))

    page.route(EVENTS, refuse_stream)
    # Time stands still from here on, but for `run_for`.
    start_time = datetime.now()
    page.clock.install(time=start_time)
    page.clock.pause_at(start_time + timedelta(seconds=1))
    console.open("/overview")
    retry_notice = page.get_by_role("status").filter(has_text="connecting again")

    def is_retry_noticed() -> bool:
        page.clock.run_for(50)
        return bool(retry_notice.count())

    eventually_blocking(is_retry_noticed)
    for number, pause in enumerate(PAUSES, start=1):
        page.clock.run_for(pause * 1000 - _TOLERANCE)
        assert len(stream_requests) == number, (
            f"the page connected again before {pause} s were over"
        )
        page.clock.run_for(_TOLERANCE)
        page.get_by_text(f"The {number + 1}th stream is one too many.").wait_for()
    status = page.get_by_role("status").filter(has_text="is not updated")
    expect(status).to_contain_text("overloaded")
    expect(status).to_contain_text("req-of-the-stream")
    page.unroute(EVENTS)
    page.clock.run_for(60_000)
    status.wait_for(state="detached")
    page.get_by_role("region", name="Render pools", exact=True).wait_for()
    console.check_clean("status of 503")
