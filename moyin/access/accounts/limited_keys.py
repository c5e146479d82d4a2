"""Keeps an API key with limits from obtaining credentials to which those limits do not apply.

Operators are exempt from the checks, since they may change every limit. Keys that they create
inherit limits nevertheless. Signed-in users are exempt, too: their limits apply to all their keys.
"""

from __future__ import annotations

from moyin.domain.identity import OPERATOR, Identity
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, InvalidRequest
from moyin.store.keys import ApiKey, list_inherited_subjects
from moyin.store.sql import Transaction

# Bounds the number of limits that a request with a key is checked against.
_MAX_INHERITED_SUBJECTS = 16


async def list_subjects_to_inherit(
    transaction: Transaction, identity: Identity, user_id: str | None
) -> list[str]:
    """Return the subjects of the caller's limits that a new key of ``user_id`` must inherit.

    Raises:
        InvalidRequest: too many keys created each other in turn.
    """
    if identity.is_session:
        return []
    subjects = set(await list_inherited_subjects(transaction, identity.key_id))
    subjects |= {f"key:{identity.key_id}", f"user:{identity.user}"}
    # The limits of its own user apply to the key anyway.
    subjects -= {f"user:{user_id}", "user:None"}
    if len(subjects) > _MAX_INHERITED_SUBJECTS:
        raise InvalidRequest(
            f"the key would inherit the limits of {len(subjects)} keys and users, and at most "
            f"{_MAX_INHERITED_SUBJECTS} are allowed; create it with one of the keys that created yours"
        )
    return sorted(subjects)


async def require_same_limits(transaction: Transaction, identity: Identity, key: ApiKey) -> None:
    """Raise `InsufficientScope` if a limit of the caller's key does not apply to ``key``.

    Otherwise the caller could replace the secret of a key with fewer limits, and use that key.
    """
    limits = _list_own_limits(identity)
    if not limits:
        return
    subjects = {f"key:{key.id}", f"user:{key.user}"}
    subjects.update(await list_inherited_subjects(transaction, key.id))
    if any(limit.subject not in subjects for limit in limits):
        raise InsufficientScope(
            f"key {key.id!r} does not have all limits of your own key, so you cannot rotate it; "
            "sign in, or use a key without limits"
        )


def require_foreign_limit(identity: Identity, subject: str) -> None:
    """Raise `InsufficientScope` if the caller's key has limits because of ``subject``."""
    if any(limit.subject == subject for limit in _list_own_limits(identity)):
        raise InsufficientScope(
            f"your API key cannot change the limits of {subject!r}, which apply to itself; sign in, "
            "or use a key without limits"
        )


def require_unlimited(identity: Identity) -> None:
    """Raise `InsufficientScope` if the caller is an API key with limits.

    An invitation leads to a session, to which the limits of the key would not apply.
    """
    if _list_own_limits(identity):
        raise InsufficientScope(
            "an API key with limits cannot invite members; sign in, or use a key without limits"
        )


def _list_own_limits(identity: Identity) -> list[Limit]:
    """Return the limits of the caller's key and its user, or none if the caller is exempt."""
    if identity.is_session or identity.has_scope(OPERATOR):
        return []
    return [limit for limit in identity.limits if not limit.subject.startswith("owner:")]
