"""Tests the console's jobs page: search, follow, cancel, retry and delete, singly and in bulk."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.console.browser import ConsoleBrowser
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

# More than a page of the list.
_MANY = 52
_SLOW = {"suite": "console-jobs"}


@pytest.fixture
def api(gateway: RunningStack) -> Iterator[httpx.Client]:
    """Provide a client of the API that the page calls; cancel slow renders at the end."""
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=60) as client:
        yield client
        client.post("/jobs/cancel", json={"filter": {"metadata": _SLOW}}).raise_for_status()


def test_a_running_render_is_followed_cancelled_retried_and_deleted(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    job = _submit(api, {"kind": "render", "workflow": _slow(), "metadata": _SLOW})
    page = console.sign_in_with_key(gateway.api_key).open("/jobs?metadata.suite=console-jobs").page
    page.get_by_role("link", name=job[:8]).click()
    preview = page.get_by_alt_text("The newest preview of the render")
    expect(preview).to_be_visible()
    expect(preview).to_have_js_property("naturalWidth", 64)
    # Node 1 is at work, and its box is marked.
    expect(page.locator("[data-active-node='1']")).to_be_visible()
    console.check_accessibility()
    console.screenshot("job-running", also="ja")

    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog", name="Cancel this job?")
    console.check_accessibility()
    dialog.get_by_role("button", name="Cancel job").click()
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    assert api.get(f"/jobs/{job}").json()["status"] == "cancelled"
    expect(page.get_by_text("Cancelled by")).to_be_visible()

    page.get_by_role("button", name="Retry").click()
    timeline = page.get_by_role("region", name="Timeline")
    expect(timeline.get_by_text("Attempt 2")).to_be_visible()
    expect(timeline.get_by_text("Retry began")).to_be_visible()
    assert api.get(f"/jobs/{job}").json()["attempts"] == 2
    if api.post(f"/jobs/{job}/cancel").status_code != 202:
        # The only reason to refuse it: the second attempt has ended meanwhile.
        assert api.get(f"/jobs/{job}").json()["status"] == "succeeded"
    # The page hears of it by the job's events.
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete this job?")
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    assert api.get(f"/jobs/{job}").status_code == 404


def test_a_finished_render_shows_its_files_graph_and_request(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    job = _submit(api, {"kind": "render", "workflow": _picture(), "metadata": {"shot": "010"}})
    _wait_for_end(api, job)
    page = console.sign_in_with_key(gateway.api_key).open(f"/jobs/{job}").page
    thumbnail = page.locator("img[src*='?w=256']")
    expect(thumbnail).to_have_js_property("naturalWidth", 256)
    expect(page.get_by_role("img", name="Drawing of a graph with 2 nodes")).to_be_visible()
    expect(
        page.get_by_role("region", name="Timeline").get_by_text("Step 1 finished")
    ).to_be_visible()
    expect(page.get_by_role("region", name="Cost").get_by_text("GPU time")).to_be_visible()
    temporal = page.get_by_role("link", name="Open in Temporal").get_attribute("href")
    assert temporal == f"{api.get('/cluster/links').json()['temporal']}/{job}"
    again = page.get_by_role("link", name="Run again with changes")
    assert again.get_attribute("href") == f"/console/render?job={job}"
    console.check_accessibility()
    console.screenshot("job")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download console").click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    page.get_by_text("JSON", exact=True).click()
    expect(page.get_by_text('"class_type": "EmptyImage"')).to_be_visible()

    console.choose_language("ja")
    expect(page.get_by_role("heading", name="グラフ")).to_be_visible()
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    console.check_accessibility()
    console.screenshot("job-ja-narrow")


def test_events_show_how_a_batch_and_a_failed_job_ended(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    sweep = {"workflow.1.inputs.color": [1, 2, 3]}
    batch = {"kind": "render", "workflow": _picture(), "batch": {"sweep": sweep}}
    jobs = [_submit(api, batch), _submit(api, {"kind": "http", "request": {"path": "/nowhere"}})]
    for job in jobs:
        _wait_for_end(api, job)
    page = console.sign_in_with_key(gateway.api_key).open(f"/jobs/{jobs[0]}").page
    renders = page.get_by_role("region", name="Renders of the batch").get_by_role("article")
    expect(renders).to_have_count(3)
    expect(renders.last.get_by_role("link", name="Download")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    assert download.value.suggested_filename == f"{jobs[0]}.zip"
    with ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 3
    console.check_accessibility()
    console.open(f"/jobs/{jobs[1]}")
    error = api.get(f"/jobs/{jobs[1]}").json()["error"]
    alert = page.get_by_role("alert")
    expect(alert.get_by_text(error["message"])).to_be_visible()
    expect(alert.get_by_text(error["code"])).to_be_visible()
    console.check_accessibility()


def test_jobs_are_filtered_paged_and_changed_in_bulk(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    project = f"bulk-{uuid.uuid4().hex[:8]}"
    call = {"kind": "http", "request": {"path": "/healthz"}, "metadata": {"project": project}}
    jobs = [_submit(api, call) for _ in range(_MANY)]
    slow = {"kind": "render", "workflow": _slow(), "metadata": {"project": project, **_SLOW}}
    renders = [_submit(api, slow) for _ in range(2)]
    for job in jobs:
        _wait_for_end(api, job)
    page = console.sign_in_with_key(gateway.api_key).open("/jobs").page
    page.get_by_role("button", name="More filters").click()
    page.get_by_role("combobox", name="Metadata").fill(f"project={project}")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{gateway.url}/console/jobs?metadata.project={project}")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(50)
    expect(rows.first.get_by_text("Render")).to_be_visible()
    console.check_accessibility()
    console.screenshot("jobs")
    _turn_pages(page)

    # Of the selection, only what an act can change is changed.
    page.get_by_label(f"Select job {renders[1][:8]}").check()
    page.get_by_label(f"Select job {jobs[-1][:8]}").check()
    page.get_by_role("button", name="Delete selected").click()
    dialog = page.get_by_role("dialog", name="Delete jobs?")
    expect(dialog.get_by_text("1 job that has ended will be deleted")).to_be_visible()
    expect(dialog.get_by_text("1 open job will be left")).to_be_visible()
    console.check_accessibility()
    dialog.get_by_role("button", name="Delete jobs").click()
    expect(page.get_by_text("Jobs deleted: 1. Skipped: 1.")).to_be_visible()
    assert api.get(f"/jobs/{jobs[-1]}").status_code == 404
    assert api.get(f"/jobs/{renders[1]}").status_code == 200

    _change_matching(page, "Cancel", 2)
    for job in renders:
        assert _wait_for_end(api, job) == "cancelled"
    # The list polls while something on it is open.
    expect(rows.get_by_text("Cancelled", exact=True)).to_have_count(2)
    _change_matching(page, "Delete", _MANY + 1)
    expect(page.get_by_text("No job matches the filters")).to_be_visible()
    assert api.get("/jobs", params={"metadata.project": project}).json()["jobs"] == []


def test_filters_are_those_of_the_api(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    word = f"w{uuid.uuid4().hex[:10]}"
    job = _submit(
        api, {"kind": "http", "request": {"path": "/healthz"}, "metadata": {"note": word}}
    )
    _wait_for_end(api, job)
    page = console.sign_in_with_key(gateway.api_key).open("/jobs").page
    page.get_by_role("textbox", name="Search").fill(word)
    page.keyboard.press("Enter")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_role("combobox", name="Status").click()
    page.get_by_role("option", name="Failed").click()
    expect(page.get_by_text("No job matches the filters")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear filters").click()
    expect(page).to_have_url(f"{gateway.url}/console/jobs")
    console.open(f"/jobs?search={word}&kind=http&created_before=2000-01-01T00:00:00Z")
    expect(page.get_by_text("No job matches the filters")).to_be_visible()
    # What the API refuses is shown in its words.
    console.open("/jobs?pool=Not%20a%20pool")
    expect(page.get_by_role("alert").get_by_text("invalid_request")).to_be_visible()
    console.check_clean("400")


def test_readers_get_no_actions_and_foreign_jobs_are_not_found(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    job = _submit(api, {"kind": "http", "request": {"path": "/healthz"}})
    _wait_for_end(api, job)
    key = api.post("/accounts/keys", json={"name": "reader", "scopes": ["jobs:read"]})
    reader = key.raise_for_status().json()
    page = console.sign_in_with_key(reader["key"]).open("/jobs").page
    expect(page.get_by_role("link", name=job[:8])).to_be_visible()
    expect(page.get_by_role("checkbox")).to_have_count(0)
    expect(page.get_by_role("button", name="All that match the filters")).to_have_count(0)
    page.get_by_role("link", name=job[:8]).click()
    expect(page.get_by_role("heading", name="Request")).to_be_visible()
    for act in ("Delete", "Retry", "Cancel job"):
        expect(page.get_by_role("button", name=act)).to_have_count(0)
    api.delete(f"/accounts/keys/{reader['id']}").raise_for_status()

    email, password = _join_studio(api)
    page.context.clear_cookies()
    console.sign_in(email, password).open("/jobs")
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    console.check_accessibility()
    console.open(f"/jobs/{job}")
    expect(page.get_by_text("There is no such job")).to_be_visible()
    console.check_clean("404", "401")


def _turn_pages(page: Page) -> None:
    rows = page.locator("tbody tr")
    page.get_by_role("button", name="Next").click()
    expect(rows).to_have_count(_MANY + 2 - 50)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(rows).to_have_count(50)


def _change_matching(page: Page, act: str, count: int) -> None:
    page.get_by_role("button", name="All that match the filters").click()
    page.get_by_role("menuitem", name=f"{act} all that match").click()
    dialog = page.get_by_role("dialog", name=f"{act} jobs?")
    expect(dialog.get_by_text(f"{count} jobs match the filters.")).to_be_visible()
    dialog.get_by_role("button", name=f"{act} jobs").click()
    expect(dialog).to_have_count(0)


def _join_studio(api: httpx.Client) -> tuple[str, str]:
    """Create a member of another tenant, and return the member's credentials."""
    studio = api.post("/accounts/organisations", json={"name": "Others"}).raise_for_status().json()
    email, password = f"{uuid.uuid4().hex[:8]}@studio.example", f"sunset-{uuid.uuid4().hex}"
    invited = api.post(
        f"/accounts/organisations/{studio['id']}/members", json={"email": email, "role": "member"}
    )
    token = invited.raise_for_status().json()["invitation"]
    body = {"token": token, "password": password}
    api.post("/accounts/password/reset", json=body).raise_for_status()
    return email, password


def _submit(api: httpx.Client, body: dict[str, Any]) -> str:
    job: str = api.post("/jobs", json=body).raise_for_status().json()["id"]
    return job


def _wait_for_end(api: httpx.Client, job: str) -> str:
    def find_end() -> str | None:
        status: str = api.get(f"/jobs/{job}").raise_for_status().json()["status"]
        return None if status in ("queued", "running") else status

    status: str = eventually_blocking(find_end)
    return status


def _picture() -> dict[str, Any]:
    inputs = {"width": 320, "height": 240, "batch_size": 1, "color": uuid.uuid4().int % 0xFFFFFF}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "console"},
        },
    }


def _slow() -> dict[str, Any]:
    """Return a graph that runs for longer than any of these tests, and sends previews."""
    return {"1": {"class_type": "Previews", "inputs": {"count": 600}}}
