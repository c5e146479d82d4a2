"""What callers do that lasts: proven again when it is done, and written down or not done at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from argon2 import PasswordHasher

from moyin.access.accounts.caller import Caller
from moyin.access.accounts.oidc import Provider, VerifiedIdentity
from moyin.access.accounts.passwords import Passwords
from moyin.access.accounts.signin import Policy
from moyin.access.gatekeeper.identity import mint_token
from moyin.domain.account import Role, UserKind
from moyin.domain.limits import Limit
from moyin.errors import InvalidKey, MoyinError, NameTaken
from moyin.store.audit import AuditLog
from moyin.store.limits import LimitStore
from tests.unit.access.accounts.studio import PASSWORD, SECRET, Studio, by
from tests.unit.access.accounts.test_passwords import QUICK


async def _key(studio: Studio, caller: Caller) -> object:
    return await studio.parts.keyring.create_key(
        caller, name="", scopes=["text"], expires_at=None, user_id=None
    )


async def _member(studio: Studio, caller: Caller) -> object:
    return await studio.parts.office.add_member(
        caller, studio.organisation, email="thief@example.com", name="", role=Role.ADMIN
    )


async def _service(studio: Studio, caller: Caller) -> object:
    return await studio.parts.office.add_service(caller, studio.organisation, "bot", Role.ADMIN)


async def _role(studio: Studio, caller: Caller) -> object:
    return await studio.parts.office.change_member(
        caller, studio.organisation, str(caller.identity.user), role=Role.ADMIN
    )


async def _limit(studio: Studio, caller: Caller) -> object:
    limit = Limit(subject=f"user:{caller.identity.user}", open_jobs=1)
    return await studio.parts.keyring.set_limit(caller, limit)


async def _profile(studio: Studio, caller: Caller) -> object:
    user = str(caller.identity.user)
    return await studio.parts.sign_in.change_profile(caller.identity, user, {"name": "thief"})


LASTING = [_key, _member, _service, _role, _limit, _profile]


@pytest.mark.parametrize("act", LASTING)
async def test_a_session_that_is_over_makes_nothing_that_lasts(studio: Studio, act: Any) -> None:
    """What the door knows of a session may be seconds old."""
    _, known = await studio.member()
    before = await studio.acts(), await studio.keys()
    await studio.parts.sign_in.sign_out(str(known.user), known.key_id, everywhere=False)
    with pytest.raises(InvalidKey):
        await act(studio, by(known))
    assert (await studio.acts(), await studio.keys()) == before
    assert (await studio.parts.users.get(str(known.user))).name == ""


async def test_a_key_that_may_less_by_now_makes_no_other(studio: Studio) -> None:
    signed_in, known = await studio.member()
    key, text = await studio.parts.keyring.create_key(
        by(known), name="", scopes=known.scopes, expires_at=None, user_id=None
    )
    held = await studio.parts.authenticator.authenticate(text)
    await _key(studio, by(held))
    await studio.parts.office.change_member(
        by(studio.operator), studio.organisation, signed_in.user.id, role=Role.MEMBER
    )
    with pytest.raises(InvalidKey):
        await _service(studio, by(held))
    fewer = await studio.parts.authenticator.authenticate(text)
    await _key(studio, by(fewer))
    await studio.parts.keyring.revoke_key(by(studio.operator), key.id)
    with pytest.raises(InvalidKey):
        await _key(studio, by(fewer))


async def test_a_job_makes_no_key_for_a_session_that_is_over(studio: Studio) -> None:
    _, known = await studio.member()
    token = mint_token(
        SECRET.encode(),
        known.owner,
        "jobs",
        key_id=known.key_id,
        user=known.user,
        scopes=known.scopes,
    )
    job = await studio.parts.authenticator.authenticate(token)
    await _key(studio, by(job))
    await studio.parts.sign_in.sign_out(str(known.user), known.key_id, everywhere=True)
    job = await studio.parts.authenticator.authenticate(token)
    with pytest.raises(InvalidKey):
        await _key(studio, by(job))


async def test_a_secret_that_was_replaced_is_refused_at_once(studio: Studio) -> None:
    _, known = await studio.member()
    key, leaked = await studio.parts.keyring.create_key(
        by(known), name="", scopes=None, expires_at=None, user_id=None
    )
    await studio.parts.authenticator.authenticate(leaked)
    await studio.parts.keyring.rotate_key(by(known), key.id, timedelta(0))
    with pytest.raises(InvalidKey):
        await studio.parts.authenticator.authenticate(leaked)


@pytest.mark.parametrize("act", LASTING[:-1])
async def test_what_can_not_be_written_down_is_not_done(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    """The caller may leave, or the process end, at any moment."""
    _, known = await studio.member()
    members = len(await studio.parts.users.members(studio.organisation))

    async def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError

    before = await studio.keys()
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "write", lost)
        with pytest.raises(ConnectionResetError):
            await act(studio, by(known))
    assert await studio.keys() == before
    assert len(await studio.parts.users.members(studio.organisation)) == members
    assert await LimitStore(studio.database).of([f"user:{known.user}"]) == ()
    # Its sessions would have ended with a change of role.
    await _key(studio, by(known))


async def test_a_player_comes_with_limits_or_not_at_all(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.parts.sign_in.policy = Policy(player_limits=Limit(subject="", open_jobs=1))

    async def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(LimitStore, "set", lost)
        with pytest.raises(ConnectionResetError):
            await studio.parts.sign_in.register("eve@example.com", PASSWORD, "", "")
    player = await studio.parts.sign_in.register("eve@example.com", PASSWORD, "", "")
    [limit] = await LimitStore(studio.database).of([f"user:{player.user.id}"])
    assert limit.open_jobs == 1


async def test_a_reset_that_does_not_end_the_sessions_sets_no_password(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    player = await studio.parts.sign_in.register("eve@example.com", PASSWORD, "", "")
    sessions = studio.parts.sign_in._sessions
    token = await sessions.allow_reset(player.user.id, timedelta(hours=1))

    async def lost(*_: object, **__: object) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr("moyin.store.sessions._revoke", lost)
        with pytest.raises(ConnectionResetError):
            await studio.parts.sign_in.reset(token, "a brand new one", "")
    await studio.parts.sign_in.sign_in("eve@example.com", PASSWORD, "")
    await studio.parts.sign_in.reset(token, "a brand new one", "")
    with pytest.raises(MoyinError):
        await studio.parts.sign_in.refresh(player.refresh_token)


class Held(Passwords):
    """Does something between the proof of a password and the session that it opens."""

    def __init__(self, hasher: PasswordHasher, between: Any) -> None:
        super().__init__(hasher)
        self._between = between

    async def fits(self, known: str | None, password: str, **rest: Any) -> bool:
        fitting = await super().fits(known, password, **rest)
        await self._between()
        return fitting


async def test_a_session_has_the_role_of_its_beginning(studio: Studio) -> None:
    signed_in, _ = await studio.member(Role.ADMIN)

    async def demoted() -> None:
        await studio.parts.office.change_member(
            by(studio.operator), studio.organisation, signed_in.user.id, role=Role.VIEWER
        )

    studio.parts.sign_in._passwords = Held(QUICK, demoted)
    after = await studio.parts.sign_in.sign_in(str(signed_in.user.email), PASSWORD, "")
    held = await studio.parts.authenticator.authenticate(after.access_token)
    assert not held.has_scope("org:admin")


PROVIDER = Provider(
    name="studio", issuer="https://id.example", client_id="moyin", redirect_uris=("https://a/",)
)


def vouched(
    provider: Provider, subject: str, email: str | None = "eve@example.com"
) -> VerifiedIdentity:
    return VerifiedIdentity(provider=provider, subject=subject, email=email, name="")


@pytest.mark.parametrize("linked", [True, False])
async def test_two_tabs_that_come_from_a_provider_at_once_are_one_account(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    provider = replace(PROVIDER, links_emails=linked)
    sign_in, users = studio.parts.sign_in, studio.parts.users
    if linked:
        await users.create(UserKind.PLAYER, email="eve@example.com", name="")
    by_sign_in, others = users.by_sign_in, iter([vouched(provider, "eve")])

    async def late(issuer: str, subject: str) -> object:
        found = await by_sign_in(issuer, subject)
        for other in others:
            assert (await sign_in.sign_in_with(other)).user.email == "eve@example.com"
        return found

    monkeypatch.setattr(users, "by_sign_in", late)
    second = await sign_in.sign_in_with(vouched(provider, "eve"))
    monkeypatch.undo()
    assert (await users.by_sign_in(provider.issuer, "eve")) == second.user
    # Somebody else with that email is still told so.
    if not linked:
        with pytest.raises(NameTaken):
            await sign_in.sign_in_with(vouched(provider, "eve2"))


async def test_an_account_that_is_taken_over_is_left_by_whom_nobody_trusted(
    studio: Studio,
) -> None:
    sign_in, users = studio.parts.sign_in, studio.parts.users
    untrusted = replace(PROVIDER, issuer="https://anybody.example")
    trusted = replace(PROVIDER, links_emails=True)
    second = replace(PROVIDER, issuer="https://second.example", links_emails=True)
    sign_in.policy = Policy(trusted_issuers=frozenset({trusted.issuer, second.issuer}))
    squatter = await sign_in.sign_in_with(vouched(untrusted, "squatter"))
    owner = await sign_in.sign_in_with(vouched(trusted, "eve"))
    assert owner.user.id == squatter.user.id
    assert await users.by_sign_in(untrusted.issuer, "squatter") is None
    with pytest.raises(NameTaken):
        await sign_in.sign_in_with(vouched(untrusted, "squatter"))
    # Two that are trusted lead to the same account, and neither ends the other.
    await sign_in.sign_in_with(vouched(second, "eve"))
    for provider in (trusted, second):
        assert (await users.by_sign_in(provider.issuer, "eve")) is not None
