"""Tests that the credentials of open connections are rechecked, for each way to invalidate one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from moyin.access.gatekeeper.tokens import TokenVerifier, create_event_token, verify_event_token
from moyin.domain.account import Role
from moyin.domain.identity import JOBS_READ, JOBS_WRITE, TEXT, Identity
from moyin.domain.limits import Limit
from moyin.store.schema import api_keys, sessions
from moyin.store.sessions import SessionStore
from moyin.store.sql import now
from tests.unit.access.accounts.studio import Studio, make_caller

_SIGNING_KEY = b"s" * 32


class MemberScenario:
    """A member with a session and an API key."""

    def __init__(self, studio: Studio, admin: Identity, token: str, member: Identity) -> None:
        self.studio = studio
        self.admin = admin
        self.token = token
        self.member = member
        self.key_id = ""
        self.key = ""
        self.key_identity = member

    async def find_valid_names(self) -> set[str]:
        """Return which credentials are still valid, such as ``session`` or ``token of the key``."""
        credentials = {self.token: self.member, self.key: self.key_identity}
        names = {self.token: "session", self.key: "key"}
        for credential, identity in list(credentials.items()):
            token = create_event_token(_SIGNING_KEY, identity, "j", 60)
            credentials[token] = verify_event_token(_SIGNING_KEY, token)
            names[token] = f"token of the {names[credential]}"
        valid_credentials = await self.studio.parts.authenticator.recheck(credentials)
        return {names[credential] for credential in valid_credentials}

    async def execute(self, statement: sa.Executable) -> None:
        async with self.studio.database.writing() as connection:
            await connection.execute(statement)


@pytest.fixture
async def scenario(studio: Studio) -> MemberScenario:
    _, admin = await studio.add_member()
    session, member = await studio.add_member(Role.MEMBER)
    scenario = MemberScenario(studio, admin, session.access_token, member)
    key, scenario.key = await studio.parts.api_keys.create_key(
        make_caller(member), name="", scopes=[TEXT, JOBS_READ], expires_at=None, user_id=None
    )
    scenario.key_id = key.id
    scenario.key_identity = await studio.parts.authenticator.authenticate(scenario.key)
    return scenario


async def _revoke_key(scenario: MemberScenario) -> None:
    await scenario.studio.parts.api_keys.revoke_key(make_caller(scenario.member), scenario.key_id)


async def _rotate_key(scenario: MemberScenario) -> None:
    await scenario.studio.parts.api_keys.rotate_key(
        make_caller(scenario.member), scenario.key_id, timedelta(0)
    )


async def _expire_key(scenario: MemberScenario) -> None:
    past_time = now() - timedelta(seconds=1)
    await scenario.execute(api_keys.update().values(expires_at=past_time))


async def _sign_out(scenario: MemberScenario) -> None:
    user = str(scenario.member.user)
    await scenario.studio.parts.sign_in.sign_out(user, scenario.member.key_id, everywhere=False)


async def _expire_session(scenario: MemberScenario) -> None:
    past_time = now() - timedelta(seconds=1)
    await scenario.execute(sessions.update().values(expires_at=past_time))


async def _disable_member(scenario: MemberScenario) -> None:
    await scenario.studio.parts.organisations.change_member(
        make_caller(scenario.admin),
        scenario.studio.organisation,
        str(scenario.member.user),
        disabled=True,
    )


async def _change_role(scenario: MemberScenario) -> None:
    await scenario.studio.parts.organisations.change_member(
        make_caller(scenario.admin),
        scenario.studio.organisation,
        str(scenario.member.user),
        role=Role.VIEWER,
    )


async def _let_token_expire(scenario: MemberScenario) -> None:
    """Do nothing: the access token expires by itself while the session stays valid."""


@pytest.mark.parametrize(
    ("change", "valid_names"),
    [
        (_let_token_expire, {"session", "key"}),
        (_revoke_key, {"session"}),
        (_rotate_key, {"session"}),
        (_expire_key, {"session"}),
        (_sign_out, {"key"}),
        (_expire_session, {"key"}),
        (_disable_member, set()),
        (_change_role, {"key"}),
    ],
)
async def test_a_credential_is_valid_until_its_key_or_session_ends(
    scenario: MemberScenario,
    change: Callable[[MemberScenario], Awaitable[None]],
    valid_names: set[str],
) -> None:
    all_names = {"session", "key", "token of the session", "token of the key"}
    assert await scenario.find_valid_names() == all_names
    await change(scenario)
    remaining_names = await scenario.find_valid_names()
    assert remaining_names == valid_names | {f"token of the {name}" for name in valid_names}


async def test_a_recheck_returns_the_present_scopes_and_limits(scenario: MemberScenario) -> None:
    credentials = {scenario.key: Identity(owner=scenario.member.owner, key_id=scenario.key_id)}
    recheck = scenario.studio.parts.authenticator.recheck
    assert (await recheck(credentials))[scenario.key].scopes == {TEXT, JOBS_READ}
    await _change_role(scenario)
    limit = Limit(subject=f"key:{scenario.key_id}", concurrent_requests=0)
    await scenario.studio.parts.api_keys.set_limit(make_caller(scenario.admin), limit)
    identity = (await recheck(credentials))[scenario.key]
    assert (identity.scopes, identity.limits) == ({JOBS_READ}, (limit,))
    assert not identity.has_scope(JOBS_WRITE)


async def test_deleting_a_signing_key_ends_connections_of_its_tokens(
    scenario: MemberScenario,
) -> None:
    api_keys, operator = scenario.studio.parts.api_keys, make_caller(scenario.studio.operator)
    verifier = TokenVerifier(scenario.studio.parts.token_issuer._keys)
    assert await verifier.has_known_key(scenario.token)
    [old_key_id] = [
        key.kid for key in await scenario.studio.parts.token_issuer._keys.list_public_keys()
    ]
    await api_keys.rotate_signing_key(operator)
    await api_keys.delete_signing_key(operator, old_key_id)
    assert not await TokenVerifier(scenario.studio.parts.token_issuer._keys).has_known_key(
        scenario.token
    )


async def test_many_sessions_are_rechecked_in_one_query(
    scenario: MemberScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(scenario.studio.database)
    original_read, read_count = scenario.studio.database.read, 0

    async def count_read(work: Callable[[sa.Connection], object]) -> object:
        nonlocal read_count
        read_count += 1
        return await original_read(work)

    monkeypatch.setattr(scenario.studio.database, "read", count_read)
    session_ids = {f"ses_{number}" for number in range(400)} | {scenario.member.key_id}
    assert await store.filter_open(session_ids) == {scenario.member.key_id}
    assert read_count == 1
