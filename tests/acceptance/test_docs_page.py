"""Tests an app's Swagger UI in a real browser that can reach only the gateway."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import Page, Request, expect, sync_playwright

from moyin.settings import Settings
from moyin.store.sql import migrate
from tests.integration.access.fixtures import SECRET, AccountsApp, accounts_serving

# Swagger UI asks a validator elsewhere for its opinion only where the page's host is no localhost.
_HOST = "gateway.studio"
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    f"--host-resolver-rules=MAP {_HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


@pytest.fixture
def accounts_app(tmp_path: Path) -> Iterator[AccountsApp]:
    """Run the accounts app; all apps have the same Swagger page."""
    settings = Settings(data=tmp_path, redis_url="redis://127.0.0.1:1/0", secret=SECRET)
    migrate(settings.sql_url)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(accounts_serving(settings)) as accounts_app,
    ):
        yield accounts_app


@pytest.fixture
def port(accounts_app: AccountsApp) -> int:
    return urlsplit(accounts_app.url).port or 0


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


def test_the_page_sends_no_request_to_another_host(port: int, page: Page) -> None:
    requests: list[str] = []
    console_errors: list[str] = []

    def record_request(request: Request) -> None:
        if not request.url.startswith("data:"):
            requests.append(request.url)

    page.on("request", record_request)
    page.on(
        "console",
        lambda message: console_errors.append(message.text) if message.type == "error" else None,
    )
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    page.goto(f"http://{_HOST}:{port}/accounts/docs")
    health_operation = page.locator(".opblock", has_text=re.compile(r"/healthz"))
    health_operation.get_by_role("button").first.click()
    health_operation.get_by_role("button", name="Try it out").click()
    health_operation.get_by_role("button", name="Execute").click()
    expect(health_operation.locator(".live-responses-table")).to_contain_text('"status": "ok"')
    assert console_errors == []
    assert {urlsplit(url).netloc for url in requests} == {f"{_HOST}:{port}"}
    assert {urlsplit(url).path.removeprefix("/accounts/") for url in requests} == {
        "docs", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json", "healthz",
    }  # fmt: skip


def test_a_request_can_be_tried_out_with_a_key(
    accounts_app: AccountsApp, port: int, page: Page
) -> None:
    page.goto(f"http://{_HOST}:{port}/accounts/docs")
    whoami_operation = page.locator(".opblock", has_text=re.compile(r"/whoami"))
    whoami_operation.get_by_role("button").first.click()
    whoami_operation.get_by_role("button", name="Try it out").click()
    whoami_operation.get_by_role("button", name="Execute").click()
    expect(whoami_operation.locator(".live-responses-table")).to_contain_text("missing_api_key")
    page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
    key_dialog = page.locator(".modal-ux")
    key_dialog.locator(".auth-container", has_text="bearer").locator("input").fill(
        accounts_app.operator
    )
    key_dialog.locator("button.authorize").first.click()
    key_dialog.locator("button.btn-done").first.click()
    whoami_operation.get_by_role("button", name="Execute").click()
    expect(whoami_operation.locator(".live-responses-table")).to_contain_text('"owner"')
