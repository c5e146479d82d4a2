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

# One app for each kind of database: its tests share a loop and leave each other's users alone.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_player_registers_signs_in_and_changes_the_profile(accounts: AccountsApp) -> None:
    registered = await accounts.call(
        "POST",
        "/register",
        None,
        {"email": "Ann@Example.com", "password": PASSWORD, "name": "Ann"},
    )
    assert (registered.status, registered.headers["cache-control"]) == (201, "no-store")
    user = registered.body["user"]
    assert (user["email"], user["kind"]) == ("ann@example.com", "player")
    second_registration = await accounts.call(
        "POST", "/register", None, {"email": "ann@example.com", "password": PASSWORD}
    )
    assert (second_registration.status, second_registration.code) == (409, "name_taken")
    signed_in = await accounts.ok(
        "POST", "/login", None, {"email": "ANN@example.com", "password": PASSWORD}
    )
    token = signed_in["access_token"]
    profile = {"level": 3, "avatar": "🐉"}
    await accounts.ok("PATCH", "/me", token, {"name": "Ann B", "profile": profile})
    shown_user = await accounts.ok("GET", "/me", token)
    assert (shown_user["name"], shown_user["profile"]) == ("Ann B", profile)
    caller = await accounts.ok("GET", "/whoami", token)
    assert (caller["owner"], caller["scopes"]) == (user["id"], ["player"])


async def test_a_wrong_password_and_an_unknown_email_look_the_same(accounts: AccountsApp) -> None:
    player = await accounts.player()
    answers = [
        await accounts.call("POST", "/login", None, {"email": email, "password": "wrong one"})
        for email in (player["user"]["email"], "nobody@example.com")
    ]
    assert [answer.status for answer in answers] == [401, 401]
    assert answers[0].body["detail"] == answers[1].body["detail"]


async def test_a_refresh_token_is_good_once_and_its_replay_ends_the_session(
    accounts: AccountsApp,
) -> None:
    first_session = await accounts.player()
    second_session = await accounts.ok(
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
    token = (await accounts.player())["refresh_token"]
    answers = await asyncio.gather(
        *(accounts.call("POST", "/refresh", None, {"refresh_token": token}) for _ in range(5))
    )
    granted_answers = [answer for answer in answers if answer.status == 200]
    assert len(granted_answers) == 1
    response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": granted_answers[0].body["refresh_token"]}
    )
    assert response.status == 401


async def test_signing_out_ends_the_session(accounts: AccountsApp) -> None:
    session = await accounts.player()
    await accounts.ok("POST", "/logout", session["access_token"])
    refused_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": session["refresh_token"]}
    )
    assert refused_response.status == 401


async def test_ended_session_cannot_create_a_key(accounts: AccountsApp) -> None:
    token = (await accounts.member(await accounts.organisation()))["access_token"]
    await accounts.ok("POST", "/keys", token, {"name": "before"})
    await accounts.ok("POST", "/logout", token)
    # At once, whatever the gateway knew a moment ago.
    assert (await accounts.call("POST", "/keys", token, {"name": "after"})).status == 401


async def test_no_key_that_is_made_meanwhile_outlives_a_take_over(accounts: AccountsApp) -> None:
    organisation = await accounts.organisation()
    for attempt in range(5):
        member = await accounts.member(organisation)
        user, token = member["user"]["id"], member["access_token"]
        transfer = accounts.parts.users.transfer_to_sign_in(
            user, "https://id.example", f"{user}{attempt}"
        )
        key_creations = asyncio.gather(
            *(accounts.call("POST", "/keys", token, {"name": str(n)}) for n in range(6))
        )
        await asyncio.gather(transfer, key_creations)
        assert {answer.status for answer in key_creations.result()} <= {201, 401}
        for answer in key_creations.result():
            if answer.status == 201:
                assert (await accounts.call("GET", "/whoami", answer.body["key"])).status == 401


async def test_two_admins_change_each_other_at_once(accounts: AccountsApp) -> None:
    organisation = await accounts.organisation()
    path = f"/organisations/{organisation}/members"
    for _ in range(5):
        first_admin, second_admin = [await accounts.member(organisation, "admin") for _ in range(2)]
        answers = await asyncio.gather(
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
        assert sorted({answer.status for answer in answers}) in ([200], [200, 401]), answers
        members_after = (await accounts.ok("GET", path, accounts.operator))["members"]
        roles = [
            m["role"]
            for m in members_after
            if m["id"] in (first_admin["user"]["id"], second_admin["user"]["id"])
        ]
        assert sorted(roles) == ["admin", "viewer"]


async def test_signing_out_everywhere_ends_all_sessions(accounts: AccountsApp) -> None:
    first_session = await accounts.player()
    credentials = {"email": first_session["user"]["email"], "password": PASSWORD}
    second_session = await accounts.ok("POST", "/login", None, credentials)
    await accounts.ok("POST", "/logout", first_session["access_token"], {"everywhere": True})
    refused_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": second_session["refresh_token"]}
    )
    assert refused_response.status == 401


