"""Tests the console's jobs page: search, follow, cancel, retry and delete, singly and in bulk."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
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
# More than are shown of a batch at first.
_CHILDREN = 25
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
    # The pool estimates by an earlier render of the same shape.
    known_job = _submit_job(
        api, {"kind": "render", "workflow": _make_slow_graph(1), "metadata": _SLOW}
    )
    assert _wait_for_final_status(api, known_job) == "succeeded"
    slow_body = {"kind": "render", "workflow": _make_slow_graph(), "metadata": _SLOW}
    job = _submit_job(api, slow_body)
    eventually_blocking(lambda: api.get(f"/jobs/{job}").json()["status"] == "running")
    waiting_job = _submit_job(api, slow_body)
    page = console.sign_in_with_key(gateway.api_key).open("/jobs?metadata.suite=console-jobs").page
    expect(page.get_by_role("row").filter(has_text=waiting_job[:8])).to_contain_text("Place 1")
    page.get_by_role("link", name=waiting_job[:8]).click()
    expect(page.get_by_role("region", name="Summary")).to_contain_text(
        re.compile("Place in the queue1.*Starts inabout .*Ends inabout ")
    )
    console.check_accessibility()
    page.get_by_role("link", name="All jobs").click()
    page.get_by_role("link", name=job[:8]).click()
    preview = page.get_by_alt_text("The newest preview of the render")
    expect(preview).to_be_visible()
    expect(preview).to_have_js_property("naturalWidth", 64)
    # Node 1 is at work, and its box is marked.
    expect(page.locator("[data-active-node='1']")).to_be_visible()
    log = page.get_by_role("region", name="Log", exact=True)
    expect(log.get_by_role("listitem").first).to_contain_text("Accepted")
    expect(log.get_by_role("listitem").last).to_contain_text(re.compile(r"Node 1 · \S+ of "))
    console.check_accessibility()
    console.screenshot("job-running", also_in="ja")

    page.get_by_role("button", name="Cancel job").click()
    dialog = page.get_by_role("dialog", name="Cancel this job?")
    console.check_accessibility()
    dialog.get_by_role("button", name="Cancel job").click()
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    assert api.get(f"/jobs/{job}").json()["status"] == "cancelled"
    expect(page.get_by_role("region", name="Summary")).to_contain_text("Cancelled by")
    expect(log.get_by_role("listitem").last).to_contain_text("Cancelled by: an API key")

    page.get_by_role("button", name="Retry").click()
    timeline = page.get_by_role("region", name="Timeline")
    expect(timeline.get_by_text("Attempt 2")).to_be_visible()
    expect(timeline.get_by_text("Retry began")).to_be_visible()
    expect(log).to_contain_text("Attempt 2 · Retry began")
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
    job = _submit_job(
        api, {"kind": "render", "workflow": _make_picture_graph(), "metadata": {"shot": "010"}}
    )
    _wait_for_final_status(api, job)
    page = console.sign_in_with_key(gateway.api_key).open(f"/jobs/{job}").page
    thumbnail = page.locator("img[src*='?w=256']")
    expect(thumbnail).to_have_js_property("naturalWidth", 256)
    expect(page.get_by_role("img", name="Drawing of a graph with 2 nodes")).to_be_visible()
    expect(
        page.get_by_role("region", name="Timeline").get_by_text("Step 1 finished")
    ).to_be_visible()
    expect(page.get_by_role("region", name="Cost").get_by_text("GPU time")).to_be_visible()
    temporal_address = page.get_by_role("link", name="Open in Temporal").get_attribute("href")
    assert temporal_address == f"{api.get('/cluster/links').json()['temporal']}/{job}"
    console.check_accessibility()
    console.screenshot("job")
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open in Temporal").click()
    popup.value.get_by_text(job).first.wait_for()
    popup.value.close()
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


def test_a_batch_and_a_pipeline_show_each_render(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    sweep = {"workflow.1.inputs.color": [*range(_CHILDREN)]}
    batch_body = {"kind": "render", "workflow": _make_picture_graph(), "batch": {"sweep": sweep}}
    graphs = [_make_picture_graph(), _make_picture_graph()]
    steps = [{"kind": "render", "workflow": graph} for graph in graphs]
    jobs = [_submit_job(api, batch_body), _submit_job(api, {"kind": "pipeline", "steps": steps})]
    for job in jobs:
        assert _wait_for_final_status(api, job) == "succeeded"
    page = console.sign_in_with_key(gateway.api_key).open(f"/jobs/{jobs[0]}").page
    results_region = page.get_by_role("region", name="Renders of the batch")
    renders = results_region.get_by_role("article")
    expect(renders).to_have_count(24)
    results_region.get_by_role("button", name="Show more").click()
    expect(renders).to_have_count(_CHILDREN)
    expect(results_region.get_by_role("button", name="Show more")).to_have_count(0)
    expect(renders.last.get_by_role("link", name="Download")).to_be_visible()
    log = page.get_by_role("region", name="Log", exact=True)
    expect(log.get_by_text("finished")).to_have_count(_CHILDREN)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    assert download.value.suggested_filename == f"{jobs[0]}.zip"
    with ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == _CHILDREN
    graph_region = page.get_by_role("region", name="Graph").first
    graph_region.get_by_text("JSON", exact=True).click()
    expect(graph_region).to_contain_text('"color": 0')
    graph_region.get_by_role("textbox", name="Render of the batch").fill("3")
    expect(graph_region).to_contain_text('"color": 2')
    console.check_accessibility()

    console.open(f"/jobs/{jobs[1]}")
    graph_region.get_by_text("JSON", exact=True).click()
    for number, step_graph in enumerate(graphs, start=1):
        if number > 1:
            graph_region.get_by_role("combobox", name="Step 1").click()
            page.get_by_role("option", name=f"Step {number}").click()
        expect(graph_region).to_contain_text(f'"color": {step_graph["1"]["inputs"]["color"]}')
    expect(log.get_by_text("Step 2 finished")).to_be_visible()
    console.check_accessibility()


def test_the_log_says_why_a_job_failed(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    broken_graph = _make_picture_graph()
    broken_graph["3"] = {
        "class_type": "Busy", "inputs": {"image": ["1", 0], "seconds": 0.5, "fails": True},
    }  # fmt: skip
    broken_graph["2"]["inputs"]["images"] = ["3", 0]
    jobs = [
        _submit_job(api, {"kind": "http", "request": {"path": "/nowhere"}}),
        _submit_job(api, {"kind": "render", "workflow": broken_graph}),
    ]
    page = console.sign_in_with_key(gateway.api_key).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    log = page.get_by_role("region", name="Log", exact=True)
    for job in jobs:
        assert _wait_for_final_status(api, job) == "failed"
        error = api.get(f"/jobs/{job}").json()["error"]
        console.open(f"/jobs/{job}")
        alert = page.get_by_role("alert")
        expect(alert.get_by_text(error["message"])).to_be_visible()
        expect(alert.get_by_text(error["code"])).to_be_visible()
        expect(log.get_by_role("listitem").last).to_contain_text(
            f"Failed: {error['message']} · {error['code']}"
        )
    # What ComfyUI said of the node.
    assert "it had to fail" in error["message"]
    expect(log.get_by_role("listitem").last).to_contain_text("node_type: Busy")
    expect(log.get_by_role("listitem").last).to_contain_text("ValueError")
    times = log.locator("time").evaluate_all("(all) => all.map((time) => time.dateTime)")
    assert times == sorted(times)
    created_at = api.get(f"/jobs/{jobs[1]}").json()["created_at"]
    first_delay = datetime.fromisoformat(times[0]) - datetime.fromisoformat(created_at)
    assert abs(first_delay) < timedelta(minutes=1)
    log.get_by_role("button", name="Copy the log").click()
    expect(log.get_by_role("button", name="Copied")).to_be_visible()
    copied_lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    log_texts = log.locator("li span").all_text_contents()
    assert copied_lines == [f"{time} {text}" for time, text in zip(times, log_texts, strict=True)]
    console.check_accessibility()
    console.screenshot("job-failed")
    console.choose_language("ja")
    expect(page.get_by_role("button", name="ログをコピー")).to_be_visible()
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("region", name="ログ", exact=True).scroll_into_view_if_needed()
    console.check_accessibility()
    console.screenshot("job-failed-ja-narrow")


def test_jobs_are_filtered_paged_and_changed_in_bulk(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    project = f"bulk-{uuid.uuid4().hex[:8]}"
    http_body = {"kind": "http", "request": {"path": "/healthz"}, "metadata": {"project": project}}
    jobs = [_submit_job(api, http_body) for _ in range(_MANY)]
    slow_body = {
        "kind": "render",
        "workflow": _make_slow_graph(),
        "metadata": {"project": project, **_SLOW},
    }
    *renders, selected_render = [_submit_job(api, slow_body) for _ in range(3)]
    for job in jobs:
        _wait_for_final_status(api, job)
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
    page.get_by_label(f"Select job {selected_render[:8]}").check()
    page.get_by_label(f"Select job {jobs[-2][:8]}").check()
    page.get_by_role("button", name="Cancel selected").click()
    dialog = page.get_by_role("dialog", name="Cancel jobs?")
    expect(dialog.get_by_text("1 open job will be cancelled.")).to_be_visible()
    expect(dialog.get_by_text("1 job has ended and stays as it is.")).to_be_visible()
    console.check_accessibility()
    dialog.get_by_role("button", name="Cancel jobs").click()
    expect(page.get_by_text("Jobs being cancelled: 1. Skipped: 1.")).to_be_visible()
    assert _wait_for_final_status(api, selected_render) == "cancelled"
    assert api.get(f"/jobs/{jobs[-2]}").json()["status"] == "succeeded"
    assert api.get(f"/jobs/{jobs[-1]}").status_code == 404
    assert api.get(f"/jobs/{renders[1]}").status_code == 200

    _change_matching_jobs(page, "Cancel", 2)
    for job in renders:
        assert _wait_for_final_status(api, job) == "cancelled"
    # The list polls while something on it is open.
    expect(rows.get_by_text("Cancelled", exact=True)).to_have_count(3)
    _change_matching_jobs(page, "Delete", _MANY + 2)
    expect(page.get_by_text("No job matches the filters")).to_be_visible()
    assert api.get("/jobs", params={"metadata.project": project}).json()["jobs"] == []


def test_filters_match_those_of_the_api(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    search_word = f"w{uuid.uuid4().hex[:10]}"
    bodies: list[dict[str, Any]] = [
        {"kind": "http", "request": {"path": "/healthz"}},
        {
            "kind": "render",
            "template": "swatch",
            "inputs": {"prompt": search_word},
            "pool": "default",
        },
    ]
    http_job, render_job = [
        _submit_job(api, {**body, "metadata": {"note": search_word}}) for body in bodies
    ]
    for job in (http_job, render_job):
        _wait_for_final_status(api, job)
    creation_times = [_read_creation_time(api, job) for job in (http_job, render_job)]
    middle = (creation_times[0] + (creation_times[1] - creation_times[0]) / 2).replace(tzinfo=None)
    middle_time = middle.isoformat(timespec="milliseconds")
    page = console.sign_in_with_key(gateway.api_key).open("/jobs").page
    page.get_by_role("textbox", name="Search").fill(search_word)
    page.keyboard.press("Enter")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="More filters").click()

    def check_filter(matching_job: str) -> None:
        """Check that the filter shows only ``matching_job`` of the two jobs, and remove the filter."""
        expect(rows).to_have_count(1)
        expect(rows.get_by_role("link", name=matching_job[:8])).to_be_visible()
        page.go_back()
        expect(rows).to_have_count(2)

    page.get_by_role("combobox", name="Kind").click()
    page.get_by_role("option", name="HTTP call").click()
    check_filter(http_job)
    for field, filter_value, matching_job in (
        (page.get_by_role("textbox", name="Pool"), "default", render_job),
        (page.get_by_role("combobox", name="Template"), "swatch", render_job),
        (page.get_by_label("Created from"), middle_time, render_job),
        (page.get_by_label("Created before"), middle_time, http_job),
    ):
        field.fill(filter_value)
        field.blur()
        check_filter(matching_job)
    console.check_accessibility()
    page.get_by_role("combobox", name="Status").click()
    page.get_by_role("option", name="Failed").click()
    expect(page.get_by_text("No job matches the filters")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear filters").click()
    expect(page).to_have_url(f"{gateway.url}/console/jobs")
    console.open(f"/jobs?search={search_word}&kind=http&created_before=2000-01-01T00:00:00Z")
    expect(page.get_by_text("No job matches the filters")).to_be_visible()
    # What the API refuses is shown in its words.
    console.open("/jobs?pool=Not%20a%20pool")
    expect(page.get_by_role("alert").get_by_text("invalid_request")).to_be_visible()
    console.check_clean("400")


def test_readers_get_no_actions_and_foreign_jobs_are_not_found(
    console: ConsoleBrowser, gateway: RunningStack, api: httpx.Client
) -> None:
    job = _submit_job(api, {"kind": "http", "request": {"path": "/healthz"}})
    _wait_for_final_status(api, job)
    key_response = api.post("/accounts/keys", json={"name": "reader", "scopes": ["jobs:read"]})
    reader_key = key_response.raise_for_status().json()
    page = console.sign_in_with_key(reader_key["key"]).open("/jobs").page
    expect(page.get_by_role("link", name=job[:8])).to_be_visible()
    expect(page.get_by_role("checkbox")).to_have_count(0)
    expect(page.get_by_role("button", name="All that match the filters")).to_have_count(0)
    page.get_by_role("link", name=job[:8]).click()
    expect(page.get_by_role("heading", name="Request")).to_be_visible()
    for action in ("Delete", "Retry", "Cancel job"):
        expect(page.get_by_role("button", name=action)).to_have_count(0)
    api.delete(f"/accounts/keys/{reader_key['id']}").raise_for_status()

    email, password = _create_other_member(api)
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
    expect(rows).to_have_count(_MANY + 3 - 50)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_role("button", name="Previous").click()
    expect(rows).to_have_count(50)


def _change_matching_jobs(page: Page, action: str, count: int) -> None:
    page.get_by_role("button", name="All that match the filters").click()
    page.get_by_role("menuitem", name=f"{action} all that match").click()
    dialog = page.get_by_role("dialog", name=f"{action} jobs?")
    expect(dialog.get_by_text(f"{count} jobs match the filters.")).to_be_visible()
    dialog.get_by_role("button", name=f"{action} jobs").click()
    expect(dialog).to_have_count(0)


def _create_other_member(api: httpx.Client) -> tuple[str, str]:
    """Create a member of another tenant, and return the member's credentials."""
    studio = api.post("/accounts/organisations", json={"name": "Others"}).raise_for_status().json()
    email, password = f"{uuid.uuid4().hex[:8]}@studio.example", f"sunset-{uuid.uuid4().hex}"
    invitation_response = api.post(
        f"/accounts/organisations/{studio['id']}/members", json={"email": email, "role": "member"}
    )
    token = invitation_response.raise_for_status().json()["invitation"]
    body = {"token": token, "password": password}
    api.post("/accounts/password/reset", json=body).raise_for_status()
    return email, password


def _submit_job(api: httpx.Client, body: dict[str, Any]) -> str:
    job: str = api.post("/jobs", json=body).raise_for_status().json()["id"]
    return job


def _read_creation_time(api: httpx.Client, job: str) -> datetime:
    """Return when a job was created, in the time zone of this machine and its browser."""
    created_at: str = api.get(f"/jobs/{job}").raise_for_status().json()["created_at"]
    return datetime.fromisoformat(created_at).astimezone()


def _wait_for_final_status(api: httpx.Client, job: str) -> str:
    def find_final_status() -> str | None:
        status: str = api.get(f"/jobs/{job}").raise_for_status().json()["status"]
        return None if status in ("queued", "running") else status

    status: str = eventually_blocking(find_final_status)
    return status


def _make_picture_graph() -> dict[str, Any]:
    inputs = {"width": 320, "height": 240, "batch_size": 1, "color": uuid.uuid4().int % 0xFFFFFF}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": "console"},
        },
    }


def _make_slow_graph(count: int = 600) -> dict[str, Any]:
    """Return a graph that sends ``count`` previews, by default for longer than any test here."""
    return {"1": {"class_type": "Previews", "inputs": {"count": count}}}
