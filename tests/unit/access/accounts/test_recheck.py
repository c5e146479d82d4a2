"""Tests that open connections recheck their credentials, for each way in which credentials end."""

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


class Scene:
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
        """Return the names of the credentials and event tokens that are still valid."""
        credentials = {self.token: self.member, self.key: self.key_identity}
        names = {self.token: "session", self.key: "key"}
        for credential, creator in list(credentials.items()):
            token = create_event_token(_SIGNING_KEY, creator, "j", 60)
            credentials[token] = verify_event_token(_SIGNING_KEY, token)
            names[token] = f"token of the {names[credential]}"
        result = await self.studio.parts.authenticator.recheck(credentials)
        return {names[credential] for credential in result}

    async def execute(self, statement: sa.Executable) -> None:
        async with self.studio.database.writing() as connection:
            await connection.execute(statement)


@pytest.fixture
async def scene(studio: Studio) -> Scene:
    _, admin = await studio.member()
    signed_in, member = await studio.member(Role.MEMBER)
    scene = Scene(studio, admin, signed_in.access_token, member)
    key, scene.key = await studio.parts.api_keys.create_key(
        make_caller(member), name="", scopes=[TEXT, JOBS_READ], expires_at=None, user_id=None
    )
    scene.key_id = key.id
    scene.key_identity = await studio.parts.authenticator.authenticate(scene.key)
    return scene


async def _revoke(scene: Scene) -> None:
    await scene.studio.parts.api_keys.revoke_key(make_caller(scene.member), scene.key_id)


async def _rotate(scene: Scene) -> None:
    await scene.studio.parts.api_keys.rotate_key(
        make_caller(scene.member), scene.key_id, timedelta(0)
    )


async def _expire_key(scene: Scene) -> None:
    past_time = now() - timedelta(seconds=1)
    await scene.execute(api_keys.update().values(expires_at=past_time))


async def _sign_out(scene: Scene) -> None:
    user = str(scene.member.user)
    await scene.studio.parts.sign_in.sign_out(user, scene.member.key_id, everywhere=False)


async def _expire_session(scene: Scene) -> None:
    past_time = now() - timedelta(seconds=1)
    await scene.execute(sessions.update().values(expires_at=past_time))


async def _disable_member(scene: Scene) -> None:
    await scene.studio.parts.organisations.change_member(
        make_caller(scene.admin), scene.studio.organisation, str(scene.member.user), disabled=True
    )


async def _other_role(scene: Scene) -> None:
    await scene.studio.parts.organisations.change_member(
        make_caller(scene.admin),
        scene.studio.organisation,
        str(scene.member.user),
        role=Role.VIEWER,
    )


async def _let_token_expire(scene: Scene) -> None:
    """Do nothing: the access token expires by itself while the session stays valid."""


@pytest.mark.parametrize(
    ("change", "valid_names"),
    [
        (_let_token_expire, {"session", "key"}),
        (_revoke, {"session"}),
        (_rotate, {"session"}),
        (_expire_key, {"session"}),
        (_sign_out, {"key"}),
        (_expire_session, {"key"}),
        (_disable_member, set()),
        (_other_role, {"key"}),
    ],
)
async def test_a_credential_is_valid_until_its_key_or_session_ends(
    scene: Scene, change: Callable[[Scene], Awaitable[None]], valid_names: set[str]
) -> None:
    all_names = {"session", "key", "token of the session", "token of the key"}
    assert await scene.find_valid_names() == all_names
    await change(scene)
    result = await scene.find_valid_names()
    assert result == valid_names | {f"token of the {name}" for name in valid_names}


async def test_a_recheck_returns_the_present_scopes_and_limits(scene: Scene) -> None:
    credentials = {scene.key: Identity(owner=scene.member.owner, key_id=scene.key_id)}
    recheck = scene.studio.parts.authenticator.recheck
    assert (await recheck(credentials))[scene.key].scopes == {TEXT, JOBS_READ}
    await _other_role(scene)
    limit = Limit(subject=f"key:{scene.key_id}", concurrent_requests=0)
    await scene.studio.parts.api_keys.set_limit(make_caller(scene.admin), limit)
    result = (await recheck(credentials))[scene.key]
    assert (result.scopes, result.limits) == ({JOBS_READ}, (limit,))
    assert not result.has_scope(JOBS_WRITE)


async def test_deleting_a_signing_key_ends_connections_of_its_tokens(scene: Scene) -> None:
    api_keys, operator = scene.studio.parts.api_keys, make_caller(scene.studio.operator)
    verifier = TokenVerifier(scene.studio.parts.token_issuer._keys)
    assert await verifier.has_known_key(scene.token)
    [old_key_id] = [
        key.kid for key in await scene.studio.parts.token_issuer._keys.list_public_keys()
    ]
    await api_keys.rotate_signing_key(operator)
    await api_keys.delete_signing_key(operator, old_key_id)
    assert not await TokenVerifier(scene.studio.parts.token_issuer._keys).has_known_key(scene.token)


async def test_many_credentials_take_one_query_per_kind(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(scene.studio.database)
    original_read, reads = scene.studio.database.read, 0

    async def counted(work: Callable[[sa.Connection], object]) -> object:
        nonlocal reads
        reads += 1
        return await original_read(work)

    monkeypatch.setattr(scene.studio.database, "read", counted)
    ids = {f"ses_{number}" for number in range(400)} | {scene.member.key_id}
    assert await store.filter_open(ids) == {scene.member.key_id}
    assert reads == 1
