"""Tests that callers cannot grant scopes that they lack, nor for longer than they have them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from moyin.access.accounts.mail import Mail
from moyin.access.accounts.oidc import OpenIdProvider
from moyin.domain.account import ROLE_SCOPES, Role
from moyin.domain.identity import JOBS_WRITE, KEYS, ORG_ADMIN, Identity
from moyin.errors import (
    InsufficientScope,
    InvalidCredentials,
    InvalidRequest,
    InvalidToken,
    NotFound,
    TooManyAttempts,
)
from moyin.store.audit import AuditFilter, AuditLog
from moyin.store.sql import Transaction, now
from tests.unit.access.accounts.studio import PASSWORD, Studio, by

TOMORROW, NEXT_WEEK = timedelta(days=1), timedelta(days=7)


async def _key_of(
    studio: Studio,
    identity: Identity,
    scopes: Iterable[str] | None = None,
    expires_at: datetime | None = None,
) -> tuple[Any, Identity]:
    key, text = await studio.parts.api_keys.create_key(
        by(identity), name="", scopes=scopes, expires_at=expires_at, user_id=None
    )
    return key, await studio.parts.authenticator.authenticate(text)


async def test_assigning_a_role_needs_all_of_its_scopes(studio: Studio) -> None:
    organisations, (_, admin) = studio.parts.organisations, await studio.member()
    _, hirer = await _key_of(studio, admin, [ORG_ADMIN])
    viewer = await organisations.add_service_account(
        by(admin), studio.organisation, "bot", Role.VIEWER
    )
    for role in Role:
        with pytest.raises(InsufficientScope, match="cannot grant scopes"):
            await organisations.add_member(
                by(hirer), studio.organisation, email="e@example.com", name="", role=role
            )
        with pytest.raises(InsufficientScope):
            await organisations.add_service_account(by(hirer), studio.organisation, "other", role)
        with pytest.raises(InsufficientScope):
            await organisations.change_member(by(hirer), studio.organisation, viewer.id, role=role)
    # Disabling a member grants nothing.
    await organisations.change_member(by(hirer), studio.organisation, viewer.id, disabled=True)
    members, _ = await organisations.list_members(by(admin), studio.organisation)
    assert [user.role for user in members] == [
        Role.VIEWER, Role.ADMIN,
    ]  # fmt: skip
    _, enough = await _key_of(studio, admin, {ORG_ADMIN, *ROLE_SCOPES[Role.VIEWER]})
    await organisations.add_service_account(by(enough), studio.organisation, "reader", Role.VIEWER)
    with pytest.raises(InsufficientScope):
        await organisations.add_service_account(
            by(enough), studio.organisation, "writer", Role.MEMBER
        )


async def test_an_operator_may_assign_any_role(studio: Studio) -> None:
    operator = Identity(
        owner="admin", key_id=studio.operator.key_id, scopes=frozenset({"operator"})
    )
    user = await studio.parts.organisations.add_service_account(
        by(operator), studio.organisation, "bot", Role.ADMIN
    )
    assert user.role is Role.ADMIN


async def test_a_key_cannot_create_one_that_outlives_it(studio: Studio) -> None:
    _, admin = await studio.member()
    ends = now() + TOMORROW
    mine, visitor = await _key_of(studio, admin, admin.scopes, ends)
    made, heir = await _key_of(studio, visitor, admin.scopes)
    assert made.expires_at == mine.expires_at
    sooner, _ = await _key_of(studio, heir, expires_at=ends - timedelta(hours=1))
    assert sooner.expires_at == ends - timedelta(hours=1)
    with pytest.raises(InvalidRequest) as refused:
        await _key_of(studio, visitor, expires_at=ends + timedelta(seconds=1))
    assert refused.value.field == "expires_at"
    # A key that expires later cannot be rotated; the own key can.
    lasting, _ = await _key_of(studio, admin, [JOBS_WRITE])
    with pytest.raises(InsufficientScope, match="expires later than your own key"):
        await studio.parts.api_keys.rotate_key(by(visitor), lasting.id, timedelta(0))
    await studio.parts.api_keys.rotate_key(by(visitor), mine.id, timedelta(0))
    # Keys of a session may outlive it.
    lasting, permanent = await _key_of(studio, admin, [KEYS], now() + NEXT_WEEK)
    assert lasting.expires_at > ends
    await studio.parts.sign_in.sign_out(str(admin.user), admin.key_id, everywhere=True)
    await _key_of(studio, permanent, [KEYS])


async def test_a_member_can_be_invited_again(studio: Studio) -> None:
    organisations, sign_in = studio.parts.organisations, studio.parts.sign_in
    _, admin = await studio.member()
    organisation_id, first = await organisations.add_member(
        by(admin), studio.organisation, email="New@example.com", name="", role=Role.MEMBER
    )
    user, second = await organisations.invite_member(
        by(admin), studio.organisation, organisation_id.id
    )
    assert user.id == organisation_id.id
    with pytest.raises(InvalidToken):
        await sign_in.reset_password(str(first), PASSWORD, "")
    await sign_in.reset_password(str(second), PASSWORD, "")
    session = await sign_in.sign_in("new@example.com", PASSWORD, "")
    assert (await studio.audited_actions())[:2] == ["member.invite", "member.create"]
    # Without a mail server, only an invitation can replace a forgotten password.
    _, third = await organisations.invite_member(by(admin), studio.organisation, organisation_id.id)
    await sign_in.reset_password(str(third), "another password", "")
    with pytest.raises(InvalidCredentials):
        await sign_in.sign_in("new@example.com", PASSWORD, "")
    with pytest.raises(InvalidToken):
        await sign_in.refresh_session(session.refresh_token)


async def test_inviting_a_member_needs_all_scopes_of_the_role(studio: Studio) -> None:
    organisations = studio.parts.organisations
    boss, admin = await studio.member()
    _, member = await studio.member(Role.MEMBER)
    _, hirer = await _key_of(studio, admin, [ORG_ADMIN])
    for identity in (member, hirer):
        with pytest.raises(InsufficientScope):
            await organisations.invite_member(by(identity), studio.organisation, boss.user.id)
    other = await organisations.create_organisation(by(studio.operator), "rival")
    with pytest.raises(NotFound):
        await organisations.invite_member(by(studio.operator), other.id, boss.user.id)
    bot = await organisations.add_service_account(
        by(admin), studio.organisation, "bot", Role.MEMBER
    )
    with pytest.raises(InvalidRequest, match="not a service account"):
        await organisations.invite_member(by(admin), studio.organisation, bot.id)
    await organisations.change_member(
        by(admin), studio.organisation, str(member.user), disabled=True
    )
    with pytest.raises(InvalidRequest, match="is disabled"):
        await organisations.invite_member(by(admin), studio.organisation, str(member.user))


async def test_an_invitation_checks_the_role_inside_its_transaction(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisations, transactions = (
        studio.parts.organisations,
        studio.parts.organisations._transactions,
    )
    _, admin = await studio.member()
    someone, _ = await studio.member(Role.VIEWER)
    _, hirer = await _key_of(studio, admin, {ORG_ADMIN, *ROLE_SCOPES[Role.VIEWER]})
    begin = transactions.begin

    @asynccontextmanager
    async def late(identity: Identity, **kwargs: Any) -> AsyncIterator[Transaction]:
        monkeypatch.setattr(transactions, "begin", begin)
        await organisations.change_member(
            by(admin), studio.organisation, someone.user.id, role=Role.ADMIN
        )
        async with begin(identity, **kwargs) as transaction:
            yield transaction

    monkeypatch.setattr(transactions, "begin", late)
    with pytest.raises(InsufficientScope):
        await organisations.invite_member(by(hirer), studio.organisation, someone.user.id)


async def test_a_new_role_invalidates_invitations(studio: Studio) -> None:
    organisations = studio.parts.organisations
    _, admin = await studio.member()
    someone, _ = await studio.member(Role.VIEWER)
    _, hirer = await _key_of(studio, admin, {ORG_ADMIN, *ROLE_SCOPES[Role.VIEWER]})
    _, token = await organisations.invite_member(by(hirer), studio.organisation, someone.user.id)
    await organisations.change_member(
        by(admin), studio.organisation, someone.user.id, role=Role.ADMIN
    )
    with pytest.raises(InvalidToken):
        await studio.parts.sign_in.reset_password(str(token), "another password", "")


async def test_with_a_mail_server_an_invitation_is_only_mailed(
    studio: Studio,
) -> None:
    class Outbox:
        can_deliver = True

        def __init__(self) -> None:
            self.mails: list[Mail] = []

        async def send(self, mail: Mail) -> None:
            self.mails.append(mail)

    _, admin = await studio.member()
    old, _ = await studio.member(Role.MEMBER)
    studio.parts.sign_in._mailer = outbox = Outbox()
    new, _ = await studio.parts.organisations.add_member(
        by(admin), studio.organisation, email="n@example.com", name="", role=Role.MEMBER
    )
    for user in (new.id, old.user.id):
        assert (
            await studio.parts.organisations.invite_member(by(admin), studio.organisation, user)
        )[1] is None
    await studio.parts.sign_in.close()
    assert [(mail.to, mail.subject) for mail in outbox.mails] == [
        (new.email, "Your new account"),
        (new.email, "Your new account"),
        (old.user.email, "Set a new password"),
    ]


async def test_unfinished_provider_sign_ins_are_limited(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []

    async def limit(name: str, most: int) -> None:
        counted.append(name)
        raise TooManyAttempts("too many attempts; try again later", retry_after=1)

    open_id = studio.parts.open_id
    monkeypatch.setattr(open_id._throttle, "count_event", limit)
    open_id.providers = {
        "studio": OpenIdProvider(
            name="studio",
            issuer="http://127.0.0.1:1",
            client_id="moyin",
            redirect_uris=("https://a/",),
        )
    }
    with pytest.raises(TooManyAttempts):
        await open_id.begin_sign_in("studio", "https://a/", "203.0.113.1")
    assert counted == ["begin 203.0.113.1"]


async def test_a_key_without_named_scopes_gets_the_default_ones(
    studio: Studio,
) -> None:
    working = {"text", "jobs:read", "jobs:write"}
    _, admin = await studio.member()
    bot = await studio.parts.organisations.add_service_account(
        by(admin), studio.organisation, "b", Role.VIEWER
    )
    for who in (studio.operator, admin):
        key, _ = await _key_of(studio, who)
        assert key.scopes == working
    key, _ = await studio.parts.api_keys.create_key(
        by(admin), name="", scopes=None, expires_at=None, user_id=bot.id
    )
    assert key.scopes == {"jobs:read"}
    _, narrow = await _key_of(studio, admin, [KEYS])
    with pytest.raises(InvalidRequest, match="scopes must be set") as exc_info:
        await _key_of(studio, narrow)
    assert exc_info.value.field == "scopes"


async def test_an_operator_creates_keys_for_service_accounts_of_any_organisation(
    studio: Studio,
) -> None:
    organisations, api_keys = studio.parts.organisations, studio.parts.api_keys
    rival = await organisations.create_organisation(by(studio.operator), "rival")
    bot = await organisations.add_service_account(by(studio.operator), rival.id, "bot", Role.MEMBER)

    async def create(identity: Identity, user_id: str) -> Identity:
        _, text = await api_keys.create_key(
            by(identity), name="n", scopes=None, expires_at=None, user_id=user_id
        )
        return await studio.parts.authenticator.authenticate(text)

    made = await create(studio.operator, bot.id)
    assert (made.owner, made.user) == (rival.id, bot.id)
    assert made.scopes <= ROLE_SCOPES[Role.MEMBER]
    [entry] = await AuditLog(studio.database).list_entries(
        AuditFilter(owner=rival.id, action="key.create"), limit=5
    )
    assert entry.event.target == made.key_id
    # An admin sees nothing of another organisation, and nobody makes keys for a person.
    person, admin = await studio.member()
    with pytest.raises(NotFound):
        await create(admin, bot.id)
    with pytest.raises(InvalidRequest, match="service account"):
        await create(studio.operator, person.user.id)
