"""Tests that a lasting change needs another check of the caller, and an entry in the audit log."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher

from moyin.access.accounts.caller import Caller
from moyin.access.accounts.oidc import VerifiedIdentity
from moyin.access.accounts.passwords import PasswordService
from moyin.access.accounts.rules import OpenIdProvider, SignInPolicy
from moyin.access.gatekeeper.identity import create_service_token
from moyin.domain.account import Role, UserKind
from moyin.domain.limits import Limit
from moyin.errors import InvalidKey, MoyinError, NameTaken
from moyin.store.audit import AuditLog
from moyin.store.limits import LimitStore
from tests.unit.access.accounts.studio import PASSWORD, SECRET, Studio, make_caller
from tests.unit.access.accounts.test_passwords import QUICK


async def _create_key(studio: Studio, caller: Caller) -> object:
    return await studio.parts.api_keys.create_key(
        caller, name="", scopes=["text"], expires_at=None, user_id=None
    )


async def _add_member(studio: Studio, caller: Caller) -> object:
    return await studio.parts.organisations.add_member(
        caller, studio.organisation, email="thief@example.com", name="", role=Role.ADMIN
    )


async def _add_service_account(studio: Studio, caller: Caller) -> object:
    return await studio.parts.organisations.add_service_account(
        caller, studio.organisation, "bot", Role.ADMIN
    )


async def _change_own_role(studio: Studio, caller: Caller) -> object:
    return await studio.parts.organisations.change_member(
        caller, studio.organisation, str(caller.identity.user), role=Role.ADMIN
    )


async def _set_limit(studio: Studio, caller: Caller) -> None:
    limit = Limit(subject=f"user:{caller.identity.user}", open_jobs=1)
    await studio.parts.api_keys.set_limit(caller, limit)


async def _change_profile(studio: Studio, caller: Caller) -> object:
    user = str(caller.identity.user)
    return await studio.parts.sign_in.change_profile(caller.identity, user, {"name": "thief"})


LASTING_CHANGES = [
    _create_key,
    _add_member,
    _add_service_account,
    _change_own_role,
    _set_limit,
    _change_profile,
]


@pytest.mark.parametrize("change", LASTING_CHANGES)
async def test_an_ended_session_cannot_make_lasting_changes(studio: Studio, change: Any) -> None:
    """The change is refused although the gatekeeper's cache may still contain the session."""
    _, caller = await studio.add_member()
    state_before = await studio.list_audited_actions(), await studio.count_keys()
    await studio.parts.sign_in.sign_out(str(caller.user), caller.key_id, everywhere=False)
    with pytest.raises(InvalidKey):
        await change(studio, make_caller(caller))
    assert (await studio.list_audited_actions(), await studio.count_keys()) == state_before
    assert (await studio.parts.users.get(str(caller.user))).name == ""


async def test_a_key_that_lost_scopes_cannot_create_keys(studio: Studio) -> None:
    session, caller = await studio.add_member()
    key, secret = await studio.parts.api_keys.create_key(
        make_caller(caller), name="", scopes=caller.scopes, expires_at=None, user_id=None
    )
    key_caller = await studio.parts.authenticator.authenticate(secret)
    await _create_key(studio, make_caller(key_caller))
    await studio.parts.organisations.change_member(
        make_caller(studio.operator), studio.organisation, session.user.id, role=Role.MEMBER
    )
    with pytest.raises(InvalidKey):
        await _add_service_account(studio, make_caller(key_caller))
    limited_caller = await studio.parts.authenticator.authenticate(secret)
    await _create_key(studio, make_caller(limited_caller))
    await studio.parts.api_keys.revoke_key(make_caller(studio.operator), key.id)
    with pytest.raises(InvalidKey):
        await _create_key(studio, make_caller(limited_caller))


async def test_a_job_of_an_ended_session_cannot_create_keys(studio: Studio) -> None:
    _, caller = await studio.add_member()
    token = create_service_token(
        SECRET.encode(),
        caller.owner,
        "jobs",
        key_id=caller.key_id,
        user=caller.user,
        scopes=caller.scopes,
    )
    job_caller = await studio.parts.authenticator.authenticate(token)
    await _create_key(studio, make_caller(job_caller))
    await studio.parts.sign_in.sign_out(str(caller.user), caller.key_id, everywhere=True)
    job_caller = await studio.parts.authenticator.authenticate(token)
    with pytest.raises(InvalidKey):
        await _create_key(studio, make_caller(job_caller))


async def test_a_replaced_secret_is_refused_at_once(studio: Studio) -> None:
    _, caller = await studio.add_member()
    key, leaked_secret = await studio.parts.api_keys.create_key(
        make_caller(caller), name="", scopes=None, expires_at=None, user_id=None
    )
    await studio.parts.authenticator.authenticate(leaked_secret)
    await studio.parts.api_keys.rotate_key(make_caller(caller), key.id, timedelta(0))
    with pytest.raises(InvalidKey):
        await studio.parts.authenticator.authenticate(leaked_secret)


@pytest.mark.parametrize("change", LASTING_CHANGES[:-1])
async def test_a_change_without_audit_entry_is_rolled_back(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    """If the audit entry is not written, such as when the caller disconnects, nothing is changed."""
    _, caller = await studio.add_member()
    members = await studio.parts.users.list_members(studio.organisation)

    async def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError

    count_before = await studio.count_keys()
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "write", fail)
        with pytest.raises(ConnectionResetError):
            await change(studio, make_caller(caller))
    assert await studio.count_keys() == count_before
    assert await studio.parts.users.list_members(studio.organisation) == members
    assert await LimitStore(studio.database).list_for([f"user:{caller.user}"]) == ()
    # A change of role would have ended the session.
    await _create_key(studio, make_caller(caller))


