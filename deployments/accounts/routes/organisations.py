"""Defines the routes of organisations, their members and service accounts, and of the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from deployments.accounts.routes.callers import NO_STORE, Callers
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_audit_entry, build_organisation, build_user

__all__ = ["organisation_routes"]


def organisation_routes(organisations: OrganisationService, callers: Callers) -> APIRouter:
    """Return the routes for administrators."""
    router = APIRouter(tags=["organisations"])

    @router.post("/organisations", status_code=201)
    async def create(body: wire.NewOrganisation, request: Request) -> wire.OrganisationBody:
        """Create an organisation; for operators."""
        return build_organisation(
            await organisations.create_organisation(callers.of(request), body.name)
        )

    @router.get("/organisations")
    async def page(request: Request) -> wire.OrganisationList:
        """List your organisation; for operators, all of them."""
        listed = await organisations.list_organisations(callers.of(request))
        return wire.OrganisationList(organisations=[build_organisation(o) for o in listed])

    @router.get("/organisations/{organisation}")
    async def show(organisation: str, request: Request) -> wire.OrganisationBody:
        """Return one organisation."""
        return build_organisation(
            await organisations.get_organisation(callers.of(request), organisation)
        )

    @router.get("/organisations/{organisation}/members")
    async def members(organisation: str, request: Request) -> wire.MemberList:
        """List the members and service accounts of an organisation."""
        users = await organisations.list_members(callers.of(request), organisation)
        return wire.MemberList(members=[build_user(user) for user in users])

    @router.post("/organisations/{organisation}/members", status_code=201)
    async def add(
        organisation: str, body: wire.NewMember, request: Request, response: Response
    ) -> wire.InvitedMember:
        """Add a member and mail an invitation, which sets the first password."""
        response.headers.update(NO_STORE)
        user, invitation = await organisations.add_member(
            callers.of(request), organisation, email=body.email, name=body.name, role=body.role
        )
        return wire.InvitedMember(**build_user(user).model_dump(), invitation=invitation)

    @router.post("/organisations/{organisation}/members/{user}/invitation", status_code=201)
    async def invite(
        organisation: str, user: str, request: Request, response: Response
    ) -> wire.InvitedMember:
        """Mail a member another invitation. Earlier ones become invalid."""
        response.headers.update(NO_STORE)
        member, invitation = await organisations.invite_member(
            callers.of(request), organisation, user
        )
        return wire.InvitedMember(**build_user(member).model_dump(), invitation=invitation)

    @router.post("/organisations/{organisation}/service-accounts", status_code=201)
    async def add_service(
        organisation: str, body: wire.NewServiceAccount, request: Request
    ) -> wire.UserBody:
        """Add a service account. Create its key with `POST /keys`."""
        return build_user(
            await organisations.add_service_account(
                callers.of(request), organisation, body.name, body.role
            )
        )

    @router.patch("/organisations/{organisation}/members/{user}")
    async def change(
        organisation: str, user: str, body: wire.ChangeMember, request: Request
    ) -> wire.UserBody:
        """Change a member's role, or disable the account. Either ends the member's sessions."""
        return build_user(
            await organisations.change_member(
                callers.of(request), organisation, user, role=body.role, disabled=body.disabled
            )
        )

    @router.get("/users")
    async def find(
        request: Request, email: Annotated[str, Query(min_length=3, max_length=254)]
    ) -> wire.UserList:
        """Find the user with this email; for operators."""
        users = await organisations.find_users(callers.of(request), email)
        return wire.UserList(users=[build_user(user) for user in users])

    @router.get("/users/{user}")
    async def one(user: str, request: Request) -> wire.UserBody:
        """Return yourself or a user of your organisation; for operators, any user."""
        return build_user(await organisations.get_user(callers.of(request), user))

    @router.patch("/users/{user}")
    async def disable(user: str, body: wire.ChangeUser, request: Request) -> wire.UserBody:
        """Disable or enable a player; for operators."""
        return build_user(
            await organisations.set_user_disabled(callers.of(request), user, body.disabled)
        )

    @router.get("/audit")
    async def audit(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(max_length=36)] = None,
    ) -> wire.AuditPage:
        """List audit entries, newest first. `before` is the last id of the page before."""
        entries = await organisations.list_audit_entries(
            callers.of(request), limit=limit, before=before
        )
        return wire.AuditPage(entries=[build_audit_entry(entry) for entry in entries])

    return router
