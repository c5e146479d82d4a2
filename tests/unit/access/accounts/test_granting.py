"""Tests that callers can grant only scopes that they have, for no longer than they have them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from moyin.access.accounts.caller import require_grantable
from moyin.access.accounts.mail import Mail
from moyin.access.accounts.rules import OpenIdProvider
from moyin.domain.account import ROLE_SCOPES, Role
from moyin.domain.identity import JOBS_WRITE, KEYS, METRICS, OPERATOR, ORG_ADMIN, Identity
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
from tests.unit.access.accounts.studio import PASSWORD, Studio, make_caller

TOMORROW, NEXT_WEEK = timedelta(days=1), timedelta(days=7)


async def _create_key(
    studio: Studio,
    identity: Identity,
    scopes: Iterable[str] | None = None,
    expires_at: datetime | None = None,
) -> tuple[Any, Identity]:
    key, secret = await studio.parts.api_keys.create_key(
        make_caller(identity), name="", scopes=scopes, expires_at=expires_at, user_id=None
    )
    return key, await studio.parts.authenticator.authenticate(secret)


async def test_assigning_a_role_needs_all_of_its_scopes(studio: Studio) -> None:
    organisations, (_, admin) = studio.parts.organisations, await studio.add_member()
    _, hiring_caller = await _create_key(studio, admin, [ORG_ADMIN])
    viewer_account = await organisations.add_service_account(
        make_caller(admin), studio.organisation, "bot", Role.VIEWER
    )
    for role in Role:
        with pytest.raises(InsufficientScope, match="cannot grant scopes"):
            await organisations.add_member(
                make_caller(hiring_caller),
                studio.organisation,
                email="e@example.com",
                name="",
                role=role,
            )
        with pytest.raises(InsufficientScope):
            await organisations.add_service_account(
                make_caller(hiring_caller), studio.organisation, "other", role
            )
        with pytest.raises(InsufficientScope):
            await organisations.change_member(
                make_caller(hiring_caller), studio.organisation, viewer_account.id, role=role
            )
    # Disabling a member grants nothing.
    await organisations.change_member(
        make_caller(hiring_caller), studio.organisation, viewer_account.id, disabled=True
    )
    members, _ = await organisations.list_members(make_caller(admin), studio.organisation)
    assert [user.role for user in members] == [
        Role.VIEWER, Role.ADMIN,
    ]  # fmt: skip
    _, sufficient_caller = await _create_key(studio, admin, {ORG_ADMIN, *ROLE_SCOPES[Role.VIEWER]})
    await organisations.add_service_account(
        make_caller(sufficient_caller), studio.organisation, "reader", Role.VIEWER
    )
    with pytest.raises(InsufficientScope):
        await organisations.add_service_account(
            make_caller(sufficient_caller), studio.organisation, "writer", Role.MEMBER
        )


async def test_an_operator_may_assign_any_role(studio: Studio) -> None:
    operator = Identity(
        owner="admin", key_id=studio.operator.key_id, scopes=frozenset({"operator"})
    )
    user = await studio.parts.organisations.add_service_account(
        make_caller(operator), studio.organisation, "bot", Role.ADMIN
    )
    assert user.role is Role.ADMIN


async def test_a_key_cannot_create_a_key_that_outlives_it(studio: Studio) -> None:
    _, admin = await studio.add_member()
    expires_at = now() + TOMORROW
    own_key, expiring_caller = await _create_key(studio, admin, admin.scopes, expires_at)
    child_key, child_caller = await _create_key(studio, expiring_caller, admin.scopes)
    assert child_key.expires_at == own_key.expires_at
    earlier_key, _ = await _create_key(
        studio, child_caller, expires_at=expires_at - timedelta(hours=1)
    )
    assert earlier_key.expires_at == expires_at - timedelta(hours=1)
    with pytest.raises(InvalidRequest) as exc_info:
        await _create_key(studio, expiring_caller, expires_at=expires_at + timedelta(seconds=1))
    assert exc_info.value.field == "expires_at"
    # A key that expires later cannot be rotated; the own key can.
    lasting_key, _ = await _create_key(studio, admin, [JOBS_WRITE])
    with pytest.raises(InsufficientScope, match="expires later than your own key"):
        await studio.parts.api_keys.rotate_key(
            make_caller(expiring_caller), lasting_key.id, timedelta(0)
        )
    await studio.parts.api_keys.rotate_key(make_caller(expiring_caller), own_key.id, timedelta(0))
    # Keys of a session may outlive it.
    lasting_key, permanent_caller = await _create_key(studio, admin, [KEYS], now() + NEXT_WEEK)
    assert lasting_key.expires_at > expires_at
    await studio.parts.sign_in.sign_out(str(admin.user), admin.key_id, everywhere=True)
    await _create_key(studio, permanent_caller, [KEYS])


async def test_a_member_can_be_invited_again(studio: Studio) -> None:
    organisations, sign_in = studio.parts.organisations, studio.parts.sign_in
    _, admin = await studio.add_member()
    new_user, first_token = await organisations.add_member(
        make_caller(admin), studio.organisation, email="New@example.com", name="", role=Role.MEMBER
    )
    invited_user, second_token = await organisations.invite_member(
        make_caller(admin), studio.organisation, new_user.id
    )
    assert invited_user.id == new_user.id
    with pytest.raises(InvalidToken):
        await sign_in.reset_password(str(first_token), PASSWORD, "")
    await sign_in.reset_password(str(second_token), PASSWORD, "")
    session = await sign_in.sign_in("new@example.com", PASSWORD, "")
    assert (await studio.list_audited_actions())[:2] == ["member.invite", "member.create"]
    # Without a mail server, only an invitation can replace a forgotten password.
    _, third_token = await organisations.invite_member(
        make_caller(admin), studio.organisation, new_user.id
    )
    await sign_in.reset_password(str(third_token), "another password", "")
    with pytest.raises(InvalidCredentials):
        await sign_in.sign_in("new@example.com", PASSWORD, "")
    with pytest.raises(InvalidToken):
        await sign_in.refresh_session(session.refresh_token)


async def test_inviting_a_member_needs_all_scopes_of_the_role(studio: Studio) -> None:
    organisations = studio.parts.organisations
    admin_session, admin = await studio.add_member()
    _, member = await studio.add_member(Role.MEMBER)
    _, hiring_caller = await _create_key(studio, admin, [ORG_ADMIN])
    for identity in (member, hiring_caller):
        with pytest.raises(InsufficientScope):
            await organisations.invite_member(
                make_caller(identity), studio.organisation, admin_session.user.id
            )
    other_organisation = await organisations.create_organisation(
        make_caller(studio.operator), "rival"
    )
    with pytest.raises(NotFound):
        await organisations.invite_member(
            make_caller(studio.operator), other_organisation.id, admin_session.user.id
        )
    service_account = await organisations.add_service_account(
        make_caller(admin), studio.organisation, "bot", Role.MEMBER
    )
    with pytest.raises(InvalidRequest, match="not a service account"):
        await organisations.invite_member(
            make_caller(admin), studio.organisation, service_account.id
        )
    await organisations.change_member(
        make_caller(admin), studio.organisation, str(member.user), disabled=True
    )
    with pytest.raises(InvalidRequest, match="is disabled"):
        await organisations.invite_member(make_caller(admin), studio.organisation, str(member.user))


async def test_an_invitation_checks_the_role_inside_its_transaction(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    organisations, transactions = (
        studio.parts.organisations,
        studio.parts.organisations._transactions,
    )
    _, admin = await studio.add_member()
    viewer_session, _ = await studio.add_member(Role.VIEWER)
    _, hiring_caller = await _create_key(studio, admin, {ORG_ADMIN, *ROLE_SCOPES[Role.VIEWER]})
    begin = transactions.begin

    @asynccontextmanager
    async def begin_after_promotion(
        identity: Identity, **kwargs: Any
    ) -> AsyncIterator[Transaction]:
        monkeypatch.setattr(transactions, "begin", begin)
        await organisations.change_member(
            make_caller(admin), studio.organisation, viewer_session.user.id, role=Role.ADMIN
        )
        async with begin(identity, **kwargs) as transaction:
            yield transaction

    monkeypatch.setattr(transactions, "begin", begin_after_promotion)
    with pytest.raises(InsufficientScope):
        await organisations.invite_member(
            make_caller(hiring_caller), studio.organisation, viewer_session.user.id
        )


async def test_a_new_role_invalidates_invitations(studio: Studio) -> None:
    organisations = studio.parts.organisations
    _, admin = await studio.add_member()
    viewer_session, _ = await studio.add_member(Role.VIEWER)
    _, hiring_caller = await _create_key(studio, admin, {ORG_ADMIN, *ROLE_SCOPES[Role.VIEWER]})
    _, token = await organisations.invite_member(
        make_caller(hiring_caller), studio.organisation, viewer_session.user.id
    )
    await organisations.change_member(
        make_caller(admin), studio.organisation, viewer_session.user.id, role=Role.ADMIN
    )
    with pytest.raises(InvalidToken):
        await studio.parts.sign_in.reset_password(str(token), "another password", "")


async def test_with_a_mail_server_an_invitation_is_only_mailed(
    studio: Studio,
) -> None:
    class FakeMailer:
        can_deliver = True

        def __init__(self) -> None:
            self.mails: list[Mail] = []

        async def send(self, mail: Mail) -> None:
            self.mails.append(mail)

    _, admin = await studio.add_member()
    old_session, _ = await studio.add_member(Role.MEMBER)
    studio.parts.sign_in._mailer = mailer = FakeMailer()
    new_user, _ = await studio.parts.organisations.add_member(
        make_caller(admin), studio.organisation, email="n@example.com", name="", role=Role.MEMBER
    )
    for user_id in (new_user.id, old_session.user.id):
        assert (
            await studio.parts.organisations.invite_member(
                make_caller(admin), studio.organisation, user_id
            )
        )[1] is None
    await studio.parts.sign_in.close()
    assert [(mail.to, mail.subject) for mail in mailer.mails] == [
        (new_user.email, "Your new account"),
        (new_user.email, "Your new account"),
        (old_session.user.email, "Set a new password"),
    ]


async def test_unfinished_provider_sign_ins_are_limited(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted_events: list[str] = []

    async def refuse_event(name: str, maximum: int) -> None:
        counted_events.append(name)
        raise TooManyAttempts("too many attempts; try again later", retry_after=1)

    open_id = studio.parts.open_id
    monkeypatch.setattr(open_id._throttle, "count_event", refuse_event)
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
    assert counted_events == ["begin 203.0.113.1"]


async def test_a_key_without_named_scopes_gets_the_default_scopes(
    studio: Studio,
) -> None:
    default_scopes = {"text", "jobs:read", "jobs:write"}
    _, admin = await studio.add_member()
    service_account = await studio.parts.organisations.add_service_account(
        make_caller(admin), studio.organisation, "b", Role.VIEWER
    )
    for creator in (studio.operator, admin):
        key, _ = await _create_key(studio, creator)
        assert key.scopes == default_scopes
    key, _ = await studio.parts.api_keys.create_key(
        make_caller(admin), name="", scopes=None, expires_at=None, user_id=service_account.id
    )
    assert key.scopes == {"jobs:read"}
    _, narrow_caller = await _create_key(studio, admin, [KEYS])
    with pytest.raises(InvalidRequest, match="scopes must be set") as exc_info:
        await _create_key(studio, narrow_caller)
    assert exc_info.value.field == "scopes"


async def test_an_operator_creates_keys_for_service_accounts_of_any_organisation(
    studio: Studio,
) -> None:
    organisations, api_keys = studio.parts.organisations, studio.parts.api_keys
    rival_organisation = await organisations.create_organisation(
        make_caller(studio.operator), "rival"
    )
    bot = await organisations.add_service_account(
        make_caller(studio.operator), rival_organisation.id, "bot", Role.MEMBER
    )

    async def create_key(identity: Identity, user_id: str) -> Identity:
        _, secret = await api_keys.create_key(
            make_caller(identity), name="n", scopes=None, expires_at=None, user_id=user_id
        )
        return await studio.parts.authenticator.authenticate(secret)

    bot_caller = await create_key(studio.operator, bot.id)
    assert (bot_caller.owner, bot_caller.user) == (rival_organisation.id, bot.id)
    assert bot_caller.scopes <= ROLE_SCOPES[Role.MEMBER]
    [audit_entry] = await AuditLog(studio.database).list_entries(
        AuditFilter(owner=rival_organisation.id, action="key.create"), limit=5
    )
    assert audit_entry.event.target == bot_caller.key_id
    # An admin sees nothing of another organisation, and keys of a person cannot be created by others.
    person_session, admin = await studio.add_member()
    with pytest.raises(NotFound):
        await create_key(admin, bot.id)
    with pytest.raises(InvalidRequest, match=r"^user must be the id of a service account$"):
        await create_key(studio.operator, person_session.user.id)


def test_operators_may_grant_the_scope_for_metrics() -> None:
    operator = Identity(owner="ops", key_id="k", scopes=frozenset({OPERATOR, KEYS}))
    require_grantable(operator, frozenset({METRICS, KEYS}))
    with pytest.raises(InsufficientScope, match="jobs:write"):
        require_grantable(operator, frozenset({METRICS, JOBS_WRITE}))
    metrics_reader = Identity(owner="ops", key_id="k", scopes=frozenset({METRICS}))
    assert not metrics_reader.has_scope(OPERATOR)
