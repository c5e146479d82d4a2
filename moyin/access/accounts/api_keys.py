"""Manages API keys, limits, and the key pairs that sign access tokens.

Each change is one transaction, which also verifies the caller again and writes the audit entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal

from moyin.access.accounts.caller import Caller, require_grantable, require_scope
from moyin.access.accounts.limited_keys import (
    list_subjects_to_inherit,
    require_foreign_limit,
    require_same_limits,
)
from moyin.access.gatekeeper.budgets import BudgetReader, BudgetState
from moyin.domain.account import ROLE_SCOPES, UserKind
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
from moyin.store.cursors import PageRequest
from moyin.store.keys import ApiKey, KeyStore, get_key_expiry
from moyin.store.limits import LimitStore
from moyin.store.reauthorization import ReauthorizedTransactions
from moyin.store.signing_keys import SigningKeyStore
from moyin.store.sql import Transaction, now
from moyin.store.users import UserStore

_ALL = PageRequest()
# Maximum length of a tenant's name, in characters.
_MAX_OWNER_LENGTH = 128


class ApiKeyService:
    """Checks the caller's rights and changes API keys, limits and signing keys.

    Callers manage their own keys, administrators (scope ``org:admin``) all keys of their tenant,
    and operators (scope ``operator``) all keys. For all other keys, the methods raise `NotFound`. A
    new key cannot have more scopes than the caller, or expire later than the key with which the
    caller authenticated. The limits of that key apply to the new key, too, and both count together.
    A key of a signed-in user may outlive the session.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        keys: KeyStore,
        limits: LimitStore,
        audit: AuditLog,
        signing_keys: SigningKeyStore,
        budgets: BudgetReader,
        transactions: ReauthorizedTransactions,
    ) -> None:
        self._users = users
        self._keys = keys
        self._limits = limits
        self._audit = audit
        self._signing_keys = signing_keys
        self._budgets = budgets
        self._transactions = transactions

    async def list_keys(
        self,
        caller: Caller,
        *,
        owner: str | None = None,
        user: str | None = None,
        valid: bool = False,
        search: str = "",
        page: PageRequest = _ALL,
    ) -> tuple[list[ApiKey], str | None]:
        """Return a page of keys that the caller may see, and the cursor of the next page, if any.

        Callers see their own keys, administrators all keys of their tenant, operators the keys of
        any tenant.

        Args:
            owner: the tenant; None for the caller's.
            user: the id of the user whose keys are returned; None for all users.
            valid: True to leave out keys that were revoked or have expired.
            search: text that the key's name must contain; empty for all keys.

        Raises:
            InsufficientScope: the caller is not an operator, and names another tenant.
        """
        identity = caller.identity
        require_scope(identity, KEYS)
        if owner not in (None, identity.owner):
            require_scope(identity, OPERATOR)
        elif not identity.has_scope(ORG_ADMIN):
            if identity.user is None or user not in (None, identity.user):
                return [], None
            user = identity.user
        return await self._keys.list_by_owner(
            owner or identity.owner, user=user, valid_only=valid, search=search, page=page
        )

    async def create_key(
        self,
        caller: Caller,
        *,
        name: str,
        scopes: Iterable[str] | None,
        expires_at: datetime | None,
        user_id: str | None,
    ) -> tuple[ApiKey, str]:
        """Create an API key and return it with its secret text, which is not stored.

        Args:
            scopes: the key's scopes. If None, the key gets those of `DEFAULT_SCOPES` that its user
                has.
            user_id: the service account that owns the key, or None if the caller owns it. Operators
                may name a service account of any organisation; that organisation is then the key's
                tenant.

        Raises:
            InsufficientScope: the caller lacks one of the scopes.
            InvalidRequest: the key would have no scopes, or ``expires_at`` is in the past or later
                than the expiry of the caller's key, or too many keys created each other in turn.
        """
        identity = caller.identity
        require_scope(identity, KEYS)
        if expires_at is not None and expires_at <= now():
            raise InvalidRequest("expires_at must be a time in the future", field="expires_at")
        owner, user_scopes = identity.owner, identity.scopes
        if user_id is not None and user_id != identity.user:
            if identity.has_scope(OPERATOR):
                user = await self._users.get(user_id)
            else:
                require_scope(identity, ORG_ADMIN)
                user = await self._users.get_member(identity.owner, user_id)
            if user.kind is not UserKind.SERVICE or user.role is None:
                raise InvalidRequest("user must be the id of a service account", field="user")
            owner, user_scopes = user.owner, ROLE_SCOPES[user.role]
        key_scopes = _select_default_scopes(user_scopes) if scopes is None else frozenset(scopes)
        require_grantable(identity, key_scopes)
        async with self._transactions.begin(identity) as transaction:
            if (caller_expiry := await _get_caller_key_expiry(transaction, identity)) is not None:
                if expires_at is not None and expires_at > caller_expiry:
                    raise InvalidRequest(
                        f"expires_at must not be later than {caller_expiry.isoformat()}, when your own key expires",
                        field="expires_at",
                    )
                expires_at = expires_at or caller_expiry
            key_id, key_text = await self._keys.create(
                owner,
                name,
                scopes=key_scopes,
                user=user_id or identity.user,
                expires_at=expires_at,
                inherited_subjects=await list_subjects_to_inherit(
                    transaction, identity, user_id or identity.user
                ),
                transaction=transaction,
            )
            details = {"name": name, "scopes": sorted(key_scopes)}
            event = caller.create_audit_event("key.create", owner, key_id, details)
            await self._audit.write(event, transaction=transaction)
        return await self._keys.get(key_id), key_text

    async def rotate_key(self, caller: Caller, key_id: str, overlap: timedelta) -> str:
        """Replace the secret of a key and return the new text.

        Args:
            overlap: the time for which the old secret stays valid.

        Raises:
            InsufficientScope: the key has scopes that the caller lacks, expires later than the
                caller's key, or does not have the limits of the caller's key.
        """
        key = await self._get_visible_key(caller, key_id)
        require_grantable(caller.identity, key.scopes)
        event = caller.create_audit_event(
            "key.rotate", key.owner, key_id, {"overlap_seconds": overlap.total_seconds()}
        )
        async with self._transactions.begin(caller.identity) as transaction:
            caller_expiry = await _get_caller_key_expiry(transaction, caller.identity)
            if caller_expiry is not None and (
                key.expires_at is None or key.expires_at > caller_expiry
            ):
                raise InsufficientScope(
                    f"key {key_id!r} expires later than your own key, so you cannot rotate it; sign in, or "
                    "use a key that is valid for as long"
                )
            await require_same_limits(transaction, caller.identity, key)
            key_text = await self._keys.rotate(key_id, overlap=overlap, transaction=transaction)
            await self._audit.write(event, transaction=transaction)
        return key_text

    async def revoke_key(self, caller: Caller, key_id: str) -> None:
        """Revoke an API key, so that requests with it are refused."""
        key = await self._get_visible_key(caller, key_id)
        async with self._transactions.begin(caller.identity) as transaction:
            await self._keys.revoke(key_id, transaction=transaction)
            event = caller.create_audit_event("key.revoke", key.owner, key_id)
            await self._audit.write(event, transaction=transaction)

    async def list_own_limits(self, caller: Caller) -> tuple[Limit, ...]:
        """Return the limits of the caller's key, user and tenant, and those that the key inherits."""
        [limits] = await self._limits.list_for_callers([caller.identity])
        return limits

    async def get_limit(self, caller: Caller, subject: str) -> Limit:
        """Return the limits of a subject; attributes that are None are unlimited.

        Args:
            subject: ``key:<id>``, ``user:<id>`` or ``owner:<tenant>``.
        """
        await self._authorize_subject(caller, subject, changes=False)
        limits = await self._limits.list_for([subject])
        return limits[0] if limits else Limit(subject=subject)

    async def list_budgets(self, caller: Caller, subject: str) -> list[BudgetState]:
        """Return the states of the budgets of a subject, such as ``key:<id>``.

        Raises:
            ServiceUnavailable: Valkey, which counts them, is unavailable.
        """
        owner = await self._authorize_subject(caller, subject, changes=False)
        return await self._budgets.list_states(await self._limits.list_for([subject]), owner)

    async def set_limit(self, caller: Caller, limit: Limit) -> None:
        """Store the limits of ``limit.subject`` and replace earlier ones.

        Raises:
            InsufficientScope: the caller lacks a scope, or is an API key that the limits apply to.
        """
        owner = await self._authorize_subject(caller, limit.subject)
        changes = {
            name: str(value) if isinstance(value, Decimal) else value
            for name in Limit.__slots__
            if name != "subject" and (value := getattr(limit, name)) is not None
        }
        async with self._transactions.begin(caller.identity) as transaction:
            await self._limits.set(limit, transaction=transaction)
            event = caller.create_audit_event("limit.set", owner, limit.subject, changes)
            await self._audit.write(event, transaction=transaction)

    async def clear_limit(self, caller: Caller, subject: str) -> None:
        """Delete the limits of a subject, such as ``key:<id>``."""
        owner = await self._authorize_subject(caller, subject)
        async with self._transactions.begin(caller.identity) as transaction:
            await self._limits.clear(subject, transaction=transaction)
            event = caller.create_audit_event("limit.clear", owner, subject)
            await self._audit.write(event, transaction=transaction)

    async def rotate_signing_key(self, caller: Caller) -> str:
        """Create a key pair, which signs all access tokens from now on, and return its id."""
        require_scope(caller.identity, OPERATOR)
        async with self._transactions.begin(caller.identity) as transaction:
            kid = (await self._signing_keys.add(transaction=transaction)).kid
            event = caller.create_audit_event("signing_key.create", caller.identity.owner, kid)
            await self._audit.write(event, transaction=transaction)
        return kid

    async def delete_signing_key(self, caller: Caller, kid: str) -> None:
        """Delete a key pair, so that access tokens signed with it are refused within a minute.

        Raises:
            NotFound: the key pair does not exist.
            InvalidRequest: the key pair is the newest, which signs new tokens.
        """
        require_scope(caller.identity, OPERATOR)
        kids = [key.kid for key in await self._signing_keys.list_public_keys()]
        if kid not in kids:
            raise NotFound(
                f"signing key {kid!r} does not exist; GET /accounts/.well-known/jwks.json lists the keys"
            )
        if kid == kids[0]:
            raise InvalidRequest(
                f"signing key {kid!r} cannot be deleted, because it signs new tokens; create another "
                f"signing key first",
                field="kid",
            )
        async with self._transactions.begin(caller.identity) as transaction:
            await self._signing_keys.delete(kid, transaction=transaction)
            event = caller.create_audit_event("signing_key.delete", caller.identity.owner, kid)
            await self._audit.write(event, transaction=transaction)

    async def _get_visible_key(self, caller: Caller, key_id: str) -> ApiKey:
        require_scope(caller.identity, KEYS)
        key = await self._keys.get(key_id)
        if not _is_visible(key, caller.identity):
            raise NotFound(f"API key {key_id!r} does not exist, or you may not see it")
        return key

    async def _authorize_subject(
        self, caller: Caller, subject: str, *, changes: bool = True
    ) -> str:
        """Check that the caller may see or change the limits of ``subject``; return its tenant.

        Administrators may change the limits of the keys and users of their tenant, and see those of
        the tenant itself. Operators may change all limits.

        Args:
            changes: True if the caller wants to change the limits, False to see them.
        """
        identity = caller.identity
        kind, _, subject_id = subject.partition(":")
        if identity.has_scope(OPERATOR):
            return await self._find_tenant(kind, subject_id)
        require_scope(identity, ORG_ADMIN)
        if changes:
            require_foreign_limit(identity, subject)
        kinds = ("key", "user") if changes else ("key", "user", "owner")
        if kind not in kinds or await self._find_tenant(kind, subject_id) != identity.owner:
            raise NotFound(
                f"subject {subject!r} must be key:<id> or user:<id> of your own organisation"
            )
        return identity.owner

    async def _find_tenant(self, kind: str, subject_id: str) -> str:
        match kind:
            case "key":
                return (await self._keys.get(subject_id)).owner
            case "user":
                return (await self._users.get(subject_id)).owner
            case "owner" if 0 < len(subject_id) <= _MAX_OWNER_LENGTH and not is_internal_owner(
                subject_id
            ):
                return subject_id
        raise InvalidRequest(
            "subject must be key:<id>, user:<id> or owner:<tenant>", field="subject"
        )


def _select_default_scopes(user_scopes: frozenset[str]) -> frozenset[str]:
    """Return the default scopes of a new key whose user has ``user_scopes``."""
    scopes = DEFAULT_SCOPES if ALL in user_scopes else DEFAULT_SCOPES & user_scopes
    if not scopes:
        raise InvalidRequest(
            f"scopes must be set, because the key's user has none of the default scopes "
            f"({', '.join(sorted(DEFAULT_SCOPES))})",
            field="scopes",
        )
    return scopes


async def _get_caller_key_expiry(transaction: Transaction, identity: Identity) -> datetime | None:
    """Return when the caller's key expires, or None if it never does or the caller is signed in."""
    return None if identity.is_session else await get_key_expiry(transaction, identity.key_id)


def _is_visible(key: ApiKey, identity: Identity) -> bool:
    if key.owner != identity.owner:
        return identity.has_scope(OPERATOR)
    return identity.has_scope(ORG_ADMIN) or (
        identity.user is not None and key.user == identity.user
    )
