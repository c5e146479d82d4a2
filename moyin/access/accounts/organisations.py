"""Administration of organisations and members.

Every act is one transaction with its entry in the audit log, and with a proof that its caller may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moyin.access.accounts.caller import Caller, may_give, require
from moyin.access.accounts.signin import SignIn
from moyin.domain.account import ROLE_SCOPES, Organisation, Role, User, UserKind
from moyin.domain.identity import OPERATOR, ORG_ADMIN, ORG_READ
from moyin.errors import InvalidRequest, NotFound
from moyin.store.audit import Act, AuditLog, Entry
from moyin.store.reauthorized import ReauthorizedTransactions
from moyin.store.sessions import SessionStore
from moyin.store.sql import Transaction, now
from moyin.store.users import UserStore

__all__ = ["OrganisationService"]


class OrganisationService:
    """What administrators do. Another tenant's things are not found, whoever asks.

    An operator (scope ``operator``) may act in every organisation, an organisation's admin
    (``org:admin``) in their own. A role is given, and the way into an account with it, by who has
    all of its scopes, or by an operator.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        audit: AuditLog,
        sign_in: SignIn,
        standing: ReauthorizedTransactions,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._audit = audit
        self._sign_in = sign_in
        self._standing = standing

    # Organisations

    async def create_organisation(self, caller: Caller, name: str) -> Organisation:
        require(caller.identity, OPERATOR)
        async with self._standing.acting(caller.identity) as transaction:
            created = await self._users.create_organisation(name, within=transaction)
            act = caller.act("organisation.create", created.id, created.id, {"name": name})
            await self._audit.write(act, within=transaction)
        return created

    async def organisations(self, caller: Caller) -> list[Organisation]:
        """All for an operator, else the caller's own."""
        if caller.identity.has_scope(OPERATOR):
            return await self._users.organisations()
        require(caller.identity, ORG_READ)
        return [await self._users.organisation(caller.identity.owner)]

    async def organisation(self, caller: Caller, organisation: str) -> Organisation:
        self._enter(caller, organisation, ORG_READ)
        return await self._users.organisation(organisation)

    # Members and service accounts

    async def members(self, caller: Caller, organisation: str) -> list[User]:
        self._enter(caller, organisation, ORG_READ)
        await self._users.organisation(organisation)
        return await self._users.members(organisation)

    async def add_member(
        self, caller: Caller, organisation: str, *, email: str, name: str, role: Role
    ) -> tuple[User, str | None]:
        """A new member, and the token to set the first password with, unless it was mailed."""
        self._enter(caller, organisation, ORG_ADMIN)
        _may_appoint(caller, role)
        async with self._standing.acting(caller.identity) as transaction:
            user = await self._users.create(
                UserKind.MEMBER,
                email=email.lower(),
                name=name,
                organisation=organisation,
                role=role,
                within=transaction,
            )
            token = await self._sign_in.invitation(user, within=transaction)
            act = caller.act("member.create", organisation, user.id, {"role": role})
            await self._audit.write(act, within=transaction)
        return user, self._sign_in.invite(user, token)

    async def invite(
        self, caller: Caller, organisation: str, user_id: str
    ) -> tuple[User, str | None]:
        """Another token for a member who lost the one before, or the password; as `add_member`.

        Raises:
            InvalidRequest: it is a service account, or somebody who is shut out.
        """
        self._enter(caller, organisation, ORG_ADMIN)
        async with self._standing.acting(caller.identity, on=user_id) as transaction:
            # In here: nobody gives them another role meanwhile.
            user = await self._member(organisation, user_id, within=transaction)
            if user.kind is not UserKind.MEMBER or user.role is None:
                raise InvalidRequest("a service account has no password; it acts through keys")
            _may_appoint(caller, user.role)
            if user.disabled_at is not None:
                raise InvalidRequest("the member is shut out; let them in first")
            token = await self._sign_in.invitation(user, within=transaction)
            act = caller.act("member.invite", organisation, user_id)
            await self._audit.write(act, within=transaction)
        return user, self._sign_in.invite(user, token)

    async def add_service(self, caller: Caller, organisation: str, name: str, role: Role) -> User:
        """A new service account; it acts through keys."""
        self._enter(caller, organisation, ORG_ADMIN)
        _may_appoint(caller, role)
        async with self._standing.acting(caller.identity) as transaction:
            user = await self._users.create(
                UserKind.SERVICE,
                email=None,
                name=name,
                organisation=organisation,
                role=role,
                within=transaction,
            )
            act = caller.act("service_account.create", organisation, user.id, {"role": role})
            await self._audit.write(act, within=transaction)
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
        """A new role, or no access any more. Either ends the member's sessions, a role also their
        invitations."""
        self._enter(caller, organisation, ORG_ADMIN)
        user = await self._member(organisation, user_id)
        values: dict[str, Any] = {}
        if role is not None:
            _may_appoint(caller, role)
            values["role"] = role.value
        if disabled is not None:
            values["disabled_at"] = (user.disabled_at or now()) if disabled else None
        if not values:
            return user
        changes = {"role": role, "disabled": disabled}
        told = {name: value for name, value in changes.items() if value is not None}
        act = caller.act("member.change", organisation, user_id, told)
        return await self._change(caller, act, user_id, values)

    # Anybody

    async def find(self, caller: Caller, email: str) -> list[User]:
        """Who has that email; for operators."""
        require(caller.identity, OPERATOR)
        found = await self._users.by_email(email.lower())
        return [] if found is None else [found]

    async def user(self, caller: Caller, user_id: str) -> User:
        """A user: the caller, one of the caller's organisation, or anybody for an operator."""
        identity = caller.identity
        user = await self._users.get(user_id)
        if identity.has_scope(OPERATOR) or identity.user == user_id:
            return user
        require(identity, ORG_READ)
        if user.organisation != identity.owner:
            raise NotFound(f"there is no user {user_id!r}")
        return user

    async def disable(self, caller: Caller, user_id: str, disabled: bool) -> User:
        """Shut anybody out, or let them in again; for operators. Sessions end."""
        require(caller.identity, OPERATOR)
        user = await self._users.get(user_id)
        at = (user.disabled_at or now()) if disabled else None
        act = caller.act("user.change", user.owner, user_id, {"disabled": disabled})
        return await self._change(caller, act, user_id, {"disabled_at": at})

    # The audit log

    async def audit(self, caller: Caller, *, limit: int, before: str | None) -> list[Entry]:
        """Everybody's for an operator, else the tenant's."""
        if caller.identity.has_scope(OPERATOR):
            return await self._audit.page(None, limit=limit, before=before)
        require(caller.identity, ORG_ADMIN)
        return await self._audit.page(caller.identity.owner, limit=limit, before=before)

    def _enter(self, caller: Caller, organisation: str, scope: str) -> None:
        identity = caller.identity
        if identity.has_scope(OPERATOR):
            return
        require(identity, scope)
        if identity.owner != organisation:
            raise NotFound(f"there is no organisation {organisation!r}")

    async def _change(
        self, caller: Caller, act: Act, user_id: str, values: Mapping[str, Any]
    ) -> User:
        async with self._standing.acting(caller.identity, on=user_id) as transaction:
            user = await self._users.change(user_id, values, within=transaction)
            await self._sessions.revoke_all(user_id, within=transaction)
            if "role" in values:
                # Who holds one may lack the new role, and would enter the account with it.
                await self._sessions.forbid_reset(user_id, within=transaction)
            await self._audit.write(act, within=transaction)
        return user

    async def _member(
        self, organisation: str, user_id: str, *, within: Transaction | None = None
    ) -> User:
        user = await self._users.get(user_id, within=within)
        if user.organisation != organisation:
            raise NotFound(f"there is no user {user_id!r}")
        return user


def _may_appoint(caller: Caller, role: Role) -> None:
    """
    Raises:
        InsufficientScope: the role may what the caller may not.
    """
    if not caller.identity.has_scope(OPERATOR):
        may_give(caller.identity, ROLE_SCOPES[role])
