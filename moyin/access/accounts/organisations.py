"""Administers organisations, their members and service accounts.

Each change is one transaction, which also verifies the caller again and writes the audit entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moyin.access.accounts.caller import Caller, require_grantable, require_scope
from moyin.access.accounts.limited_keys import require_unlimited
from moyin.access.accounts.signin import SignInService
from moyin.domain.account import ROLE_SCOPES, Organisation, Role, User, UserKind
from moyin.domain.identity import OPERATOR, ORG_ADMIN, ORG_READ
from moyin.errors import InvalidRequest, NotFound
from moyin.store.audit import AuditEntry, AuditEvent, AuditFilter, AuditLog
from moyin.store.cursors import PageRequest
from moyin.store.reauthorization import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.sql import now
from moyin.store.users import UserStore

_ALL = PageRequest()


class OrganisationService:
    """Checks the caller's rights and changes organisations and users.

    Operators (scope ``operator``) may act in every organisation, administrators (``org:admin``)
    only in their own; for objects of other tenants, the methods raise `NotFound`. Only operators
    and callers who have all scopes of a role may assign the role or invite a member who has it.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        audit: AuditLog,
        sign_in: SignInService,
        transactions: ReauthorizedTransactions,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._audit = audit
        self._sign_in = sign_in
        self._transactions = transactions

    async def create_organisation(self, caller: Caller, name: str) -> Organisation:
        """Create an organisation; only operators may do so."""
        require_scope(caller.identity, OPERATOR)
        async with self._transactions.begin(caller.identity) as transaction:
            organisation = await self._users.create_organisation(name, transaction=transaction)
            event = caller.create_audit_event(
                "organisation.create", organisation.id, organisation.id, {"name": name}
            )
            await self._audit.write(event, transaction=transaction)
        return organisation

    async def list_organisations(
        self, caller: Caller, *, search: str = "", page: PageRequest = _ALL
    ) -> tuple[list[Organisation], str | None]:
        """Return a page of organisations, and the cursor of the next page, if any.

        Operators get all organisations, and other callers only their own.

        Args:
            search: text that the name of an organisation must contain; empty for all.
        """
        if caller.identity.has_scope(OPERATOR):
            return await self._users.list_organisations(search=search, page=page)
        require_scope(caller.identity, ORG_READ)
        return [await self._users.get_organisation(caller.identity.owner)], None

    async def get_organisation(self, caller: Caller, organisation: str) -> Organisation:
        """Return an organisation; raise `NotFound` if the caller may not see it."""
        self._require_access(caller, organisation, ORG_READ)
        return await self._users.get_organisation(organisation)

    async def list_members(
        self, caller: Caller, organisation: str, *, search: str = "", page: PageRequest = _ALL
    ) -> tuple[list[User], str | None]:
        """Return a page of the members and service accounts, and the next page's cursor, if any.

        Args:
            search: text that the name or the email of a member must contain; empty for all.
        """
        self._require_access(caller, organisation, ORG_READ)
        await self._users.get_organisation(organisation)
        return await self._users.list_members(organisation, search=search, page=page)

    async def add_member(
        self, caller: Caller, organisation: str, *, email: str, name: str, role: Role
    ) -> tuple[User, str | None]:
        """Add a member and mail an invitation, with which the member sets a password.

        Returns:
            The member, and the invitation's token if no mail server is configured, otherwise None.
        """
        self._require_access(caller, organisation, ORG_ADMIN)
        _require_assignable(caller, role)
        require_unlimited(caller.identity)
        async with self._transactions.begin(caller.identity) as transaction:
            user = await self._users.create(
                UserKind.MEMBER,
                email=email.lower(),
                name=name,
                organisation=organisation,
                role=role,
                transaction=transaction,
            )
            token = await self._sign_in.create_invitation(user, transaction=transaction)
            event = caller.create_audit_event(
                "member.create", organisation, user.id, {"role": role}
            )
            await self._audit.write(event, transaction=transaction)
        return user, self._sign_in.send_invitation(user, token)

    async def invite_member(
        self, caller: Caller, organisation: str, user_id: str
    ) -> tuple[User, str | None]:
        """Mail another invitation to a member.

        Returns:
            The member, and the invitation's token if no mail server is configured, otherwise None.

        Raises:
            InvalidRequest: the user is a service account or disabled.
        """
        self._require_access(caller, organisation, ORG_ADMIN)
        require_unlimited(caller.identity)
        async with self._transactions.begin(caller.identity, target_user=user_id) as transaction:
            # Checked inside the transaction, so that the role cannot change before the invitation
            # exists.
            user = await self._users.get_member(organisation, user_id, transaction=transaction)
            if user.kind is not UserKind.MEMBER or user.role is None:
                raise InvalidRequest(
                    f"user {user_id!r} must be a member, not a service account, which has no password"
                )
            _require_assignable(caller, user.role)
            if user.disabled_at is not None:
                raise InvalidRequest(
                    f"user {user_id!r} is disabled; set disabled to false before you invite the user"
                )
            token = await self._sign_in.create_invitation(user, transaction=transaction)
            event = caller.create_audit_event("member.invite", organisation, user_id)
            await self._audit.write(event, transaction=transaction)
        return user, self._sign_in.send_invitation(user, token)

    async def add_service_account(
        self, caller: Caller, organisation: str, name: str, role: Role
    ) -> User:
        """Add a service account: a user for programs, which authenticate with its API keys."""
        self._require_access(caller, organisation, ORG_ADMIN)
        _require_assignable(caller, role)
        async with self._transactions.begin(caller.identity) as transaction:
            user = await self._users.create(
                UserKind.SERVICE,
                email=None,
                name=name,
                organisation=organisation,
                role=role,
                transaction=transaction,
            )
            event = caller.create_audit_event(
                "service_account.create", organisation, user.id, {"role": role}
            )
            await self._audit.write(event, transaction=transaction)
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
        """Change the role of a user, or disable or enable the user.

        Each change ends the user's sessions. A new role also invalidates pending invitations.

        Args:
            role: the new role; None leaves it unchanged.
            disabled: True to disable the user, False to enable the user; None changes neither.
        """
        self._require_access(caller, organisation, ORG_ADMIN)
        user = await self._users.get_member(organisation, user_id)
        values: dict[str, Any] = {}
        if role is not None:
            _require_assignable(caller, role)
            values["role"] = role.value
        if disabled is not None:
            values["disabled_at"] = (user.disabled_at or now()) if disabled else None
        if not values:
            return user
        changes = {"role": role, "disabled": disabled}
        details = {name: value for name, value in changes.items() if value is not None}
        event = caller.create_audit_event("member.change", organisation, user_id, details)
        return await self._change_user(caller, event, user_id, values)

    async def find_users(self, caller: Caller, email: str) -> list[User]:
        """Return the user with this email in a list, or an empty list; only operators may do so."""
        require_scope(caller.identity, OPERATOR)
        user = await self._users.find_by_email(email.lower())
        return [] if user is None else [user]

    async def get_user(self, caller: Caller, user_id: str) -> User:
        """Return a user; only operators may read users of other organisations."""
        identity = caller.identity
        user = await self._users.get(user_id)
        if identity.has_scope(OPERATOR) or identity.user == user_id:
            return user
        require_scope(identity, ORG_READ)
        if user.organisation != identity.owner:
            raise NotFound(f"user {user_id!r} does not exist in your organisation; check the id")
        return user

    async def set_user_disabled(self, caller: Caller, user_id: str, disabled: bool) -> User:
        """Disable or enable a user and end the user's sessions; only operators may do so.

        Args:
            disabled: True to disable the user, False to enable the user.
        """
        require_scope(caller.identity, OPERATOR)
        user = await self._users.get(user_id)
        disabled_at = (user.disabled_at or now()) if disabled else None
        event = caller.create_audit_event(
            "user.change", user.owner, user_id, {"disabled": disabled}
        )
        return await self._change_user(caller, event, user_id, {"disabled_at": disabled_at})

    async def list_audit_entries(
        self, caller: Caller, entry_filter: AuditFilter, *, limit: int, before_id: str | None
    ) -> list[AuditEntry]:
        """Return entries of the audit log, newest first.

        Operators get the entries of all tenants, administrators those of their own.

        Args:
            limit: the maximum number of entries.
            before_id: the id of an entry; only older entries are returned.

        Raises:
            InsufficientScope: the caller is not an operator, and names another tenant.
        """
        identity = caller.identity
        if not identity.has_scope(OPERATOR):
            require_scope(identity, ORG_ADMIN)
            if entry_filter.owner not in (None, identity.owner):
                require_scope(identity, OPERATOR)
            entry_filter = replace(entry_filter, owner=identity.owner)
        return await self._audit.list_entries(entry_filter, limit=limit, before_id=before_id)

    def _require_access(self, caller: Caller, organisation: str, scope: str) -> None:
        identity = caller.identity
        if identity.has_scope(OPERATOR):
            return
        require_scope(identity, scope)
        if identity.owner != organisation:
            raise NotFound(f"organisation {organisation!r} does not exist, or you may not see it")

    async def _change_user(
        self, caller: Caller, event: AuditEvent, user_id: str, values: Mapping[str, Any]
    ) -> User:
        async with self._transactions.begin(caller.identity, target_user=user_id) as transaction:
            user = await self._users.change(user_id, values, transaction=transaction)
            await self._sessions.revoke_all(user_id, transaction=transaction)
            if "role" in values:
                # The holder of a reset token may lack the scopes of the new role.
                await self._sessions.delete_reset_tokens(user_id, transaction=transaction)
            await self._audit.write(event, transaction=transaction)
        return user


def _require_assignable(caller: Caller, role: Role) -> None:
    """Raise `InsufficientScope` unless the caller is an operator or has all scopes of ``role``."""
    if not caller.identity.has_scope(OPERATOR):
        require_grantable(caller.identity, ROLE_SCOPES[role])
