"""Tests that an API key with limits cannot obtain credentials without them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal

import pytest

from moyin.access.gatekeeper.identity import create_service_token
from moyin.access.gatekeeper.tokens import create_event_token
from moyin.domain.account import ROLE_SCOPES, Role
from moyin.domain.identity import ALL, JOBS_READ, KEYS, TEXT, Identity
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, InvalidKey, InvalidRequest
from tests.unit.access.accounts.studio import SECRET, Studio, make_caller

ADMIN_SCOPES = ROLE_SCOPES[Role.ADMIN]
NO_OVERLAP = timedelta(0)


async def _create_key(
    studio: Studio,
    identity: Identity,
    scopes: Sequence[str] = tuple(ADMIN_SCOPES),
    user_id: str | None = None,
) -> tuple[Identity, str]:
    _, secret = await studio.parts.api_keys.create_key(
        make_caller(identity), name="", scopes=scopes, expires_at=None, user_id=user_id
    )
    return await studio.parts.authenticator.authenticate(secret), secret


async def _limit(studio: Studio, subject: str) -> None:
    await studio.parts.api_keys.set_limit(
        make_caller(studio.operator), Limit(subject=subject, usd_per_day=Decimal(1))
    )


async def _create_limited_key(studio: Studio) -> tuple[Identity, str]:
    """Return an admin's key with a budget, and its secret."""
    _, admin = await studio.add_member()
    identity, secret = await _create_key(studio, admin)
    await _limit(studio, f"key:{identity.key_id}")
    return await studio.parts.authenticator.authenticate(secret), secret


def _list_subjects(identity: Identity) -> list[str]:
    return [limit.subject for limit in identity.limits]


async def test_keys_of_a_limited_key_count_against_its_budget(studio: Studio) -> None:
    limited_key, _ = await _create_limited_key(studio)
    bot = await studio.parts.organisations.add_service_account(
        make_caller(limited_key), studio.organisation, "bot", Role.MEMBER
    )
    child, child_secret = await _create_key(studio, limited_key)
    grandchild, _ = await _create_key(studio, child, [KEYS])
    bots_key, _ = await _create_key(studio, child, [TEXT], bot.id)
    for identity in (child, grandchild, bots_key):
        assert _list_subjects(identity) == [f"key:{limited_key.key_id}"]
    own_limits = await studio.parts.api_keys.list_own_limits(make_caller(child))
    assert [limit.subject for limit in own_limits] == [f"key:{limited_key.key_id}"]
    # A child's own limit is added to the inherited one.
    await _limit(studio, f"key:{child.key_id}")
    child = await studio.parts.authenticator.authenticate(child_secret)
    assert set(_list_subjects(child)) == {f"key:{limited_key.key_id}", f"key:{child.key_id}"}


async def test_limit_that_is_set_later_applies_to_existing_children(studio: Studio) -> None:
    _, admin = await studio.add_member()
    parent, _ = await _create_key(studio, admin)
    child, secret = await _create_key(studio, parent)
    assert child.limits == ()
    await _limit(studio, f"key:{parent.key_id}")
    authenticator = studio.parts.authenticator
    assert _list_subjects(await authenticator.authenticate(secret)) == [f"key:{parent.key_id}"]
    rechecked_identities = await authenticator.recheck({secret: child})
    assert _list_subjects(rechecked_identities[secret]) == [f"key:{parent.key_id}"]


async def test_tokens_of_a_child_have_the_inherited_limits(studio: Studio) -> None:
    """The tokens with which jobs run, and which open a job's events, have the limits of the key."""
    limited_key, _ = await _create_limited_key(studio)
    child, _ = await _create_key(studio, limited_key, [JOBS_READ])
    service_token = create_service_token(
        SECRET.encode(), child.owner, "jobs", key_id=child.key_id, user=child.user
    )
    event_token = create_event_token(SECRET.encode(), child, "job", 60)
    authenticator = studio.parts.authenticator
    for identity in (
        await authenticator.authenticate(service_token),
        await authenticator.authenticate_event_token(event_token),
    ):
        assert _list_subjects(identity) == [f"key:{limited_key.key_id}"]


async def test_service_accounts_key_inherits_the_limits_of_the_callers_user(
    studio: Studio,
) -> None:
    session, admin = await studio.add_member()
    parent, _ = await _create_key(studio, admin)
    await _limit(studio, f"user:{session.user.id}")
    bot = await studio.parts.organisations.add_service_account(
        make_caller(admin), studio.organisation, "bot", Role.MEMBER
    )
    bots_key, _ = await _create_key(studio, parent, [TEXT], bot.id)
    assert _list_subjects(bots_key) == [f"user:{session.user.id}"]
    # Signed-in administrators may set the limits of users, so their keys need not inherit them.
    unlimited_key, _ = await _create_key(studio, admin, [TEXT], bot.id)
    assert unlimited_key.limits == ()


