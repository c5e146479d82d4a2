"""Tests that empty lists say that they are empty, and what to do first."""

from __future__ import annotations

import re
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import httpx
from playwright.sync_api import Page, Route, expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.acceptance.console.test_live import send_events
from tests.stack import RunningStack

# Pages of an admin whose organisation is new: path, title, what to do, and what leads there.
NEW = (
    ("/jobs", "No jobs yet", "Render a picture on the page “Render”", None),
    ("/gallery", "No pictures yet", "What you render, upload or make by the API", "/console/render"),
    ("/render", "Results appear here", "Submit the form", None),
    ("/chat", "Ask a model", "The conversation is kept in the memory of this page only", None),
    ("/usage", "Nothing was used in this time", "Try a model on the page “Chat”", None),
    ("/people/keys", "There are no keys here", "Create one for each program", None),
    ("/people/limits", "No limits are set.", "", None),
    ("/account", "There are no keys here", "Create one for each program", None),
    ("/models?tab=comfyui", "This folder has no files", "Put model files into the folder", None),
)  # fmt: skip
# What a stack has once it is up, so that only forged answers of the documented shape are empty.
ANSWERS: dict[str, Any] = {
    "/templates": {"templates": []},
    "/models": [],
    "/v1/models": {"object": "list", "data": []},
    "/v1/quality": {"frozen": False, "models": [], "calibration": []},
    "/cluster/config-changes": {"changes": []},
}
WITHOUT = (
    ("/overview", "No render pools", "Operators add pools as apps"),
    ("/overview", "No nodes", "Start Ray with"),
    ("/overview", "No back ends", "Add one under"),
    ("/render", "There are no templates yet", "render a graph of your own"),
    ("/chat", "There is no model to chat with", "adds back ends and models"),
    ("/models", "There are no models yet", "adds back ends and models"),
    ("/models?tab=backends", "There are no back ends", "adds back ends and models"),
    ("/models?tab=quality", "There are no models yet", "adds back ends and models"),
    ("/models?tab=comfyui", "No pool has reported its models", "when its ComfyUI is up"),
    ("/operate", "No change yet", "the first that this database has seen"),
    ("/operate", "No routes", "Put another service behind the gateway"),
)


def fulfill_route(body: Any, route: Route) -> None:
    route.fulfill(json=body)


def expect_empty_state(page: Page, title: str, hint: str) -> None:
    main = page.locator("main")
    main.get_by_text(title, exact=True).first.wait_for()
    expect(main).to_contain_text(hint)
    assert page.get_by_role("alert").count() == 0


def test_pages_of_a_new_organisation_say_what_to_do(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # Folders of models are known once some ComfyUI has started.
    Api(gateway).render(template="swatch", inputs={"prompt": "folders", "seed": 7, "width": 64})
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    console.sign_in(api.create_member(organisation, "admin", "Aki"), PASSWORD)
    for path, title, hint, next_page in NEW:
        page = console.open(path).page
        if "comfyui" in path:
            page.get_by_role("button", name="loras").click()
        expect_empty_state(page, title, hint)
        if next_page is not None:
            assert page.locator("main").locator(f"a[href='{next_page}']").count() == 1
        console.check_accessibility()
        console.check_clean()


def test_an_operators_own_tenant_has_no_members(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    page = console.sign_in_with_key(gateway.api_key).open("/people").page
    expect_empty_state(
        page, "This tenant has no members", "Create an organisation to invite people."
    )
    page.get_by_role("button", name="New organisation").wait_for()
    console.check_accessibility()


def test_pages_of_an_empty_stack_say_what_to_do(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    headers = {"Authorization": f"Bearer {gateway.api_key}"}
    routes = httpx.get(f"{gateway.url}/cluster/routes", headers=headers, timeout=60).json()
    page = console.sign_in_with_key(gateway.api_key).page
    send_events(
        page,
        cluster={"pools": [], "nodes": [], "problems": []},
        backends={"backends": []},
        models=ANSWERS["/v1/models"],
        routes={**routes, "routes": []},
    )
    for path, body in ANSWERS.items():
        page.route(
            re.compile(rf"^{re.escape(console.url + path)}(\?.*)?$"), partial(fulfill_route, body)
        )
    for page_path, expected_texts in groupby(WITHOUT, key=itemgetter(0)):
        console.open(page_path)
        if page_path == "/render":
            # Without templates it offers graphs first.
            page.get_by_role("radiogroup", name="What to render").get_by_text("Template").click()
        for _, title, hint in expected_texts:
            expect_empty_state(page, title, hint)
        console.check_accessibility()


def test_a_link_without_its_token_is_called_incomplete(console: ConsoleBrowser) -> None:
    page = console.open("/reset").page
    expect_empty_state(page, "This link is not complete", "Open the link of the mail")
    page.get_by_role("link", name="Back to sign-in").wait_for()
    console.check_accessibility()
