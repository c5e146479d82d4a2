"""Tests that users sign in to the console through a third-party OpenID provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest_asyncio
from fastapi import FastAPI
from playwright.sync_api import Page
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.gateway.routes.console import console_routes
from moyin.console import ConsoleFiles
from moyin.settings import Settings
from tests.acceptance.console.browser import ConsoleBrowser, open_browser
from tests.acceptance.console.test_live import count_requests
from tests.integration.access.fixtures import SECRET, AccountsApp, accounts_serving
from tests.integration.access.providers import configure, provider
from tests.integration.servers import ValkeyServer

__all__ = ["provider"]

# The provider's page has a style sheet at another host, and no icon.
_OF_THE_PROVIDER = ("request to another host", "jsdelivr", "favicon")


def serve_console_beside(accounts_app: ASGIApp) -> ASGIApp:
    """Serve the console's files and the accounts app on one port, as the ingress does."""
    console = FastAPI()
    console.include_router(console_routes(ConsoleFiles()))

    async def route_by_path(scope: Scope, receive: Receive, send: Send) -> None:
        is_console = scope.get("path", "").startswith("/console")
        await (console if is_console else accounts_app)(scope, receive, send)

    return route_by_path


@pytest_asyncio.fixture(loop_scope="session")
async def accounts(
    migrated_sqlite: Path, tmp_path: Path, valkey_server: ValkeyServer, console_tools: None
) -> AsyncIterator[AccountsApp]:
    (tmp_path / "moyin.db").write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(data=tmp_path, redis_url=valkey_server.url, secret=SECRET)
    async with accounts_serving(settings, serve_console_beside) as accounts_app:
        yield accounts_app


def configure_for_console(accounts_app: AccountsApp, issuer: str) -> None:
    configure(accounts_app, issuer, redirect_uris=[f"{accounts_app.url}/console/oidc"])


async def test_the_provider_signs_a_person_in(
    accounts: AccountsApp, provider: str, tmp_path: Path
) -> None:
    configure_for_console(accounts, provider)
    claims = {"email": "ada@example.com", "email_verified": True, "name": "Ada"}
    async with accounts.session.put(f"{provider}/users/ada", json=claims) as response:
        assert response.status < 300
    await asyncio.to_thread(_sign_in_and_out, accounts.url, provider, tmp_path)


def _sign_in_and_out(url: str, provider: str, folder: Path) -> None:
    with open_browser(url, folder) as console:
        # The sign-in goes back to the page that the person wanted to see.
        page = _begin(console, provider)
        page.get_by_placeholder("sub").fill("ada")
        renewals = count_requests(page, "/accounts/session/renew")
        page.get_by_role("button", name="Authorize").click()
        page.get_by_role("heading", name="My account").wait_for()
        assert not renewals, "who was signed in before is not asked beside the sign-in"
        assert page.url == f"{url}/console/account?from=bookmark#sessions"
        page.get_by_text("ada@example.com").wait_for()
        page.get_by_text("This browser").wait_for()
        assert {"moyin_session", "moyin_refresh"} == {
            cookie["name"] for cookie in page.context.cookies() if "moyin" in cookie["name"]
        }
        # The code is not in the browser's history.
        page.go_back()
        page.go_forward()
        assert "code=" not in page.url
        page.get_by_role("banner").get_by_role("button", name="Ada").click()
        page.get_by_role("menuitem", name="Sign out").click()
        page.get_by_role("button", name="Sign in with studio").wait_for()
        console.check_clean(*_OF_THE_PROVIDER)


async def test_failures_are_described_in_words(
    accounts: AccountsApp, provider: str, tmp_path: Path
) -> None:
    configure_for_console(accounts, provider)
    await asyncio.to_thread(_go_wrong, accounts.url, provider, tmp_path / "refused")
    configure_for_console(accounts, "http://127.0.0.1:1")
    await asyncio.to_thread(_meet_no_provider, accounts.url, tmp_path / "down")


def _go_wrong(url: str, provider: str, folder: Path) -> None:
    with open_browser(url, folder) as console:
        page = _begin(console, provider)
        page.get_by_role("button", name="Deny").click()
        page.get_by_text("The provider did not sign you in: access_denied").wait_for()
        console.check_accessibility()

        page.get_by_role("link", name="Back to sign-in").click()
        _begin(console, provider)
        console.open("/oidc?state=another&code=stolen")
        page.get_by_text("was not begun in this browser").wait_for()

        page = _begin(console, provider)
        [state] = parse_qs(urlsplit(page.url).query)["state"]
        console.open(f"/oidc?state={state}&code=made-up")
        alert = page.get_by_role("alert")
        alert.get_by_text("invalid_credentials").wait_for()
        console.check_accessibility()
        page.get_by_role("link", name="Back to sign-in").click()
        page.get_by_role("heading", name="Sign in to Moyin").wait_for()
        assert [cookie for cookie in page.context.cookies() if "moyin" in cookie["name"]] == []
        console.check_clean(*_OF_THE_PROVIDER, "status of 401")


def _meet_no_provider(url: str, folder: Path) -> None:
    with open_browser(url, folder) as console:
        page = console.open().page
        page.get_by_role("button", name="Sign in with studio").click()
        page.get_by_role("alert").get_by_text("Code").wait_for()
        console.check_clean("status of 50")


def _begin(console: ConsoleBrowser, provider: str) -> Page:
    """Go from the sign-in page to the provider's page."""
    page = console.open("/account?from=bookmark#sessions").page
    page.get_by_role("button", name="Sign in with studio").click()
    page.wait_for_url(f"{provider}/**")
    return page