async def test_limited_key_cannot_rotate_a_key_without_its_limits(studio: Studio) -> None:
    _, admin = await studio.add_member()
    unlimited_key, _ = await _create_key(studio, admin, [TEXT])
    limited_key, secret = await _create_key(studio, admin)
    await _limit(studio, f"key:{limited_key.key_id}")
    limited_key = await studio.parts.authenticator.authenticate(secret)
    child, _ = await _create_key(studio, limited_key, [TEXT])
    rotate = studio.parts.api_keys.rotate_key
    with pytest.raises(InsufficientScope, match="does not have all limits"):
        await rotate(make_caller(limited_key), unlimited_key.key_id, NO_OVERLAP)
    await rotate(make_caller(limited_key), child.key_id, NO_OVERLAP)
    await rotate(make_caller(admin), unlimited_key.key_id, NO_OVERLAP)
    new_secret = await rotate(make_caller(limited_key), limited_key.key_id, NO_OVERLAP)
    # A rotation keeps the limits.
    rotated_key = await studio.parts.authenticator.authenticate(new_secret)
    assert _list_subjects(rotated_key) == [f"key:{limited_key.key_id}"]


async def test_key_cannot_change_the_limits_that_apply_to_it(studio: Studio) -> None:
    limited_key, _ = await _create_limited_key(studio)
    child, _ = await _create_key(studio, limited_key)
    api_keys, subject = studio.parts.api_keys, f"key:{limited_key.key_id}"
    for identity in (limited_key, child):
        with pytest.raises(InsufficientScope, match="apply to itself"):
            await api_keys.clear_limit(make_caller(identity), subject)
        with pytest.raises(InsufficientScope, match="apply to itself"):
            await api_keys.set_limit(make_caller(identity), Limit(subject=subject))
    # Administrators still limit other keys by key, and may change this limit when signed in.
    child_limit = Limit(subject=f"key:{child.key_id}", open_jobs=1)
    await api_keys.set_limit(make_caller(limited_key), child_limit)
    _, admin = await studio.add_member()
    await api_keys.clear_limit(make_caller(admin), subject)


async def test_limited_key_cannot_invite_members(studio: Studio) -> None:
    """The caller could accept the invitation and get a session without the limits."""
    limited_key, _ = await _create_limited_key(studio)
    session, _ = await studio.add_member(Role.MEMBER)
    organisations = studio.parts.organisations
    with pytest.raises(InsufficientScope, match="cannot invite members"):
        await organisations.add_member(
            make_caller(limited_key), studio.organisation, email="e@example.com", name="",
            role=Role.MEMBER,
        )  # fmt: skip
    with pytest.raises(InsufficientScope, match="cannot invite members"):
        await organisations.invite_member(
            make_caller(limited_key), studio.organisation, session.user.id
        )


async def test_operators_key_is_exempt_but_its_children_inherit(studio: Studio) -> None:
    operator_key, secret = await _create_key(studio, studio.operator, [ALL])
    await _limit(studio, f"key:{operator_key.key_id}")
    operator_key = await studio.parts.authenticator.authenticate(secret)
    child, _ = await _create_key(studio, operator_key, [ALL])
    assert _list_subjects(child) == [f"key:{operator_key.key_id}"]
    await studio.parts.api_keys.clear_limit(make_caller(operator_key), f"key:{operator_key.key_id}")


async def test_children_stay_valid_and_limited_when_their_creator_is_revoked(
    studio: Studio,
) -> None:
    limited_key, limited_secret = await _create_limited_key(studio)
    _, secret = await _create_key(studio, limited_key)
    _, admin = await studio.add_member()
    await studio.parts.api_keys.revoke_key(make_caller(admin), limited_key.key_id)
    with pytest.raises(InvalidKey):
        await studio.parts.authenticator.authenticate(limited_secret)
    child = await studio.parts.authenticator.authenticate(secret)
    assert _list_subjects(child) == [f"key:{limited_key.key_id}"]


async def test_chain_of_keys_is_bounded(studio: Studio) -> None:
    _, admin = await studio.add_member()
    key, _ = await _create_key(studio, admin, [KEYS])
    for _ in range(16):
        key, _ = await _create_key(studio, key, [KEYS])
    with pytest.raises(InvalidRequest, match="at most 16"):
        await _create_key(studio, key, [KEYS])