async def test_a_new_password_needs_the_old_one_and_ends_other_sessions(
    accounts: AccountsApp,
) -> None:
    own_session = await accounts.player()
    email = own_session["user"]["email"]
    other_session = await accounts.ok(
        "POST", "/login", None, {"email": email, "password": PASSWORD}
    )
    change = {"current_password": "not that one", "new_password": "another good one"}
    refused_response = await accounts.call("POST", "/password", own_session["access_token"], change)
    assert (refused_response.status, refused_response.body["field"]) == (401, "current_password")
    change["current_password"] = PASSWORD
    await accounts.ok("POST", "/password", own_session["access_token"], change)
    await accounts.ok("POST", "/refresh", None, {"refresh_token": own_session["refresh_token"]})
    ended_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": other_session["refresh_token"]}
    )
    assert ended_response.status == 401
    await accounts.ok("POST", "/login", None, {"email": email, "password": "another good one"})


async def test_a_forgotten_password_is_reset_by_mail_once(accounts: AccountsApp) -> None:
    session = await accounts.player()
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
    await accounts.outbox.token(email)
    assert accounts.outbox.mails == []
    repeated_responses = [
        await accounts.call("POST", "/password/forgot", None, {"email": email}) for _ in "12345"
    ]
    assert [answer.status for answer in repeated_responses] == [202] * 4 + [429]
    token = await accounts.outbox.token(email)
    body = {"token": token, "password": "a brand new one"}
    await accounts.ok("POST", "/password/reset", None, body)
    assert (await accounts.call("POST", "/password/reset", None, body)).status == 401
    await accounts.ok("POST", "/login", None, {"email": email, "password": "a brand new one"})
    ended_response = await accounts.call(
        "POST", "/refresh", None, {"refresh_token": session["refresh_token"]}
    )
    assert ended_response.status == 401


class SlowPasswords(PasswordService):
    """Makes callers with a correct password wait until `go_on` is set."""

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
STRONGER = PasswordHasher(time_cost=2, memory_cost=8, parallelism=1)


@pytest.mark.parametrize("hasher", [QUICK, STRONGER], ids=["current", "outdated"])
@pytest.mark.parametrize("sign_in_method", ["login", "change"])
async def test_a_password_reset_ends_sign_ins_with_the_old_password(
    accounts: AccountsApp,
    monkeypatch: pytest.MonkeyPatch,
    sign_in_method: str,
    hasher: PasswordHasher,
) -> None:
    session = await accounts.player()
    email, new_password = session["user"]["email"], "a brand new one"
    await accounts.ok("POST", "/password/forgot", None, {"email": email})
    token = await accounts.outbox.token(email)
    slow_passwords = SlowPasswords(hasher)
    with monkeypatch.context() as patch:
        patch.setattr(accounts.parts.sign_in, "_passwords", slow_passwords)
        if sign_in_method == "login":
            body = {"email": email, "password": PASSWORD}
            pending_call = asyncio.create_task(accounts.call("POST", "/login", None, body))
        else:
            body = {"current_password": PASSWORD, "new_password": "the thief's own"}
            call = accounts.call("POST", "/password", session["access_token"], body)
            pending_call = asyncio.create_task(call)
        await slow_passwords.proven.wait()
        await accounts.ok(
            "POST", "/password/reset", None, {"token": token, "password": new_password}
        )
        slow_passwords.go_on.set()
        answer = await pending_call
    assert (answer.status, answer.code) == (401, "invalid_credentials")
    for password, status in ((PASSWORD, 401), ("the thief's own", 401), (new_password, 200)):
        body = {"email": email, "password": password}
        assert (await accounts.call("POST", "/login", None, body)).status == status


