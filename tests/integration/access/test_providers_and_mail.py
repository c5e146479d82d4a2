"""Tests sign-in through a third-party OpenID provider, and mail through a real SMTP server."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from email import message_from_bytes
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import jwt
import pytest
from aiosmtpd.smtp import SMTP
from cryptography.hazmat.primitives.asymmetric import rsa

from moyin.access.accounts.mail import Mail, SmtpMailer
from moyin.errors import InvalidCredentials
from moyin.settings import Settings
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.forging import sign_with_hs256
from tests.integration.access.fixtures import PASSWORD, SECRET, AccountsApp, accounts_serving
from tests.integration.access.providers import BACK, configure, provider
from tests.integration.servers import ValkeyServer
from tests.integration.text.fixtures import serving

__all__ = ["provider"]


@pytest.fixture
async def accounts(
    migrated_sqlite: Path, tmp_path: Path, valkey_server: ValkeyServer, provider: str
) -> AsyncIterator[AccountsApp]:
    (tmp_path / "moyin.db").write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(data=tmp_path, redis_url=valkey_server.url, secret=SECRET)
    async with accounts_serving(settings) as accounts_app:
        configure(accounts_app, provider)
        yield accounts_app


async def sign_in_at_provider(
    accounts_app: AccountsApp, issuer: str, subject: str, address: str = "", **claims: Any
) -> dict[str, str]:
    """Sign in on the provider's pages as ``subject``, and return the callback's parameters.

    Args:
        address: the client's address; empty for the real one.
        claims: what the provider says about the user, such as ``email``.
    """
    request_headers = {"x-forwarded-for": address} if address else {}
    async with accounts_app.session.put(f"{issuer}/users/{subject}", json=claims) as response:
        assert response.status < 300
    body = {"provider": "studio", "redirect_uri": BACK}
    begin_response = await accounts_app.call("POST", "/oidc/begin", None, body, **request_headers)
    assert begin_response.status == 200, begin_response
    begin_body = begin_response.body
    async with accounts_app.session.post(
        begin_body["authorization_url"], data={"sub": subject}, allow_redirects=False
    ) as response:
        callback_query = parse_qs(urlsplit(response.headers["location"]).query)
    assert callback_query["state"] == [begin_body["state"]]
    return {"state": begin_body["state"], "code": callback_query["code"][0]}


async def test_a_provider_signs_a_new_player_in_and_knows_them_again(
    accounts: AccountsApp, provider: str
) -> None:
    claims: dict[str, Any] = {"email": "Ada@Example.com", "email_verified": True, "name": "Ada"}
    first_session = await accounts.expect_ok(
        "POST", "/oidc/finish", None, await sign_in_at_provider(accounts, provider, "ada", **claims)
    )
    user = first_session["user"]
    assert (user["email"], user["name"], user["kind"]) == ("ada@example.com", "Ada", "player")
    second_session = await accounts.expect_ok(
        "POST", "/oidc/finish", None, await sign_in_at_provider(accounts, provider, "ada")
    )
    assert second_session["user"]["id"] == user["id"]
    assert (await accounts.expect_ok("GET", "/me", second_session["access_token"]))["id"] == user[
        "id"
    ]


async def test_unfinished_sign_ins_are_limited_and_finished_ones_are_not(
    accounts: AccountsApp, provider: str
) -> None:
    body = {"provider": "studio", "redirect_uri": BACK}
    guesser_headers, studio_headers = ({"x-forwarded-for": f"203.0.113.{n}"} for n in (41, 42))
    client_address = studio_headers["x-forwarded-for"]
    statuses = [
        (await accounts.call("POST", "/oidc/begin", None, body, **guesser_headers)).status
        for _ in range(101)
    ]
    assert statuses == [200] * 100 + [429]
    for _ in range(99):
        await accounts.call("POST", "/oidc/begin", None, body, **studio_headers)
    # Each takes the place of the one before, who is in.
    for _ in range(3):
        callback = await sign_in_at_provider(accounts, provider, "ada", client_address)
        finish_response = await accounts.call(
            "POST", "/oidc/finish", None, callback, **studio_headers
        )
        assert finish_response.status == 200


async def test_a_provider_code_is_valid_once(accounts: AccountsApp, provider: str) -> None:
    callback = await sign_in_at_provider(accounts, provider, "bob")
    await accounts.expect_ok("POST", "/oidc/finish", None, callback)
    replay = await accounts.call("POST", "/oidc/finish", None, callback)
    assert (replay.status, replay.body["field"]) == (401, "state")
    wrong_callback = {**await sign_in_at_provider(accounts, provider, "bob"), "code": "made-up"}
    assert (await accounts.call("POST", "/oidc/finish", None, wrong_callback)).status == 401


async def test_an_email_is_linked_to_an_account_only_if_the_operator_allows_it(
    accounts: AccountsApp, provider: str
) -> None:
    impostor = await accounts.register_player("eve@example.com")
    impostor_id = impostor["user"]["id"]
    database = Database(accounts.settings.sql_url)
    _, key = await KeyStore(database).create(impostor_id, "squatter's", user=impostor_id)
    await database.close()
    await accounts.expect_ok("POST", "/password/forgot", None, {"email": "eve@example.com"})
    token = await accounts.outbox.take_token("eve@example.com")
    # Known to the app, as it will be for some seconds after its end.
    await accounts.expect_ok("GET", "/me", impostor["access_token"])
    claims: dict[str, Any] = {"email": "eve@example.com", "email_verified": True}
    conflict_response = await accounts.call(
        "POST", "/oidc/finish", None, await sign_in_at_provider(accounts, provider, "eve", **claims)
    )
    assert (conflict_response.status, conflict_response.code) == (409, "name_taken")
    configure(accounts, provider, links_emails=True)
    unverified_claims: dict[str, Any] = {**claims, "email_verified": False}
    other_session = await accounts.expect_ok(
        "POST",
        "/oidc/finish",
        None,
        await sign_in_at_provider(accounts, provider, "eve0", **unverified_claims),
    )
    assert (other_session["user"]["id"] != impostor_id, other_session["user"]["email"]) == (
        True,
        None,
    )
    linked_session = await accounts.expect_ok(
        "POST", "/oidc/finish", None, await sign_in_at_provider(accounts, provider, "eve", **claims)
    )
    assert linked_session["user"]["id"] == impostor_id
    # Who registered with that email first has not proven to own it.
    body = {"email": "eve@example.com", "password": PASSWORD}
    assert (await accounts.call("POST", "/login", None, body)).status == 401
    assert (await accounts.call("GET", "/whoami", key)).status == 401
    change = {"current_password": PASSWORD, "new_password": "the squatter's own"}
    refused_response = await accounts.call("POST", "/password", impostor["access_token"], change)
    assert refused_response.status == 401
    reset = {"token": token, "password": "the squatter's own"}
    assert (await accounts.call("POST", "/password/reset", None, reset)).status == 401
    assert (await accounts.services.users.get(impostor_id)).password is None


async def test_unconfigured_redirect_uris_are_refused(accounts: AccountsApp, provider: str) -> None:
    body = {"provider": "studio", "redirect_uri": "https://evil.example/"}
    refused_response = await accounts.call("POST", "/oidc/begin", None, body)
    assert (refused_response.status, refused_response.body["field"]) == (400, "redirect_uri")


async def test_unavailable_provider_is_not_a_server_error(accounts: AccountsApp) -> None:
    configure(accounts, "http://127.0.0.1:1")
    body = {"provider": "studio", "redirect_uri": BACK}
    unavailable_response = await accounts.call("POST", "/oidc/begin", None, body)
    assert (unavailable_response.status, unavailable_response.code) == (503, "service_unavailable")


@pytest.mark.parametrize("forgery", ["other key", "hs256", "none", "audience", "issuer"])
async def test_forged_identity_tokens_are_refused(
    accounts: AccountsApp, provider: str, forgery: str
) -> None:
    open_id = accounts.services.open_id
    provider_config = open_id.providers["studio"]
    kid = (await open_id._load_metadata(provider_config)).keys.keys[0].key_id
    claims: dict[str, Any] = {"iss": provider, "aud": "moyin", "sub": "x", "iat": 1, "exp": 9e9}
    claims |= {"audience": {"aud": "other"}, "issuer": {"iss": "http://evil"}}.get(forgery, {})
    headers = {"kid": kid}
    match forgery:
        case "hs256":
            async with accounts.session.get(f"{provider}/jwks") as response:
                token = sign_with_hs256(claims, headers, await response.read())
        case "none":
            token = jwt.encode(claims, "", "none", headers)
        case _:
            token = jwt.encode(claims, rsa.generate_private_key(65537, 2048), "RS256", headers)
    with pytest.raises(InvalidCredentials):
        await open_id._verify_id_token(provider_config, token)


async def test_models_app_accepts_keys_and_tokens_while_the_accounts_app_is_down(
    migrated_sqlite: Path, tmp_path: Path, valkey_server: ValkeyServer
) -> None:
    (tmp_path / "moyin.db").write_bytes(migrated_sqlite.read_bytes())
    settings = Settings(data=tmp_path, redis_url=valkey_server.url, secret=SECRET)
    async with accounts_serving(settings) as accounts_app:
        member = (await accounts_app.add_member(await accounts_app.create_organisation()))[
            "access_token"
        ]
        key = (await accounts_app.expect_ok("POST", "/keys", member, {"scopes": ["text"]}))["key"]
        player_token = (await accounts_app.register_player())["access_token"]
    async with serving(tmp_path) as models_app, aiohttp.ClientSession() as session:
        for bearer, expected_status in ((member, 200), (key, 200), (player_token, 403)):
            headers = {"authorization": f"Bearer {bearer}"}
            async with session.get(f"{models_app.url}/v1/models", headers=headers) as response:
                assert response.status == expected_status


class Inbox:
    """Holds the messages that an SMTP server received."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.seen.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 OK"


async def test_mail_is_sent_by_smtp_and_its_token_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inbox, token = Inbox(), secrets.token_urlsafe(32)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(inbox, loop=loop), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mail = Mail(to="ann@example.com", subject="Set a new password", text=f"Here:\n\n{token}\n")
    with caplog.at_level(logging.DEBUG):
        await SmtpMailer(f"smtp://127.0.0.1:{port}", "moyin@studio.example").send(mail)
    server.close()
    [(sender, recipients, content)] = inbox.seen
    assert (sender, recipients) == ("moyin@studio.example", ["ann@example.com"])
    message = message_from_bytes(content)
    assert message["subject"] == "Set a new password"
    assert token in message.get_payload()
    moyin_messages = [
        record.getMessage() for record in caplog.records if record.name.startswith("moyin")
    ]
    assert token not in repr(mail) + str(moyin_messages)
