"""Tests signing in through a third-party OpenID provider, and setting passwords by mailed links."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml
from aiosmtpd.controller import Controller
from playwright.sync_api import Page

from tests.acceptance.console.access_api import PASSWORD, AccountsApi
from tests.acceptance.console.browser import ConsoleBrowser
from tests.acceptance.console.test_live import record_requests
from tests.integration.access.providers import provider
from tests.integration.servers import free_port
from tests.stack import RunningStack
from tests.waiting import eventually_blocking

__all__ = ["provider"]

NEXT = "another battery horse"
# The provider's page has a style sheet at another host, and no icon.
_OF_THE_PROVIDER = ("request to another host", "jsdelivr", "favicon")


class Inbox:
    """Receives mails as an SMTP server."""

    def __init__(self) -> None:
        self._mails: list[tuple[list[str], str]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        content = message_from_bytes(envelope.content).get_payload(decode=True)
        assert isinstance(content, bytes)
        self._mails.append((envelope.rcpt_tos, content.decode()))
        return "250 OK"

    def take_link(self, email: str) -> str:
        """Wait for a mail to this address, remove it, and return the link in it."""
        mail: tuple[list[str], str] = eventually_blocking(
            lambda: next((mail for mail in self._mails if mail[0] == [email]), None)
        )
        self._mails.remove(mail)
        return next(line for line in mail[1].splitlines() if line.startswith("http"))


@pytest.fixture(scope="module")
def inbox(
    gateway: RunningStack, provider: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Inbox]:
    """Give the farm a mail server and two OpenID providers, one of which is down; yield the inbox."""
    inbox = Inbox()
    server = Controller(inbox, hostname="127.0.0.1", port=free_port())
    original_config_path = Path(gateway.env["MOYIN_SERVE_CONFIG"])
    config = yaml.safe_load(original_config_path.read_text())
    [accounts] = [app for app in config["applications"] if app["name"] == "accounts"]
    [deployment] = accounts["deployments"]
    deployment["ray_actor_options"]["runtime_env"] = {
        "env_vars": {
            "MOYIN_SMTP_URL": f"smtp://127.0.0.1:{server.port}", "STUDIO_OIDC_SECRET": "s3cret",
        }
    }  # fmt: skip
    deployment["user_config"] |= {
        "reset_url": f"{gateway.url}/console/reset#token={{token}}",
        "providers": [
            {
                "name": name, "issuer": issuer, "client_id": "moyin",
                "client_secret_env": "STUDIO_OIDC_SECRET",
                "redirect_uris": [f"{gateway.url}/console/oidc"],
            }
            for name, issuer in (("studio", provider), ("nowhere", "http://127.0.0.1:1"))
        ],
    }  # fmt: skip
    changed_config_path = tmp_path_factory.mktemp("outside") / "serve_config.yaml"
    changed_config_path.write_text(yaml.safe_dump(config))
    server.start()
    try:
        gateway.run("deploy", "--config", str(changed_config_path))
        yield inbox
    finally:
        gateway.run("deploy", "--config", str(original_config_path))
        server.stop()


def test_the_provider_signs_a_person_in(
    console: ConsoleBrowser, inbox: Inbox, provider: str
) -> None:
    subject = f"ada-{secrets.token_hex(4)}"
    claims = {"email": f"{subject}@example.com", "email_verified": True, "name": "Ada"}
    httpx.put(f"{provider}/users/{subject}", json=claims).raise_for_status()
    # The sign-in goes back to the page that the person wanted to see.
    page = _begin_sign_in(console, provider)
    page.get_by_placeholder("sub").fill(subject)
    renewals = record_requests(page, "/accounts/session/renew")
    page.get_by_role("button", name="Authorize").click()
    page.get_by_role("heading", name="My account").wait_for()
    assert not renewals, "the page tried to renew an older session during the sign-in"
    assert page.url == f"{console.url}/console/account?from=bookmark#sessions"
    page.get_by_text(f"{subject}@example.com").wait_for()
    page.get_by_text("This browser").wait_for()
    assert _list_cookie_names(page) == {"moyin_session", "moyin_refresh"}
    # The code is not in the browser's history.
    page.go_back()
    page.go_forward()
    assert "code=" not in page.url
    page.get_by_role("banner").get_by_role("button", name="Ada").click()
    page.get_by_role("menuitem", name="Sign out").click()
    page.get_by_role("button", name="Sign in with studio").wait_for()
    console.check_accessibility()
    console.check_clean(*_OF_THE_PROVIDER)


def test_failures_of_providers_are_explained(
    console: ConsoleBrowser, inbox: Inbox, provider: str
) -> None:
    page = _begin_sign_in(console, provider)
    page.get_by_role("button", name="Deny").click()
    page.get_by_text("The provider did not sign you in: access_denied").wait_for()
    console.check_accessibility()

    page.get_by_role("link", name="Back to sign-in").click()
    _begin_sign_in(console, provider)
    console.open("/oidc?state=another&code=stolen")
    page.get_by_text("was not begun in this browser").wait_for()
    assert "stolen" not in page.url

    page = _begin_sign_in(console, provider)
    [state] = parse_qs(urlsplit(page.url).query)["state"]
    console.open(f"/oidc?state={state}&code=made-up")
    alert = page.get_by_role("alert")
    alert.get_by_text("invalid_credentials").wait_for()
    console.check_accessibility()
    page.get_by_role("link", name="Back to sign-in").click()
    page.get_by_role("heading", name="Sign in to Moyin").wait_for()
    assert _list_cookie_names(page) == set()
    console.check_clean(*_OF_THE_PROVIDER, "status of 401")

    page.get_by_role("button", name="Sign in with nowhere").click()
    alert.get_by_text("Code").wait_for()
    console.check_accessibility()
    console.check_clean("status of 50")


def test_a_forgotten_password_is_replaced_by_mail(
    console: ConsoleBrowser, gateway: RunningStack, inbox: Inbox
) -> None:
    api = AccountsApi(gateway.url, gateway.api_key)
    email = f"{secrets.token_hex(6)}@example.com"
    api.call("POST", "/register", {"email": email, "password": PASSWORD, "name": "Ann"})
    page = console.open().page
    page.get_by_role("button", name="Forgotten password?").click()
    page.get_by_role("heading", name="Set a new password").wait_for()
    console.check_accessibility()
    page.get_by_label("Email").fill(email)
    page.get_by_role("button", name="Send the mail").click()
    page.get_by_text("A mail is on its way").wait_for()
    console.check_accessibility()

    link = inbox.take_link(email)
    assert link.startswith(f"{gateway.url}/console/reset#token=")
    page.goto("about:blank")
    page.goto(link)
    page.get_by_role("heading", name="Choose your password").wait_for()
    page.get_by_label("New password").fill("password12")
    page.get_by_role("button", name="Set the password").click()
    page.get_by_role("alert").get_by_text("weak_password").wait_for()
    console.check_accessibility()
    page.get_by_label("New password").fill(NEXT)
    page.get_by_role("button", name="Set the password").click()
    page.get_by_text("The password is set.").wait_for()
    page.get_by_role("link", name="Go to sign-in").click()
    old_login = api.send("POST", "/login", {"email": email, "password": PASSWORD})
    assert old_login.status_code == 401
    console.sign_in(email, NEXT)
    page.get_by_role("banner").get_by_role("button", name="Ann").wait_for()
    console.check_clean("status of 400", "status of 401")


def test_an_invitation_is_mailed(
    console: ConsoleBrowser, gateway: RunningStack, inbox: Inbox
) -> None:
    organisation, _ = AccountsApi(gateway.url, gateway.api_key).create_organisation()
    email = f"{secrets.token_hex(6)}@example.com"
    page = console.sign_in_with_key(gateway.api_key).page
    console.open(f"/people?organisation={organisation}")
    page.get_by_role("button", name="Invite").click()
    page.get_by_role("dialog").get_by_role("textbox", name="Email").fill(email)
    page.get_by_role("dialog").get_by_role("button", name="Invite").click()
    page.get_by_text("An invitation is on its way.").wait_for()
    page.get_by_role("cell", name=email).first.wait_for()
    page.context.clear_cookies()
    page.goto("about:blank")
    page.goto(inbox.take_link(email))
    page.get_by_label("New password").fill(PASSWORD)
    page.get_by_role("button", name="Set the password").click()
    page.get_by_text("The password is set.").wait_for()
    console.sign_in(email, PASSWORD)
    page.get_by_role("banner").get_by_role("button", name=email).wait_for()
    console.check_clean("status of 401")


def _begin_sign_in(console: ConsoleBrowser, provider: str) -> Page:
    """Go from the sign-in page to the provider's page."""
    page = console.open("/account?from=bookmark#sessions").page
    page.get_by_role("button", name="Sign in with studio").click()
    page.wait_for_url(f"{provider}/**")
    return page


def _list_cookie_names(page: Page) -> set[str]:
    return {cookie["name"] for cookie in page.context.cookies() if "moyin" in cookie["name"]}