async def test_concurrent_password_changes_leave_no_old_session(
    accounts: AccountsApp,
) -> None:
    for _ in range(5):
        email = (await accounts.player())["user"]["email"]
        await accounts.ok("POST", "/password/forgot", None, {"email": email})
        token = await accounts.outbox.token(email)
        body = {"email": email, "password": PASSWORD}
        reset = {"token": token, "password": "a brand new one"}
        change_response, *logins = await asyncio.gather(
            accounts.call("POST", "/password/reset", None, reset),
            *(accounts.call("POST", "/login", None, body) for _ in range(6)),
        )
        assert change_response.status == 200
        for login in logins:
            if login.status == 200:
                refresh_body = {"refresh_token": login.body["refresh_token"]}
                assert (await accounts.call("POST", "/refresh", None, refresh_body)).status == 401
            else:
                assert login.status == 401


async def test_a_hash_that_is_out_of_date_is_replaced_at_the_next_sign_in(
    accounts: AccountsApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = (await accounts.player())["user"]
    monkeypatch.setattr(accounts.parts.sign_in, "_passwords", PasswordService(STRONGER))
    for _ in range(2):
        body = {"email": user["email"], "password": PASSWORD}
        await accounts.ok("POST", "/login", None, body)
    password_hash = (await accounts.parts.users.get(user["id"])).password
    assert password_hash is not None and not STRONGER.check_needs_rehash(password_hash)


async def test_access_tokens_are_proven_by_the_published_keys(accounts: AccountsApp) -> None:
    token = (await accounts.player())["access_token"]
    key_set_before = await accounts.ok("GET", "/.well-known/jwks.json")
    keys = jwt.PyJWKSet.from_dict(key_set_before)
    claims = jwt.decode(
        token, keys[jwt.get_unverified_header(token)["kid"]], ["EdDSA"], audience="moyin"
    )
    assert claims["scope"] == "player"
    kid = (await accounts.ok("POST", "/signing-keys", accounts.operator))["kid"]
    key_set_after = await accounts.ok("GET", "/.well-known/jwks.json")
    assert [key["kid"] for key in key_set_after["keys"]] == [kid, key_set_before["keys"][0]["kid"]]
    assert (await accounts.call("GET", "/me", token)).status == 200
    refused_deletion = await accounts.call("DELETE", f"/signing-keys/{kid}", accounts.operator)
    assert (refused_deletion.status, refused_deletion.body["field"]) == (400, "kid")


async def test_keys_are_made_used_rotated_and_revoked(accounts: AccountsApp) -> None:
    member = (await accounts.member(await accounts.organisation()))["access_token"]
    key = await accounts.ok("POST", "/keys", member, {"name": "ci", "scopes": ["jobs:read"]})
    caller = await accounts.ok("GET", "/whoami", key["key"])
    assert (caller["key_id"], caller["scopes"]) == (key["id"], ["jobs:read"])
    [listed_key] = (await accounts.ok("GET", "/keys", member))["keys"]
    assert listed_key["last_used_at"] is not None
    assert "key" not in listed_key
    body = {"overlap_seconds": 60}
    rotated_key = await accounts.ok("POST", f"/keys/{key['id']}/rotate", member, body)
    for text in (key["key"], rotated_key["key"]):
        assert (await accounts.ok("GET", "/whoami", text))["key_id"] == key["id"]
    await accounts.ok("POST", f"/keys/{key['id']}/rotate", member)
    assert (await accounts.call("GET", "/whoami", key["key"] + "x")).status == 401
    await accounts.ok("DELETE", f"/keys/{key['id']}", member)
    [listed_key] = (await accounts.ok("GET", "/keys", member))["keys"]
    assert listed_key["revoked_at"] is not None


async def test_malformed_keys_are_unknown_on_every_database(accounts: AccountsApp) -> None:
    for presented_key in ("moyin_\0_x", "moyin__x", "moyin_é_x"):
        with pytest.raises(InvalidKey):
            await accounts.parts.authenticator.authenticate(presented_key)


async def test_a_key_expires_on_time_in_every_time_zone(
    accounts: AccountsApp,
) -> None:
    moment = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    for hours in (-8, 0, 9):
        timestamp = moment.astimezone(timezone(timedelta(hours=hours))).isoformat()
        key = await accounts.ok("POST", "/keys", accounts.operator, {"expires_at": timestamp})
        assert datetime.fromisoformat(key["expires_at"]) == moment
        assert (await accounts.call("GET", "/whoami", key["key"])).status == 200


async def test_callers_cannot_grant_scopes_they_lack(accounts: AccountsApp) -> None:
    organisation = await accounts.organisation()
    member = (await accounts.member(organisation))["access_token"]
    admin = (await accounts.member(organisation, "admin"))["access_token"]
    for bearer, scopes in ((member, ["*"]), (member, ["org:admin"]), (admin, ["operator"])):
        refused_response = await accounts.call("POST", "/keys", bearer, {"scopes": scopes})
        assert (refused_response.status, refused_response.code) == (403, "insufficient_scope"), (
            scopes
        )
    # An operator's key that acts for the organisation: its admin may see and end it, not have it.
    database = Database(accounts.settings.sql_url)
    key_id, _ = await KeyStore(database).create(organisation, "operator's")
    await database.close()
    assert (await accounts.call("POST", f"/keys/{key_id}/rotate", admin)).status == 403
    await accounts.ok("DELETE", f"/keys/{key_id}", admin)


async def test_roles_and_service_accounts(accounts: AccountsApp) -> None:
    organisation = await accounts.organisation()
    admin = (await accounts.member(organisation, "admin"))["access_token"]
    path = f"/organisations/{organisation}"
    service = await accounts.ok(
        "POST", f"{path}/service-accounts", admin, {"name": "bot", "role": "member"}
    )
    key = await accounts.ok("POST", "/keys", admin, {"user": service["id"], "name": "bot's"})
    caller = await accounts.ok("GET", "/whoami", key["key"])
    assert (caller["owner"], caller["user"], "text" in caller["scopes"]) == (
        organisation, service["id"], True,
    )  # fmt: skip
    change = {"role": "viewer"}
    await accounts.ok("PATCH", f"{path}/members/{service['id']}", admin, change)
    rotated_key = await accounts.ok("POST", f"/keys/{key['id']}/rotate", admin)
    assert "text" not in (await accounts.ok("GET", "/whoami", rotated_key["key"]))["scopes"]
    await accounts.ok("PATCH", f"{path}/members/{service['id']}", admin, {"disabled": True})
    rotated_key = await accounts.ok("POST", f"/keys/{key['id']}/rotate", admin)
    assert (await accounts.call("GET", "/whoami", rotated_key["key"])).status == 401
    members = await accounts.ok("GET", f"{path}/members", admin)
    assert {(member["kind"], member["disabled"]) for member in members["members"]} == {
        ("member", False), ("service", True),
    }  # fmt: skip


async def test_limits_are_set_shown_and_lifted(accounts: AccountsApp) -> None:
    organisation = await accounts.organisation()
    admin = (await accounts.member(organisation, "admin"))["access_token"]
    key = await accounts.ok("POST", "/keys", admin, {"scopes": ["text"]})
    subject = f"key:{key['id']}"
    body = {"requests_per_minute": 60, "usd_per_day": "0.000000001"}
    set_ = await accounts.ok("PUT", f"/limits/{subject}", admin, body)
    assert (set_["usd_per_day"], set_["open_jobs"]) == ("0.000000001", None)
    assert (await accounts.ok("GET", "/limits", key["key"]))["limits"] == [set_]
    organisation_path = f"/limits/owner:{organisation}"
    assert (await accounts.call("PUT", organisation_path, admin, body)).status == 404
    await accounts.ok("PUT", organisation_path, accounts.operator, {"usd_per_month": 10})
    await accounts.ok("DELETE", f"/limits/{subject}", admin)
    cleared_limits = await accounts.ok("GET", f"/limits/{subject}", admin)
    assert set(cleared_limits.values()) == {None, subject}


async def test_every_administrative_act_is_in_the_audit_log(accounts: AccountsApp) -> None:
    organisation = await accounts.organisation()
    session = await accounts.member(organisation, "admin")
    admin, user = session["access_token"], session["user"]["id"]
    key = await accounts.ok("POST", "/keys", admin, {"scopes": ["text"]})
    limits = {"open_jobs": 1, "usd_per_day": "2.5", "pools": ["default"]}
    await accounts.ok("PUT", f"/limits/key:{key['id']}", admin, limits)
    await accounts.ok("POST", f"/keys/{key['id']}/rotate", admin)
    await accounts.ok("DELETE", f"/keys/{key['id']}", admin)
    entries: list[Any] = []
    while True:
        before_parameter = f"&before={entries[-1]['id']}" if entries else ""
        page = (await accounts.ok("GET", f"/audit?limit=2{before_parameter}", admin))["entries"]
        if not page:
            break
        entries += page
    recorded_acts = [(entry["action"], entry["actor"]) for entry in reversed(entries)]
    assert [action for action, _ in recorded_acts] == [
        "organisation.create", "member.create", "key.create", "limit.set", "key.rotate",
        "key.revoke",
    ]  # fmt: skip
    assert {actor for action, actor in recorded_acts if action.startswith("key")} == {user}
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
async def test_a_wrong_request_names_the_field_and_repeats_no_secret(
    accounts: AccountsApp, path: str, body: dict[str, str], field: str
) -> None:
    refused_response = await accounts.call("POST", path, None, body)
    assert (refused_response.status, refused_response.body["field"]) == (400, field)
    assert body["password"] not in str(refused_response.body)


async def test_new_players_get_the_limits_that_the_operator_set(accounts: AccountsApp) -> None:
    config = AccountsConfig.model_validate(
        {"player_scopes": ["player", "text"], "player_limits": {"usd_per_day": 0.5}}
    )
    accounts.parts.sign_in.policy = config.sign_in_policy
    player = await accounts.player()
    [limit] = (await accounts.ok("GET", "/limits", player["access_token"]))["limits"]
    assert (limit["subject"], limit["usd_per_day"]) == (f"user:{player['user']['id']}", "0.5")
    assert "text" in (await accounts.ok("GET", "/whoami", player["access_token"]))["scopes"]
    accounts.parts.sign_in.policy = AccountsConfig(registration=False).sign_in_policy
    body = {"email": "late@example.com", "password": PASSWORD}
    refused_response = await accounts.call("POST", "/register", None, body)
    accounts.parts.sign_in.policy = AccountsConfig().sign_in_policy
    assert (refused_response.status, refused_response.code) == (403, "insufficient_scope")


async def test_without_a_mail_server_the_admin_hands_the_invitation_over(
    accounts: AccountsApp,
) -> None:
    path = f"/organisations/{await accounts.organisation()}/members"
    mailed_invitation = await accounts.ok(
        "POST", path, accounts.operator, {"email": "m@example.com"}
    )
    assert mailed_invitation["invitation"] is None
    accounts.outbox.can_deliver = False
    invitation = await accounts.ok("POST", path, accounts.operator, {"email": "n@example.com"})
    accounts.outbox.can_deliver = True
    body = {"token": invitation["invitation"], "password": PASSWORD}
    await accounts.ok("POST", "/password/reset", None, body)
    await accounts.ok("POST", "/login", None, {"email": "n@example.com", "password": PASSWORD})


async def test_an_operator_shuts_a_player_out(accounts: AccountsApp) -> None:
    player = await accounts.player()
    user, email = player["user"]["id"], player["user"]["email"]
    [result] = (await accounts.ok("GET", f"/users?email={email}", accounts.operator))["users"]
    assert result["id"] == user
    assert (await accounts.ok("GET", f"/users/{user}", player["access_token"]))["id"] == user
    await accounts.ok("PATCH", f"/users/{user}", accounts.operator, {"disabled": True})
    credentials = {"email": email, "password": PASSWORD}
    assert (await accounts.call("POST", "/login", None, credentials)).status == 401
    refresh_body = {"refresh_token": player["refresh_token"]}
    assert (await accounts.call("POST", "/refresh", None, refresh_body)).status == 401
    await accounts.ok("PATCH", f"/users/{user}", accounts.operator, {"disabled": False})
    await accounts.ok("POST", "/login", None, credentials)


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
async def test_characters_that_no_database_stores_are_refused(
    accounts: AccountsApp, method: str, path: str, body: Any, status: int
) -> None:
    answer = await accounts.call(method, path, accounts.operator, body)
    assert answer.status == status, answer


async def test_a_player_closes_the_account_and_is_forgotten(accounts: AccountsApp) -> None:
    player = await accounts.player()
    user, email, token = player["user"]["id"], player["user"]["email"], player["access_token"]
    await accounts.ok("DELETE", "/me", token)
    assert (await accounts.ok("GET", f"/users?email={email}", accounts.operator))["users"] == []
    closed_user = await accounts.ok("GET", f"/users/{user}", accounts.operator)
    assert (closed_user["email"], closed_user["name"], closed_user["disabled"]) == (None, "", True)
    credentials = {"email": email, "password": PASSWORD}
    assert (await accounts.call("POST", "/login", None, credentials)).status == 401
    refresh_body = {"refresh_token": player["refresh_token"]}
    assert (await accounts.call("POST", "/refresh", None, refresh_body)).status == 401
    assert (await accounts.player(email))["user"]["id"] != user
