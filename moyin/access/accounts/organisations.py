"""Administers organisations and their members.

Each change, its audit entry and the check of the caller's rights are one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.access.accounts.caller import Caller, check_grantable, require
from moyin.access.accounts.signin import SignIn
from moyin.domain.account import ROLE_SCOPES, Organisation, Role, User, UserKind
from moyin.domain.identity import OPERATOR, ORG_ADMIN, ORG_READ
from moyin.errors import InvalidRequest, NotFound
from moyin.store.audit import AuditEntry, AuditEvent, AuditLog
from moyin.store.reauthorized import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.sql import Transaction, now
from moyin.store.users import UserStore

__all__ = ["OrganisationService"]


class OrganisationService:
    """Performs the operations of administrators.

    An operator (scope ``operator``) may act in every organisation, an administrator (``org:admin``)
    only in their own: objects of other tenants raise `NotFound`. Callers may assign a role, or
    invite a member who has it, only if they have all scopes of the role or are operators.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        audit: AuditLog,
        sign_in: SignIn,
        transactions: ReauthorizedTransactions,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._audit = audit
        self._sign_in = sign_in
        self._transactions = transactions

    # Organisations

    async def create_organisation(self, caller: Caller, name: str) -> Organisation:
        """Create an organisation; for operators."""
        require(caller.identity, OPERATOR)
        async with self._transactions.begin(caller.identity) as transaction:
            created = await self._users.create_organisation(name, within=transaction)
            event = caller.audit_event(
                "organisation.create", created.id, created.id, {"name": name}
            )
            await self._audit.write(event, within=transaction)
        return created

    async def list_organisations(self, caller: Caller) -> list[Organisation]:
        """Return all organisations to an operator, otherwise the caller's own."""
        if caller.identity.has_scope(OPERATOR):
            return await self._users.list_organisations()
        require(caller.identity, ORG_READ)
        return [await self._users.get_organisation(caller.identity.owner)]

    async def get_organisation(self, caller: Caller, organisation: str) -> Organisation:
        """Return an organisation that the caller may read."""
        self._check_access(caller, organisation, ORG_READ)
        return await self._users.get_organisation(organisation)

    # Members and service accounts

    async def list_members(self, caller: Caller, organisation: str) -> list[User]:
        """Return the members and service accounts of an organisation."""
        self._check_access(caller, organisation, ORG_READ)
        await self._users.get_organisation(organisation)
        return await self._users.list_members(organisation)

    async def add_member(
        self, caller: Caller, organisation: str, *, email: str, name: str, role: Role
    ) -> tuple[User, str | None]:
        """Add a member; return it and the token that sets its password, None if it was mailed."""
        self._check_access(caller, organisation, ORG_ADMIN)
        _check_role(caller, role)
        async with self._transactions.begin(caller.identity) as transaction:
            user = await self._users.create(
                UserKind.MEMBER,
                email=email.lower(),
                name=name,
                organisation=organisation,
                role=role,
                within=transaction,
            )
            token = await self._sign_in.create_invitation(user, within=transaction)
            event = caller.audit_event("member.create", organisation, user.id, {"role": role})
            await self._audit.write(event, within=transaction)
        return user, self._sign_in.send_invitation(user, token)

    async def invite(
        self, caller: Caller, organisation: str, user_id: str
    ) -> tuple[User, str | None]:
        """Create another token that sets a member's password; see `add_member`.

        Raises:
            InvalidRequest: the user is a service account or disabled.
        """
        self._check_access(caller, organisation, ORG_ADMIN)
        async with self._transactions.begin(caller.identity, target_user=user_id) as transaction:
            # Inside the transaction, so that the role cannot change before the invitation exists.
            user = await self._member(organisation, user_id, within=transaction)
            if user.kind is not UserKind.MEMBER or user.role is None:
                raise InvalidRequest(
                    "user must be a member: a service account has no password, only keys"
                )
            _check_role(caller, user.role)
            if user.disabled_at is not None:
                raise InvalidRequest("the member is disabled; set disabled to false first")
            token = await self._sign_in.create_invitation(user, within=transaction)
            event = caller.audit_event("member.invite", organisation, user_id)
            await self._audit.write(event, within=transaction)
        return user, self._sign_in.send_invitation(user, token)

    async def add_service_account(
        self, caller: Caller, organisation: str, name: str, role: Role
    ) -> User:
        """Add a service account, which acts through API keys."""
        self._check_access(caller, organisation, ORG_ADMIN)
        _check_role(caller, role)
        async with self._transactions.begin(caller.identity) as transaction:
            user = await self._users.create(
                UserKind.SERVICE,
                email=None,
                name=name,
                organisation=organisation,
                role=role,
                within=transaction,
            )
            event = caller.audit_event(
                "service_account.create", organisation, user.id, {"role": role}
            )
            await self._audit.write(event, within=transaction)
        return user

    async def change_member(
        self,
        caller: Caller,
        organisation: str,
        user_id: str,
        *,
        role: Role | None = None,
        disabled: bool | None = None,
    ) -> User:
        """Change the role of a member, or disable or enable the account.

        Either ends the member's sessions. A new role also invalidates open invitations.
        """
        self._check_access(caller, organisation, ORG_ADMIN)
        user = await self._member(organisation, user_id)
        values: dict[str, Any] = {}
        if role is not None:
            _check_role(caller, role)
            values["role"] = role.value
        if disabled is not None:
            values["disabled_at"] = (user.disabled_at or now()) if disabled else None
        if not values:
            return user
        changes = {"role": role, "disabled": disabled}
        details = {name: value for name, value in changes.items() if value is not None}
        event = caller.audit_event("member.change", organisation, user_id, details)
        return await self._change(caller, event, user_id, values)

    # Users of any kind

    async def find_users(self, caller: Caller, email: str) -> list[User]:
        """Return the users with this email, at most one; for operators."""
        require(caller.identity, OPERATOR)
        user = await self._users.find_by_email(email.lower())
        return [] if user is None else [user]

    async def get_user(self, caller: Caller, user_id: str) -> User:
        """Return the caller, a user of the caller's organisation, or any user to an operator."""
        identity = caller.identity
        user = await self._users.get(user_id)
        if identity.has_scope(OPERATOR) or identity.user == user_id:
            return user
        require(identity, ORG_READ)
        if user.organisation != identity.owner:
            raise NotFound(f"there is no user {user_id!r}")
        return user

    async def set_disabled(self, caller: Caller, user_id: str, disabled: bool) -> User:
        """Disable or enable any user and end their sessions; for operators."""
        require(caller.identity, OPERATOR)
        user = await self._users.get(user_id)
        at = (user.disabled_at or now()) if disabled else None
        event = caller.audit_event("user.change", user.owner, user_id, {"disabled": disabled})
        return await self._change(caller, event, user_id, {"disabled_at": at})

    # The audit log

    async def list_audit(
        self, caller: Caller, *, limit: int, before: str | None
    ) -> list[AuditEntry]:
        """Return audit entries, newest first: all to an operator, otherwise the tenant's."""
        if caller.identity.has_scope(OPERATOR):
            return await self._audit.page(None, limit=limit, before=before)
        require(caller.identity, ORG_ADMIN)
        return await self._audit.page(caller.identity.owner, limit=limit, before=before)

    def _check_access(self, caller: Caller, organisation: str, scope: str) -> None:
        identity = caller.identity
        if identity.has_scope(OPERATOR):
            return
        require(identity, scope)
        if identity.owner != organisation:
            raise NotFound(f"there is no organisation {organisation!r}")

    async def _change(
        self, caller: Caller, event: AuditEvent, user_id: str, values: Mapping[str, Any]
    ) -> User:
        async with self._transactions.begin(caller.identity, target_user=user_id) as transaction:
            user = await self._users.change(user_id, values, within=transaction)
            await self._sessions.revoke_all(user_id, within=transaction)
            if "role" in values:
                # The holder of a reset token may lack the scopes of the new role.
                await self._sessions.delete_reset_tokens(user_id, within=transaction)
            await self._audit.write(event, within=transaction)
        return user

    async def _member(
        self, organisation: str, user_id: str, *, within: Transaction | None = None
    ) -> User:
        user = await self._users.get(user_id, within=within)
        if user.organisation != organisation:
            raise NotFound(f"there is no user {user_id!r}")
        return user


def _check_role(caller: Caller, role: Role) -> None:
    """Refuse a caller that may not assign ``role``.

    Raises:
        InsufficientScope: the role has scopes that the caller lacks.
    """
    if not caller.identity.has_scope(OPERATOR):
        check_grantable(caller.identity, ROLE_SCOPES[role])
