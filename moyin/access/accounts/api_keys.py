"""Manages API keys, limits, and the key pairs that sign access tokens.

Each change, its audit entry and the check of the caller's rights are one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from moyin.access.accounts.caller import Caller, check_grantable, require
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
from moyin.store.keys import ApiKey, KeyStore, key_expiry
from moyin.store.limits import LimitStore, subjects_of
from moyin.store.reauthorized import ReauthorizedTransactions
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Transaction, now
from moyin.store.users import UserStore

__all__ = ["ApiKeyService"]

# The longest name of a tenant.
_MAX_OWNER_LENGTH = 128


class ApiKeyService:
    """Manages the keys of callers, and for administrators those of their whole tenant.

    Only operators see other tenants' objects; other callers get `NotFound`. A new key cannot have
    more scopes than its creator. A key that another key creates cannot outlive it. A key that a
    signed-in user creates may outlive the session, since sessions are short and the user stays.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        keys: KeyStore,
        limits: LimitStore,
        audit: AuditLog,
        signing_keys: SigningKeyStore,
        transactions: ReauthorizedTransactions,
    ) -> None:
        self._users = users
        self._keys = keys
        self._limits = limits
        self._audit = audit
        self._signing_keys = signing_keys
        self._transactions = transactions

    # Keys

    async def list_keys(self, caller: Caller) -> list[ApiKey]:
        """Return the caller's own keys; for an administrator, all keys of the tenant."""
        require(caller.identity, KEYS)
        keys = await self._keys.list_by_owner(caller.identity.owner)
        return [key for key in keys if _is_visible(key, caller.identity)]

    async def create_key(
        self,
        caller: Caller,
        *,
        name: str,
        scopes: Iterable[str] | None,
        expires_at: datetime | None,
        user_id: str | None,
    ) -> tuple[ApiKey, str]:
        """Create a key and return it with its text.

        Args:
            scopes: the key's scopes; None: those for models and jobs that its user has.
            user_id: the service account that owns the key; None: the caller.

        Raises:
            InsufficientScope: the caller lacks one of the scopes.
            InvalidRequest: the key would have no scopes, or ``expires_at`` is in the past or after
                the end of the key that creates it.
        """
        identity = caller.identity
        require(identity, KEYS)
        if expires_at is not None and expires_at <= now():
            raise InvalidRequest("expires_at must be in the future", field="expires_at")
        user_scopes = identity.scopes
        if user_id is not None and user_id != identity.user:
            require(identity, ORG_ADMIN)
            user = await self._member(identity.owner, user_id)
            if user.kind is not UserKind.SERVICE or user.role is None:
                raise InvalidRequest("user must be the id of a service account", field="user")
            user_scopes = ROLE_SCOPES[user.role]
        granted = _default_scopes(user_scopes) if scopes is None else frozenset(scopes)
        check_grantable(identity, granted)
        async with self._transactions.begin(identity) as transaction:
            if (end := await _caller_key_expiry(transaction, identity)) is not None:
                if expires_at is not None and expires_at > end:
                    raise InvalidRequest(
                        f"expires_at must not be after your own key expires, at {end.isoformat()}",
                        field="expires_at",
                    )
                expires_at = expires_at or end
            key_id, text = await self._keys.create(
                identity.owner,
                name,
                scopes=granted,
                user=user_id or identity.user,
                expires_at=expires_at,
                within=transaction,
            )
            details = {"name": name, "scopes": sorted(granted)}
            event = caller.audit_event("key.create", identity.owner, key_id, details)
            await self._audit.write(event, within=transaction)
        return await self._keys.get(key_id), text

    async def rotate_key(self, caller: Caller, key_id: str, overlap: timedelta) -> str:
        """Give a key a new secret and return its text; the old one stays valid for ``overlap``.

        Raises:
            InsufficientScope: the key has more scopes than the caller, or outlives the caller's key.
        """
        key = await self._key(caller, key_id)
        check_grantable(caller.identity, key.scopes)
        event = caller.audit_event(
            "key.rotate", key.owner, key_id, {"overlap_seconds": overlap.total_seconds()}
        )
        async with self._transactions.begin(caller.identity) as transaction:
            end = await _caller_key_expiry(transaction, caller.identity)
            if end is not None and (key.expires_at is None or key.expires_at > end):
                raise InsufficientScope("cannot rotate a key that expires after your own key")
            text = await self._keys.rotate(key_id, overlap=overlap, within=transaction)
            await self._audit.write(event, within=transaction)
        return text

    async def revoke_key(self, caller: Caller, key_id: str) -> None:
        """Revoke a key at once."""
        key = await self._key(caller, key_id)
        async with self._transactions.begin(caller.identity) as transaction:
            await self._keys.revoke(key_id, within=transaction)
            event = caller.audit_event("key.revoke", key.owner, key_id)
            await self._audit.write(event, within=transaction)

    # Limits

    async def list_own_limits(self, caller: Caller) -> tuple[Limit, ...]:
        """Return the limits that apply to the caller."""
        return await self._limits.list_for(subjects_of(caller.identity))

    async def get_limit(self, caller: Caller, subject: str) -> Limit:
        """Return the limit of a subject; all its members are None if none is set."""
        await self._check_subject(caller, subject)
        limits = await self._limits.list_for([subject])
        return limits[0] if limits else Limit(subject=subject)

    async def set_limit(self, caller: Caller, limit: Limit) -> None:
        """Replace the limit of its subject."""
        owner = await self._check_subject(caller, limit.subject)
        changes = {
            name: str(value)
            for name in Limit.__slots__
            if name != "subject" and (value := getattr(limit, name)) is not None
        }
        async with self._transactions.begin(caller.identity) as transaction:
            await self._limits.set(limit, within=transaction)
            event = caller.audit_event("limit.set", owner, limit.subject, changes)
            await self._audit.write(event, within=transaction)

    async def clear_limit(self, caller: Caller, subject: str) -> None:
        """Delete the limit of a subject."""
        owner = await self._check_subject(caller, subject)
        async with self._transactions.begin(caller.identity) as transaction:
            await self._limits.clear(subject, within=transaction)
            event = caller.audit_event("limit.clear", owner, subject)
            await self._audit.write(event, within=transaction)

    # Signing keys

    async def rotate_signing_key(self, caller: Caller) -> str:
        """Create the key pair that signs access tokens from now on; return its id."""
        require(caller.identity, OPERATOR)
        async with self._transactions.begin(caller.identity) as transaction:
            kid = (await self._signing_keys.add(within=transaction)).kid
            event = caller.audit_event("signing_key.create", caller.identity.owner, kid)
            await self._audit.write(event, within=transaction)
        return kid

    async def delete_signing_key(self, caller: Caller, kid: str) -> None:
        """Delete a key pair, so that tokens it signed are refused within a minute.

        Raises:
            NotFound: the key pair does not exist.
            InvalidRequest: it is the pair that signs new tokens.
        """
        require(caller.identity, OPERATOR)
        kids = [key.kid for key in await self._signing_keys.list_public_keys()]
        if kid not in kids:
            raise NotFound(f"there is no signing key {kid!r}")
        if kid == kids[0]:
            raise InvalidRequest(
                "kid is the key that signs new tokens; rotate it first", field="kid"
            )
        async with self._transactions.begin(caller.identity) as transaction:
            await self._signing_keys.delete(kid, within=transaction)
            event = caller.audit_event("signing_key.delete", caller.identity.owner, kid)
            await self._audit.write(event, within=transaction)

    async def _member(self, organisation: str, user_id: str) -> User:
        user = await self._users.get(user_id)
        if user.organisation != organisation:
            raise NotFound(f"there is no user {user_id!r}")
        return user

    async def _key(self, caller: Caller, key_id: str) -> ApiKey:
        require(caller.identity, KEYS)
        key = await self._keys.get(key_id)
        if not _is_visible(key, caller.identity):
            raise NotFound(f"there is no key {key_id!r}")
        return key

    async def _check_subject(self, caller: Caller, subject: str) -> str:
        """Return the tenant of ``subject`` if the caller may administer its limits.

        Only operators may set the limits of a whole tenant, or its administrators could lift them.
        """
        identity = caller.identity
        kind, _, name = subject.partition(":")
        if identity.has_scope(OPERATOR):
            return await self._tenant(kind, name)
        require(identity, ORG_ADMIN)
        if kind not in ("key", "user") or await self._tenant(kind, name) != identity.owner:
            raise NotFound(f"there is no key or user {subject!r} in your organisation")
        return identity.owner

    async def _tenant(self, kind: str, name: str) -> str:
        match kind:
            case "key":
                return (await self._keys.get(name)).owner
            case "user":
                return (await self._users.get(name)).owner
            case "owner" if 0 < len(name) <= _MAX_OWNER_LENGTH and not is_internal_owner(name):
                return name
        raise InvalidRequest(
            "subject must be key:<id>, user:<id> or owner:<tenant>", field="subject"
        )


def _default_scopes(user_scopes: frozenset[str]) -> frozenset[str]:
    """Return the scopes of a key that is created without ``scopes``."""
    scopes = DEFAULT_SCOPES if ALL in user_scopes else DEFAULT_SCOPES & user_scopes
    if not scopes:
        raise InvalidRequest(
            f"scopes must be given: the default scopes are {', '.join(sorted(DEFAULT_SCOPES))}, and the "
            "key's user has none of them",
            field="scopes",
        )
    return scopes


async def _caller_key_expiry(transaction: Transaction, identity: Identity) -> datetime | None:
    """Return the expiry of the caller's key; None: it never expires, or the caller signed in."""
    return None if identity.is_session else await key_expiry(transaction, identity.key_id)


def _is_visible(key: ApiKey, identity: Identity) -> bool:
    if key.owner != identity.owner:
        return identity.has_scope(OPERATOR)
    return identity.has_scope(ORG_ADMIN) or (
        identity.user is not None and key.user == identity.user
    )
