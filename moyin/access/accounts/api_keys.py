"""API keys, limits, and the keys that sign access tokens.

Every act is one transaction with its entry in the audit log, and with a proof that its caller may.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from moyin.access.accounts.caller import Caller, may_give, require
from moyin.domain.account import ROLE_SCOPES, User, UserKind
from moyin.domain.identity import (
    ALL,
    DEFAULT_SCOPES,
    KEYS,
    OPERATOR,
    ORG_ADMIN,
    Identity,
    is_internal_owner,
)
from moyin.domain.limits import Limit
from moyin.errors import InsufficientScope, InvalidRequest, NotFound
from moyin.store.audit import AuditLog
from moyin.store.keys import ApiKey, KeyStore, expiry
from moyin.store.limits import LimitStore, subjects_of
from moyin.store.reauthorized import ReauthorizedTransactions
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Transaction, now
from moyin.store.users import UserStore

__all__ = ["ApiKeyService"]

# As long as the name of a tenant may be.
_MAX_OWNER = 128


class ApiKeyService:
    """What callers do with their keys, and administrators with everybody's.

    Another tenant's things are not found, whoever asks, but for operators. Nobody can give away
    more than they have, and no key what outlives it. Who is signed in can: sessions are short, and
    their people stay.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        keys: KeyStore,
        limits: LimitStore,
        audit: AuditLog,
        signing_keys: SigningKeyStore,
        standing: ReauthorizedTransactions,
    ) -> None:
        self._users = users
        self._keys = keys
        self._limits = limits
        self._audit = audit
        self._signing_keys = signing_keys
        self._standing = standing

    # Keys

    async def keys(self, caller: Caller) -> list[ApiKey]:
        """The caller's own; all of the tenant for its admins."""
        require(caller.identity, KEYS)
        found = await self._keys.of(caller.identity.owner)
        return [key for key in found if _may_see(caller.identity, key)]

    async def create_key(
        self,
        caller: Caller,
        *,
        name: str,
        scopes: Iterable[str] | None,
        expires_at: datetime | None,
        user_id: str | None,
    ) -> tuple[ApiKey, str]:
        """A key with its text. ``user_id``: of a service account; None: for the caller.

        Args:
            scopes: what it may do; None: work with models and jobs, as far as its user may.

        Raises:
            InsufficientScope: the caller lacks one of the scopes.
            InvalidRequest: the key could do nothing, or it would expire before it exists, or after the key that makes it.
        """
        identity = caller.identity
        require(identity, KEYS)
        if expires_at is not None and expires_at <= now():
            raise InvalidRequest("expires_at must lie in the future", field="expires_at")
        held = identity.scopes
        if user_id is not None and user_id != identity.user:
            require(identity, ORG_ADMIN)
            user = await self._member(identity.owner, user_id)
            if user.kind is not UserKind.SERVICE or user.role is None:
                raise InvalidRequest("user must be a service account", field="user")
            held = ROLE_SCOPES[user.role]
        asked = _working(held) if scopes is None else frozenset(scopes)
        may_give(identity, asked)
        async with self._standing.acting(identity) as transaction:
            if (end := await _end_of(transaction, identity)) is not None:
                if expires_at is not None and expires_at > end:
                    raise InvalidRequest(
                        f"expires_at must not be after your own key's end, {end.isoformat()}",
                        field="expires_at",
                    )
                expires_at = expires_at or end
            key_id, text = await self._keys.create(
                identity.owner,
                name,
                scopes=asked,
                user=user_id or identity.user,
                expires_at=expires_at,
                within=transaction,
            )
            details = {"name": name, "scopes": sorted(asked)}
            act = caller.act("key.create", identity.owner, key_id, details)
            await self._audit.write(act, within=transaction)
        return await self._keys.get(key_id), text

    async def rotate_key(self, caller: Caller, key_id: str, overlap: timedelta) -> str:
        """The key's new text; the one before is good for ``overlap`` more.

        Raises:
            InsufficientScope: it may more than the caller, or outlives the caller's own key.
        """
        key = await self._key(caller, key_id)
        may_give(caller.identity, key.scopes)
        act = caller.act(
            "key.rotate", key.owner, key_id, {"overlap_seconds": overlap.total_seconds()}
        )
        async with self._standing.acting(caller.identity) as transaction:
            end = await _end_of(transaction, caller.identity)
            if end is not None and (key.expires_at is None or key.expires_at > end):
                raise InsufficientScope("that key outlives yours")
            text = await self._keys.rotate(key_id, overlap=overlap, within=transaction)
            await self._audit.write(act, within=transaction)
        return text

    async def revoke_key(self, caller: Caller, key_id: str) -> None:
        key = await self._key(caller, key_id)
        async with self._standing.acting(caller.identity) as transaction:
            await self._keys.revoke(key_id, within=transaction)
            act = caller.act("key.revoke", key.owner, key_id)
            await self._audit.write(act, within=transaction)

    # Limits

    async def own_limits(self, caller: Caller) -> tuple[Limit, ...]:
        return await self._limits.of(subjects_of(caller.identity))

    async def limit(self, caller: Caller, subject: str) -> Limit:
        await self._subject(caller, subject)
        found = await self._limits.of([subject])
        return found[0] if found else Limit(subject=subject)

    async def set_limit(self, caller: Caller, limit: Limit) -> None:
        owner = await self._subject(caller, limit.subject)
        given = {
            name: str(value)
            for name in Limit.__slots__
            if name != "subject" and (value := getattr(limit, name)) is not None
        }
        async with self._standing.acting(caller.identity) as transaction:
            await self._limits.set(limit, within=transaction)
            act = caller.act("limit.set", owner, limit.subject, given)
            await self._audit.write(act, within=transaction)

    async def clear_limit(self, caller: Caller, subject: str) -> None:
        owner = await self._subject(caller, subject)
        async with self._standing.acting(caller.identity) as transaction:
            await self._limits.clear(subject, within=transaction)
            act = caller.act("limit.clear", owner, subject)
            await self._audit.write(act, within=transaction)

    # Signing keys

    async def rotate_signing_key(self, caller: Caller) -> str:
        """A new key pair signs access tokens from now on; returns its id."""
        require(caller.identity, OPERATOR)
        async with self._standing.acting(caller.identity) as transaction:
            kid = (await self._signing_keys.add(within=transaction)).kid
            act = caller.act("signing_key.create", caller.identity.owner, kid)
            await self._audit.write(act, within=transaction)
        return kid

    async def forget_signing_key(self, caller: Caller, kid: str) -> None:
        """Refuse what a key pair signed: its tokens end within a minute.

        Raises:
            NotFound: there is none.
            InvalidRequest: it is the one that signs.
        """
        require(caller.identity, OPERATOR)
        known = [key.kid for key in await self._signing_keys.public()]
        if kid not in known:
            raise NotFound(f"there is no signing key {kid!r}")
        if kid == known[0]:
            raise InvalidRequest("this is the key that signs; rotate first", field="kid")
        async with self._standing.acting(caller.identity) as transaction:
            await self._signing_keys.forget(kid, within=transaction)
            act = caller.act("signing_key.delete", caller.identity.owner, kid)
            await self._audit.write(act, within=transaction)

    async def _member(self, organisation: str, user_id: str) -> User:
        user = await self._users.get(user_id)
        if user.organisation != organisation:
            raise NotFound(f"there is no user {user_id!r}")
        return user

    async def _key(self, caller: Caller, key_id: str) -> ApiKey:
        require(caller.identity, KEYS)
        key = await self._keys.get(key_id)
        if not _may_see(caller.identity, key):
            raise NotFound(f"there is no key {key_id!r}")
        return key

    async def _subject(self, caller: Caller, subject: str) -> str:
        """The tenant of a subject whose limits the caller may see and set.

        A tenant's own limits are the operator's to set: an admin could lift them.
        """
        identity = caller.identity
        kind, _, name = subject.partition(":")
        if identity.has_scope(OPERATOR):
            return await self._tenant(kind, name)
        require(identity, ORG_ADMIN)
        if kind not in ("key", "user") or await self._tenant(kind, name) != identity.owner:
            raise NotFound(f"there is no subject {subject!r} that you could limit")
        return identity.owner

    async def _tenant(self, kind: str, name: str) -> str:
        match kind:
            case "key":
                return (await self._keys.get(name)).owner
            case "user":
                return (await self._users.get(name)).owner
            case "owner" if 0 < len(name) <= _MAX_OWNER and not is_internal_owner(name):
                return name
        raise InvalidRequest(
            "subject must be key:<id>, user:<id> or owner:<tenant>", field="subject"
        )


def _working(held: frozenset[str]) -> frozenset[str]:
    """What a key may do whose scopes are not named."""
    found = DEFAULT_SCOPES if ALL in held else DEFAULT_SCOPES & held
    if not found:
        raise InvalidRequest(
            f"name the scopes: without them a key has {', '.join(sorted(DEFAULT_SCOPES))}, "
            "and its user has none of these",
            field="scopes",
        )
    return found


async def _end_of(transaction: Transaction, identity: Identity) -> datetime | None:
    """When the caller's key ends; None: never, or it is somebody who signed in."""
    return None if identity.is_session else await expiry(transaction, identity.key_id)


def _may_see(identity: Identity, key: ApiKey) -> bool:
    if key.owner != identity.owner:
        return identity.has_scope(OPERATOR)
    return identity.has_scope(ORG_ADMIN) or (
        identity.user is not None and key.user == identity.user
    )
