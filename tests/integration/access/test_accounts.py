"""Tests the accounts app over HTTP, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jwt
import pytest
from argon2 import PasswordHasher

from deployments.accounts.config import AccountsConfig
from moyin.access.accounts.passwords import PasswordService
from moyin.errors import InvalidKey
from moyin.store.keys import KeyStore
from moyin.store.sql import Database
from tests.integration.access.fixtures import PASSWORD, QUICK, AccountsApp
from tests.waiting import eventually

# One app for each kind of database: its tests share a loop and leave each other's users alone.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_player_registers_signs_in_and_changes_the_profile(accounts: AccountsApp) -> None:
    registration_response = await accounts.call(
        "POST",
        "/register",
        None,
        {"email": "Ann@Example.com", "password": PASSWORD, "name": "Ann"},
    )
    assert (registration_response.status, registration_response.headers["cache-control"]) == (
        201,
        "no-store",
    )
    user = registration_response.body["user"]
    assert (user["email"], user["kind"]) == ("ann@example.com", "player")
    second_registration = await accounts.call(
        "POST", "/register", None, {"email": "ann@example.com", "password": PASSWORD}
    )
    assert (second_registration.status, second_registration.code) == (409, "name_taken")
    session = await accounts.expect_ok(
        "POST", "/login", None, {"email": "ANN@example.com", "password": PASSWORD}
    )
    token = session["access_token"]
    profile = {"level": 3, "avatar": "🐉"}
    await accounts.expect_ok("PATCH", "/me", token, {"name": "Ann B", "profile": profile})
    shown_user = await accounts.expect_ok("GET", "/me", token)
    assert (shown_user["name"], shown_user["profile"]) == ("Ann B", profile)
    caller = await accounts.expect_ok("GET", "/whoami", token)
    assert (caller["owner"], caller["scopes"]) == (user["id"], ["player"])


async def test_a_wrong_password_and_an_unknown_email_look_the_same(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    responses = [
        await accounts.call("POST", "/login", None, {"email": email, "password": "wrong one"})
        for email in (player["user"]["email"], "nobody@example.com")
    ]
    assert [answer.status for answer in responses] == [401, 401]
    assert responses[0].body["detail"] == responses[1].body["detail"]


async def test_a_refresh_token_is_good_once_and_its_replay_ends_the_session(
    accounts: AccountsApp,
) -> None:
    first_session = await accounts.register_player()
    second_session = await accounts.expect_ok(
        "POST", "/refresh", None, {"refresh_token": first_session["refresh_token"]}
    )
    assert second_session["refresh_token"] != first_session["refresh_token"]
    replay = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": first_session["refresh_token"]}
    )
    assert (replay.status, replay.code) == (401, "invalid_token")
    thief_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": second_session["refresh_token"]}
    )
    assert thief_response.status == 401
    # The access token of the family is refused as well (nothing has it in a cache yet).
    assert (await accounts.call("GET", "/me", second_session["access_token"])).status == 401


async def test_concurrent_refreshes_end_the_token_family(
    accounts: AccountsApp,
) -> None:
    token = (await accounts.register_player())["refresh_token"]
    responses = await asyncio.gather(
        *(accounts.call("POST", "/refresh", None, {"refresh_token": token}) for _ in range(5))
    )
    granted_responses = [answer for answer in responses if answer.status == 200]
    assert len(granted_responses) == 1
    second_refresh_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": granted_responses[0].body["refresh_token"]}
    )
    assert second_refresh_response.status == 401


async def test_signing_out_ends_the_session(accounts: AccountsApp) -> None:
    session = await accounts.register_player()
    await accounts.expect_ok("POST", "/logout", session["access_token"])
    refused_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": session["refresh_token"]}
    )
    assert refused_response.status == 401


async def test_ended_session_cannot_create_a_key(accounts: AccountsApp) -> None:
    token = (await accounts.add_member(await accounts.create_organisation()))["access_token"]
    await accounts.expect_ok("POST", "/keys", token, {"name": "before"})
    await accounts.expect_ok("POST", "/logout", token)
    # At once, whatever the gateway knew a moment ago.
    assert (await accounts.call("POST", "/keys", token, {"name": "after"})).status == 401


async def test_keys_created_during_an_account_transfer_are_invalid(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    for attempt in range(5):
        member = await accounts.add_member(organisation_id)
        user_id, token = member["user"]["id"], member["access_token"]
        transfer = accounts.services.users.transfer_to_sign_in(
            user_id, "https://id.example", f"{user_id}{attempt}"
        )
        key_creations = asyncio.gather(
            *(accounts.call("POST", "/keys", token, {"name": str(n)}) for n in range(6))
        )
        await asyncio.gather(transfer, key_creations)
        assert {response.status for response in key_creations.result()} <= {201, 401}
        for response in key_creations.result():
            if response.status == 201:
                assert (await accounts.call("GET", "/whoami", response.body["key"])).status == 401


async def test_concurrent_demotions_of_two_admins_leave_one_admin(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    path = f"/organisations/{organisation_id}/members"
    for _ in range(5):
        first_admin, second_admin = [
            await accounts.add_member(organisation_id, "admin") for _ in range(2)
        ]
        responses = await asyncio.gather(
            *(
                accounts.call(
                    "PATCH",
                    f"{path}/{changed_admin['user']['id']}",
                    acting_admin["access_token"],
                    {"role": "viewer"},
                )
                for acting_admin, changed_admin in (
                    (first_admin, second_admin),
                    (second_admin, first_admin),
                )
                * 4
            )
        )
        # Who is changed first can't answer in kind.
        assert sorted({answer.status for answer in responses}) in ([200], [200, 401]), responses
        members_after = (await accounts.expect_ok("GET", path, accounts.operator))["members"]
        roles = [
            m["role"]
            for m in members_after
            if m["id"] in (first_admin["user"]["id"], second_admin["user"]["id"])
        ]
        assert sorted(roles) == ["admin", "viewer"]


async def test_signing_out_everywhere_ends_all_sessions(accounts: AccountsApp) -> None:
    first_session = await accounts.register_player()
    credentials = {"email": first_session["user"]["email"], "password": PASSWORD}
    second_session = await accounts.expect_ok("POST", "/login", None, credentials)
    await accounts.expect_ok("POST", "/logout", first_session["access_token"], {"everywhere": True})
    refused_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": second_session["refresh_token"]}
    )
    assert refused_response.status == 401


async def test_a_new_password_needs_the_old_one_and_ends_other_sessions(
    accounts: AccountsApp,
) -> None:
    own_session = await accounts.register_player()
    email = own_session["user"]["email"]
    other_session = await accounts.expect_ok(
        "POST", "/login", None, {"email": email, "password": PASSWORD}
    )
    password_change = {"current_password": "not that one", "new_password": "another good one"}
    refused_response = await accounts.call(
        "POST", "/password", own_session["access_token"], password_change
    )
    assert (refused_response.status, refused_response.body["field"]) == (401, "current_password")
    password_change["current_password"] = PASSWORD
    await accounts.expect_ok("POST", "/password", own_session["access_token"], password_change)
    await accounts.expect_ok(
        "POST", "/refresh", None, {"refresh_token": own_session["refresh_token"]}
    )
    ended_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": other_session["refresh_token"]}
    )
    assert ended_response.status == 401
    await accounts.expect_ok(
        "POST", "/login", None, {"email": email, "password": "another good one"}
    )


async def test_a_forgotten_password_is_reset_by_mail_once(accounts: AccountsApp) -> None:
    session = await accounts.register_player()
    email = session["user"]["email"]
    unknown_response = await accounts.call(
        "POST", "/password/forgot", None, {"email": "no@example.com"}
    )
    known_response = await accounts.call("POST", "/password/forgot", None, {"email": email})
    assert (
        (unknown_response.status, unknown_response.body)
        == (known_response.status, known_response.body)
        == (202, known_response.body)
    )
    await accounts.outbox.take_token(email)
    assert accounts.outbox.mails == []
    repeated_responses = [
        await accounts.call("POST", "/password/forgot", None, {"email": email}) for _ in "12345"
    ]
    assert [answer.status for answer in repeated_responses] == [202] * 4 + [429]
    await eventually(lambda: len(accounts.outbox.mails) == 4)
    token = await accounts.outbox.take_token(email)
    body = {"token": token, "password": "a brand new one"}
    await accounts.expect_ok("POST", "/password/reset", None, body)
    assert (await accounts.call("POST", "/password/reset", None, body)).status == 401
    await accounts.expect_ok(
        "POST", "/login", None, {"email": email, "password": "a brand new one"}
    )
    ended_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": session["refresh_token"]}
    )
    assert ended_response.status == 401


class DelayedPasswordService(PasswordService):
    """Verifies passwords at once, but returns the results only after `go_on` is set."""

    def __init__(self, hasher: PasswordHasher) -> None:
        super().__init__(hasher)
        self.proven, self.go_on = asyncio.Event(), asyncio.Event()

    async def verify(
        self,
        password_hash: str | None,
        password: str,
        *,
        account: str = "",
        is_trusted: bool = False,
    ) -> bool:
        matches = await super().verify(
            password_hash, password, account=account, is_trusted=is_trusted
        )
        self.proven.set()
        await self.go_on.wait()
        return matches


# A hash made with other parameters is replaced at the next sign-in.
STRONGER_HASHER = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)


@pytest.mark.parametrize("hasher", [QUICK, STRONGER_HASHER], ids=["current", "outdated"])
@pytest.mark.parametrize("sign_in_method", ["login", "change"])
async def test_a_password_reset_ends_sign_ins_with_the_old_password(
    accounts: AccountsApp,
    monkeypatch: pytest.MonkeyPatch,
    sign_in_method: str,
    hasher: PasswordHasher,
) -> None:
    session = await accounts.register_player()
    email, new_password = session["user"]["email"], "a brand new one"
    await accounts.expect_ok("POST", "/password/forgot", None, {"email": email})
    token = await accounts.outbox.take_token(email)
    slow_passwords = DelayedPasswordService(hasher)
    with monkeypatch.context() as patch:
        patch.setattr(accounts.services.sign_in, "_passwords", slow_passwords)
        if sign_in_method == "login":
            body = {"email": email, "password": PASSWORD}
            pending_call = asyncio.create_task(accounts.call("POST", "/login", None, body))
        else:
            body = {"current_password": PASSWORD, "new_password": "the thief's own"}
            call = accounts.call("POST", "/password", session["access_token"], body)
            pending_call = asyncio.create_task(call)
        await slow_passwords.proven.wait()
        await accounts.expect_ok(
            "POST", "/password/reset", None, {"token": token, "password": new_password}
        )
        slow_passwords.go_on.set()
        response = await pending_call
    assert (response.status, response.code) == (401, "invalid_credentials")
    for password, status in ((PASSWORD, 401), ("the thief's own", 401), (new_password, 200)):
        body = {"email": email, "password": password}
        assert (await accounts.call("POST", "/login", None, body)).status == status


async def test_concurrent_password_changes_leave_no_old_session(
    accounts: AccountsApp,
) -> None:
    for _ in range(5):
        email = (await accounts.register_player())["user"]["email"]
        await accounts.expect_ok("POST", "/password/forgot", None, {"email": email})
        token = await accounts.outbox.take_token(email)
        login_body = {"email": email, "password": PASSWORD}
        reset_body = {"token": token, "password": "a brand new one"}
        reset_response, *login_responses = await asyncio.gather(
            accounts.call("POST", "/password/reset", None, reset_body),
            *(accounts.call("POST", "/login", None, login_body) for _ in range(6)),
        )
        assert reset_response.status == 200
        for login_response in login_responses:
            if login_response.status == 200:
                refresh_body = {"refresh_token": login_response.body["refresh_token"]}
                assert (await accounts.call("POST", "/refresh", None, refresh_body)).status == 401
            else:
                assert login_response.status == 401


async def test_a_hash_that_is_out_of_date_is_replaced_at_the_next_sign_in(
    accounts: AccountsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = (await accounts.register_player())["user"]
    monkeypatch.setattr(accounts.services.sign_in, "_passwords", PasswordService(STRONGER_HASHER))
    for _ in range(2):
        body = {"email": user["email"], "password": PASSWORD}
        await accounts.expect_ok("POST", "/login", None, body)
    password_hash = (await accounts.services.users.get(user["id"])).password
    assert password_hash is not None and not STRONGER_HASHER.check_needs_rehash(password_hash)


async def test_access_tokens_can_be_verified_with_the_published_keys(accounts: AccountsApp) -> None:
    token = (await accounts.register_player())["access_token"]
    key_set_before = await accounts.expect_ok("GET", "/.well-known/jwks.json")
    keys = jwt.PyJWKSet.from_dict(key_set_before)
    claims = jwt.decode(
        token, keys[jwt.get_unverified_header(token)["kid"]], ["EdDSA"], audience="moyin"
    )
    assert claims["scope"] == "player"
    kid = (await accounts.expect_ok("POST", "/signing-keys", accounts.operator))["kid"]
    key_set_after = await accounts.expect_ok("GET", "/.well-known/jwks.json")
    assert [key["kid"] for key in key_set_after["keys"]] == [kid, key_set_before["keys"][0]["kid"]]
    assert (await accounts.call("GET", "/me", token)).status == 200
    refused_deletion = await accounts.call("DELETE", f"/signing-keys/{kid}", accounts.operator)
    assert (refused_deletion.status, refused_deletion.body["field"]) == (400, "kid")


async def test_keys_are_made_used_rotated_and_revoked(accounts: AccountsApp) -> None:
    member_token = (await accounts.add_member(await accounts.create_organisation()))["access_token"]
    key = await accounts.expect_ok(
        "POST", "/keys", member_token, {"name": "ci", "scopes": ["jobs:read"]}
    )
    caller = await accounts.expect_ok("GET", "/whoami", key["key"])
    assert (caller["key_id"], caller["scopes"]) == (key["id"], ["jobs:read"])
    [listed_key] = (await accounts.expect_ok("GET", "/keys", member_token))["keys"]
    assert listed_key["last_used_at"] is not None
    assert "key" not in listed_key
    body = {"overlap_seconds": 60}
    rotated_key = await accounts.expect_ok("POST", f"/keys/{key['id']}/rotate", member_token, body)
    for secret in (key["key"], rotated_key["key"]):
        assert (await accounts.expect_ok("GET", "/whoami", secret))["key_id"] == key["id"]
    await accounts.expect_ok("POST", f"/keys/{key['id']}/rotate", member_token)
    assert (await accounts.call("GET", "/whoami", key["key"] + "x")).status == 401
    await accounts.expect_ok("DELETE", f"/keys/{key['id']}", member_token)
    [listed_key] = (await accounts.expect_ok("GET", "/keys", member_token))["keys"]
    assert listed_key["revoked_at"] is not None


async def test_malformed_keys_are_invalid_on_every_database(accounts: AccountsApp) -> None:
    for presented_key in ("moyin_\0_x", "moyin__x", "moyin_é_x"):
        with pytest.raises(InvalidKey):
            await accounts.services.authenticator.authenticate(presented_key)


async def test_a_key_expires_on_time_in_every_time_zone(
    accounts: AccountsApp,
) -> None:
    expires_at = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    for hours in (-8, 0, 9):
        timestamp = expires_at.astimezone(timezone(timedelta(hours=hours))).isoformat()
        key = await accounts.expect_ok(
            "POST", "/keys", accounts.operator, {"expires_at": timestamp}
        )
        assert datetime.fromisoformat(key["expires_at"]) == expires_at
        assert (await accounts.call("GET", "/whoami", key["key"])).status == 200


async def test_callers_cannot_grant_scopes_they_lack(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    member_token = (await accounts.add_member(organisation_id))["access_token"]
    admin_token = (await accounts.add_member(organisation_id, "admin"))["access_token"]
    for bearer, scopes in (
        (member_token, ["*"]),
        (member_token, ["org:admin"]),
        (admin_token, ["operator"]),
    ):
        refused_response = await accounts.call("POST", "/keys", bearer, {"scopes": scopes})
        assert (refused_response.status, refused_response.code) == (403, "insufficient_scope"), (
            scopes
        )
    # An operator's key that acts for the organisation: its admin may see and end it, not have it.
    database = Database(accounts.settings.sql_url)
    key_id, _ = await KeyStore(database).create(organisation_id, "operator's")
    await database.close()
    assert (await accounts.call("POST", f"/keys/{key_id}/rotate", admin_token)).status == 403
    await accounts.expect_ok("DELETE", f"/keys/{key_id}", admin_token)


async def test_keys_of_service_accounts_follow_their_role_and_state(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    admin_token = (await accounts.add_member(organisation_id, "admin"))["access_token"]
    path = f"/organisations/{organisation_id}"
    service = await accounts.expect_ok(
        "POST", f"{path}/service-accounts", admin_token, {"name": "bot", "role": "member"}
    )
    key = await accounts.expect_ok(
        "POST", "/keys", admin_token, {"user": service["id"], "name": "bot's"}
    )
    caller = await accounts.expect_ok("GET", "/whoami", key["key"])
    assert (caller["owner"], caller["user"], "text" in caller["scopes"]) == (
        organisation_id, service["id"], True,
    )  # fmt: skip
    change = {"role": "viewer"}
    await accounts.expect_ok("PATCH", f"{path}/members/{service['id']}", admin_token, change)
    rotated_key = await accounts.expect_ok("POST", f"/keys/{key['id']}/rotate", admin_token)
    assert "text" not in (await accounts.expect_ok("GET", "/whoami", rotated_key["key"]))["scopes"]
    await accounts.expect_ok(
        "PATCH", f"{path}/members/{service['id']}", admin_token, {"disabled": True}
    )
    rotated_key = await accounts.expect_ok("POST", f"/keys/{key['id']}/rotate", admin_token)
    assert (await accounts.call("GET", "/whoami", rotated_key["key"])).status == 401
    members = await accounts.expect_ok("GET", f"{path}/members", admin_token)
    assert {(member["kind"], member["disabled"]) for member in members["members"]} == {
        ("member", False), ("service", True),
    }  # fmt: skip


async def test_limits_are_set_shown_and_removed(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    admin_token = (await accounts.add_member(organisation_id, "admin"))["access_token"]
    key = await accounts.expect_ok("POST", "/keys", admin_token, {"scopes": ["text"]})
    subject = f"key:{key['id']}"
    body = {"requests_per_minute": 60, "usd_per_day": "0.000000001"}
    stored_limits = await accounts.expect_ok("PUT", f"/limits/{subject}", admin_token, body)
    assert (stored_limits["usd_per_day"], stored_limits["open_jobs"]) == ("0.000000001", None)
    assert (await accounts.expect_ok("GET", "/limits", key["key"]))["limits"] == [stored_limits]
    organisation_path = f"/limits/owner:{organisation_id}"
    assert (await accounts.call("PUT", organisation_path, admin_token, body)).status == 404
    await accounts.expect_ok("PUT", organisation_path, accounts.operator, {"usd_per_month": 10})
    await accounts.expect_ok("DELETE", f"/limits/{subject}", admin_token)
    cleared_limits = await accounts.expect_ok("GET", f"/limits/{subject}", admin_token)
    assert set(cleared_limits.values()) == {None, subject}


async def test_every_administrative_act_is_in_the_audit_log(accounts: AccountsApp) -> None:
    organisation_id = await accounts.create_organisation()
    session = await accounts.add_member(organisation_id, "admin")
    admin_token, user_id = session["access_token"], session["user"]["id"]
    key = await accounts.expect_ok("POST", "/keys", admin_token, {"scopes": ["text"]})
    limits = {"open_jobs": 1, "usd_per_day": "2.5", "pools": ["default"]}
    await accounts.expect_ok("PUT", f"/limits/key:{key['id']}", admin_token, limits)
    await accounts.expect_ok("POST", f"/keys/{key['id']}/rotate", admin_token)
    await accounts.expect_ok("DELETE", f"/keys/{key['id']}", admin_token)
    entries: list[Any] = []
    while True:
        before_parameter = f"&before={entries[-1]['id']}" if entries else ""
        page = (await accounts.expect_ok("GET", f"/audit?limit=2{before_parameter}", admin_token))[
            "entries"
        ]
        if not page:
            break
        entries += page
    recorded_acts = [(entry["action"], entry["actor"]) for entry in reversed(entries)]
    assert [action for action, _ in recorded_acts] == [
        "organisation.create", "member.create", "key.create", "limit.set", "key.rotate",
        "key.revoke",
    ]  # fmt: skip
    assert {actor for action, actor in recorded_acts if action.startswith("key")} == {user_id}
    details = [entry["details"] for entry in entries if entry["action"] == "limit.set"]
    assert details == [limits]
    assert key["key"] not in str(entries)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/register", {"email": "no", "password": PASSWORD}, "email"),
        ("/register", {"email": "a@example.com", "password": "short"}, "password"),
        ("/register", {"email": "a@example.com", "password": PASSWORD, "role": "admin"}, "role"),
        ("/register", {"email": "a@b.c\r\nBcc: x@y.z", "password": PASSWORD}, "email"),
    ],
)
async def test_validation_errors_name_the_field_and_repeat_no_secret(
    accounts: AccountsApp, path: str, body: dict[str, str], field: str
) -> None:
    refused_response = await accounts.call("POST", path, None, body)
    assert (refused_response.status, refused_response.body["field"]) == (400, field)
    assert body["password"] not in str(refused_response.body)


async def test_new_players_get_the_limits_that_the_operator_set(accounts: AccountsApp) -> None:
    config = AccountsConfig.model_validate(
        {"player_scopes": ["player", "text"], "player_limits": {"usd_per_day": 0.5}}
    )
    accounts.services.sign_in.policy = config.sign_in_policy
    player = await accounts.register_player()
    [limit] = (await accounts.expect_ok("GET", "/limits", player["access_token"]))["limits"]
    assert (limit["subject"], limit["usd_per_day"]) == (f"user:{player['user']['id']}", "0.5")
    assert "text" in (await accounts.expect_ok("GET", "/whoami", player["access_token"]))["scopes"]
    accounts.services.sign_in.policy = AccountsConfig(registration=False).sign_in_policy
    body = {"email": "late@example.com", "password": PASSWORD}
    refused_response = await accounts.call("POST", "/register", None, body)
    accounts.services.sign_in.policy = AccountsConfig().sign_in_policy
    assert (refused_response.status, refused_response.code) == (403, "insufficient_scope")


async def test_invitation_is_returned_if_it_cannot_be_mailed(
    accounts: AccountsApp,
) -> None:
    path = f"/organisations/{await accounts.create_organisation()}/members"
    mailed_invitation = await accounts.expect_ok(
        "POST", path, accounts.operator, {"email": "m@example.com"}
    )
    assert mailed_invitation["invitation"] is None
    accounts.outbox.can_deliver = False
    invitation = await accounts.expect_ok(
        "POST", path, accounts.operator, {"email": "n@example.com"}
    )
    accounts.outbox.can_deliver = True
    body = {"token": invitation["invitation"], "password": PASSWORD}
    await accounts.expect_ok("POST", "/password/reset", None, body)
    await accounts.expect_ok(
        "POST", "/login", None, {"email": "n@example.com", "password": PASSWORD}
    )


async def test_disabled_players_cannot_sign_in(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    user_id, email = player["user"]["id"], player["user"]["email"]
    [listed_user] = (await accounts.expect_ok("GET", f"/users?email={email}", accounts.operator))[
        "users"
    ]
    assert listed_user["id"] == user_id
    assert (await accounts.expect_ok("GET", f"/users/{user_id}", player["access_token"]))[
        "id"
    ] == user_id
    await accounts.expect_ok("PATCH", f"/users/{user_id}", accounts.operator, {"disabled": True})
    credentials = {"email": email, "password": PASSWORD}
    assert (await accounts.call("POST", "/login", None, credentials)).status == 401
    refresh_body = {"refresh_token": player["refresh_token"]}
    assert (await accounts.call("POST", "/refresh", None, refresh_body)).status == 401
    await accounts.expect_ok("PATCH", f"/users/{user_id}", accounts.operator, {"disabled": False})
    await accounts.expect_ok("POST", "/login", None, credentials)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/users/usr%00", None, 404),
        ("GET", "/users?email=a%00b", None, 400),
        ("POST", "/login", {"email": "a\0b", "password": "x"}, 400),
        ("POST", "/keys", {"user": "\0"}, 400),
        ("PATCH", "/me", {"profile": {"a": "\0"}}, 400),
        ("PUT", f"/limits/owner:{'x' * 129}", {"open_jobs": 1}, 400),
        # One of Moyin's own.
        ("PUT", "/limits/owner:moyin:judge", {"usd_per_month": 1}, 400),
        ("POST", "/keys", {"expires_at": "9999-12-31T23:59:59-23:00"}, 400),
        ("POST", "/keys", {"scopes": [f"{'a' * 60}{n}" for n in range(20)]}, 400),
    ],
)
async def test_values_that_no_database_stores_are_refused(
    accounts: AccountsApp, method: str, path: str, body: Any, status: int
) -> None:
    response = await accounts.call(method, path, accounts.operator, body)
    assert response.status == status, response


async def test_closing_an_account_erases_the_player(accounts: AccountsApp) -> None:
    player = await accounts.register_player()
    user_id, email, token = player["user"]["id"], player["user"]["email"], player["access_token"]
    await accounts.expect_ok("DELETE", "/me", token)
    assert (await accounts.expect_ok("GET", f"/users?email={email}", accounts.operator))[
        "users"
    ] == []
    closed_user = await accounts.expect_ok("GET", f"/users/{user_id}", accounts.operator)
    assert (closed_user["email"], closed_user["name"], closed_user["disabled"]) == (None, "", True)
    credentials = {"email": email, "password": PASSWORD}
    assert (await accounts.call("POST", "/login", None, credentials)).status == 401
    refresh_body = {"refresh_token": player["refresh_token"]}
    assert (await accounts.call("POST", "/refresh", None, refresh_body)).status == 401
    assert (await accounts.register_player(email))["user"]["id"] != user_id