async def test_a_player_is_created_with_limits_or_not_at_all(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.parts.sign_in.policy = SignInPolicy(player_limits=Limit(subject="", open_jobs=1))

    async def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(LimitStore, "set", fail)
        with pytest.raises(ConnectionResetError):
            await studio.parts.sign_in.register("eve@example.com", PASSWORD, "", "")
    player_session = await studio.parts.sign_in.register("eve@example.com", PASSWORD, "", "")
    [limit] = await LimitStore(studio.database).list_for([f"user:{player_session.user.id}"])
    assert limit.open_jobs == 1


async def test_a_reset_that_cannot_end_sessions_sets_no_password(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    player_session = await studio.parts.sign_in.register("eve@example.com", PASSWORD, "", "")
    sessions = studio.parts.sign_in._sessions
    token = await sessions.create_reset_token(player_session.user.id, timedelta(hours=1))

    def fail(_: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr("moyin.store.sessions._build_revocation", fail)
        with pytest.raises(ConnectionResetError):
            await studio.parts.sign_in.reset_password(token, "a brand new one", "")
    await studio.parts.sign_in.sign_in("eve@example.com", PASSWORD, "")
    await studio.parts.sign_in.reset_password(token, "a brand new one", "")
    with pytest.raises(MoyinError):
        await studio.parts.sign_in.refresh_session(player_session.refresh_token)


class InterruptedPasswords(PasswordService):
    """Runs a callback when a password has been verified, before the new session is created."""

    def __init__(self, hasher: PasswordHasher, interruption: Any) -> None:
        super().__init__(hasher)
        self._interruption = interruption

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
        await self._interruption()
        return matches


async def test_a_session_begins_with_the_present_role_of_its_user(studio: Studio) -> None:
    session, _ = await studio.add_member(Role.ADMIN)

    async def demote_member() -> None:
        await studio.parts.organisations.change_member(
            make_caller(studio.operator), studio.organisation, session.user.id, role=Role.VIEWER
        )

    studio.parts.sign_in._passwords = InterruptedPasswords(QUICK, demote_member)
    new_session = await studio.parts.sign_in.sign_in(str(session.user.email), PASSWORD, "")
    new_caller = await studio.parts.authenticator.authenticate(new_session.access_token)
    assert not new_caller.has_scope("org:admin")


PROVIDER = OpenIdProvider(
    name="studio", issuer="https://id.example", client_id="moyin", redirect_uris=("https://a/",)
)


def make_verified_identity(
    provider: OpenIdProvider, subject: str, email: str | None = "eve@example.com"
) -> VerifiedIdentity:
    return VerifiedIdentity(provider=provider, subject=subject, email=email, name="")


@pytest.mark.parametrize("links_emails", [True, False])
async def test_concurrent_provider_sign_ins_create_one_account(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, links_emails: bool
) -> None:
    provider = replace(PROVIDER, links_emails=links_emails)
    sign_in, users = studio.parts.sign_in, studio.parts.users
    if links_emails:
        await users.create(UserKind.PLAYER, email="eve@example.com", name="")
    find_by_sign_in, other_identities = (
        users.find_by_sign_in,
        iter([make_verified_identity(provider, "eve")]),
    )

    async def sign_in_others_meanwhile(issuer: str, subject: str) -> object:
        user = await find_by_sign_in(issuer, subject)
        for other_identity in other_identities:
            assert (
                await sign_in.sign_in_with_identity(other_identity)
            ).user.email == "eve@example.com"
        return user

    monkeypatch.setattr(users, "find_by_sign_in", sign_in_others_meanwhile)
    session = await sign_in.sign_in_with_identity(make_verified_identity(provider, "eve"))
    monkeypatch.undo()
    assert (await users.find_by_sign_in(provider.issuer, "eve")) == session.user
    # Another person with that email is still refused.
    if not links_emails:
        with pytest.raises(NameTaken):
            await sign_in.sign_in_with_identity(make_verified_identity(provider, "eve2"))


async def test_taking_over_an_account_removes_untrusted_sign_ins(
    studio: Studio,
) -> None:
    sign_in, users = studio.parts.sign_in, studio.parts.users
    untrusted_provider = replace(PROVIDER, issuer="https://anybody.example")
    trusted_provider = replace(PROVIDER, links_emails=True)
    second_provider = replace(PROVIDER, issuer="https://second.example", links_emails=True)
    sign_in.policy = SignInPolicy(
        trusted_issuers=frozenset({trusted_provider.issuer, second_provider.issuer})
    )
    squatter_session = await sign_in.sign_in_with_identity(
        make_verified_identity(untrusted_provider, "squatter")
    )
    owner_session = await sign_in.sign_in_with_identity(
        make_verified_identity(trusted_provider, "eve")
    )
    assert owner_session.user.id == squatter_session.user.id
    assert await users.find_by_sign_in(untrusted_provider.issuer, "squatter") is None
    with pytest.raises(NameTaken):
        await sign_in.sign_in_with_identity(make_verified_identity(untrusted_provider, "squatter"))
    # Two trusted providers sign in to the same account, and neither removes the other.
    await sign_in.sign_in_with_identity(make_verified_identity(second_provider, "eve"))
    for provider in (trusted_provider, second_provider):
        assert (await users.find_by_sign_in(provider.issuer, "eve")) is not None
