"""Tests that pages notice the end of their session, and that ComfyUI's pages share the session."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.calls import Api
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

_SKIP_TUTORIAL = """
fetch("/settings/Comfy.TutorialCompleted", {
  method: "POST", headers: {"content-type": "application/json"}, body: "true",
}).then((answer) => answer.status)
"""
_COMFYUI_READY = "window.app?.graph && window.app.extensionManager && window.app.canvas"
ENDED = "Your session has ended. Sign in to go on where you were."


def create_member(gateway: RunningStack) -> tuple[AccountsApi, str]:
    api = AccountsApi(gateway.url, gateway.api_key)
    organisation, _ = api.create_organisation()
    return api, api.create_member(organisation, "member", "Mika")


def end_all_sessions(api: AccountsApi, email: str) -> None:
    token = api.call("POST", "/login", {"email": email, "password": PASSWORD})["access_token"]
    api.call("POST", "/logout", {"everywhere": True}, key=token)


def test_sign_in_after_an_ended_session_leads_to_the_same_page(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api, email = create_member(gateway)
    page = console.sign_in(email, PASSWORD).open("/jobs?status=failed&kind=render").page
    page.get_by_text("No job matches").wait_for()
    assert page.get_by_text(ENDED).count() == 0
    end_all_sessions(api, email)
    refresh_until_signed_out(page)
    console.check_accessibility()
    console.screenshot("session-ended")
    page.get_by_label("Email").fill(email)
    page.get_by_label("Password").first.fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("No job matches").wait_for()
    assert page.url == f"{console.url}/console/jobs?status=failed&kind=render"
    # Nobody who signs out is told that.
    page.get_by_role("banner").get_by_role("button", name="Mika").click()
    page.get_by_role("menuitem", name="Sign out").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    assert page.get_by_text(ENDED).count() == 0
    console.check_clean("status of 401")


def test_a_page_that_sends_no_requests_notices_that_its_session_has_ended(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api, email = create_member(gateway)
    page = console.sign_in(email, PASSWORD).open("/overview").page
    page.get_by_role("region", name="Render pools").wait_for()
    end_all_sessions(api, email)
    # Nothing is clicked: the stream of the cluster's events ends.
    page.get_by_text(ENDED).wait_for()
    console.check_clean("status of 401")


def test_an_expired_access_token_is_renewed_silently(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    _, email = create_member(gateway)
    page = console.sign_in(email, PASSWORD).open("/jobs").page
    page.get_by_text("No jobs yet").wait_for()
    page.context.clear_cookies(name="moyin_session")
    page.get_by_role("button", name="Refresh").click()
    eventually_blocking(lambda: "moyin_session" in list_cookie_names(page))
    expect(page.get_by_text("No jobs yet")).to_be_visible()
    assert page.get_by_role("alert").count() == 0
    console.check_clean("status of 401")


def test_signing_out_of_comfyui_ends_the_session_after_its_cookie_has_expired(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api, email = create_member(gateway)
    other_token = api.call("POST", "/login", {"email": email, "password": PASSWORD})["access_token"]
    page = console.sign_in(email, PASSWORD).page
    page.goto(f"{console.url}/comfy/session")
    page.get_by_role("button", name="Sign out").wait_for()
    assert len(api.call("GET", "/sessions", key=other_token)["sessions"]) == 2
    page.context.clear_cookies(name="moyin_session")
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").wait_for()
    assert list_cookie_names(page) == set()
    [remaining_session] = api.call("GET", "/sessions", key=other_token)["sessions"]
    assert remaining_session["current"]
    console.check_clean("status of 401")


def test_signing_out_of_comfyui_can_be_retried_while_the_accounts_app_is_down(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    api, email = create_member(gateway)
    other_token = api.call("POST", "/login", {"email": email, "password": PASSWORD})["access_token"]
    page = console.sign_in(email, PASSWORD).page
    end_route = "**/accounts/session/end"
    page.route(end_route, lambda route: route.fulfill(status=503, json={"code": "unavailable"}))
    page.goto(f"{console.url}/comfy/session")
    assert page.get_by_role("alert").count() == 0
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("alert").get_by_text("could not be ended just now").wait_for()
    # The cookies stay, without which the session could not be ended afterwards.
    assert list_cookie_names(page) == {"moyin_session", "moyin_refresh"}
    page.unroute(end_route)
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").wait_for()
    assert list_cookie_names(page) == set()
    assert len(api.call("GET", "/sessions", key=other_token)["sessions"]) == 1
    console.check_clean("status of 401", "status of 503")


def test_comfyui_opens_with_the_same_session_and_links_to_the_console(
    console: ConsoleBrowser, gateway: RunningStack
) -> None:
    # ComfyUI's page is served once some ComfyUI has said which nodes there are.
    Api(gateway).render(template="swatch", inputs={"prompt": "comfyui", "seed": 7, "width": 64})
    _, email = create_member(gateway)
    page = console.sign_in(email, PASSWORD).page
    # Else a newcomer is shown ComfyUI's templates first.
    assert page.evaluate(_SKIP_TUTORIAL) == 200
    console.choose_language("ja")
    with page.expect_popup() as popup:
        page.get_by_role("navigation").get_by_role("link", name="ComfyUI").click()
    comfyui = popup.value
    comfyui.wait_for_function(_COMFYUI_READY)
    assert comfyui.get_by_label("API key").count() == 0
    assert (
        comfyui.evaluate("fetch('/accounts/me').then((answer) => answer.json())")["email"] == email
    )
    comfyui.locator(".comfy-menu-button-wrapper").click()
    comfyui.get_by_role("menuitem", name="Moyin").hover()
    comfyui.get_by_role("menuitem", name="コンソールを開く").click()
    comfyui.get_by_role("banner").get_by_role("button", name="Mika").wait_for()
    assert comfyui.url.startswith(f"{console.url}/console/")


def refresh_until_signed_out(page: Page) -> None:
    """Click "Refresh" until the page shows that the session has ended.

    This takes seconds, because each replica caches the session.
    """
    button = page.get_by_role("button", name="Refresh")

    def is_signed_out() -> bool:
        if page.get_by_text(ENDED).count():
            return True
        if button.count():
            button.click()
        page.wait_for_timeout(300)
        return False

    eventually_blocking(is_signed_out)


def list_cookie_names(page: Page) -> set[str]:
    return {
        cookie["name"] for cookie in page.context.cookies() if cookie["name"].startswith("moyin_")
    }
