"""Organisations, their members and service accounts; the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from deployments.accounts.routes.answers import SECRET
from deployments.accounts.routes.callers import Callers
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.protocol import wire
from moyin.access.protocol.response import audit_entry, organisation_body, user_body

__all__ = ["organisation_routes"]


def organisation_routes(office: OrganisationService, callers: Callers) -> APIRouter:
    """Routes for administrators."""
    router = APIRouter(tags=["organisations"])

    @router.post("/organisations", status_code=201)
    async def create(body: wire.NewOrganisation, request: Request) -> wire.OrganisationBody:
        """Make an organisation; for operators."""
        return organisation_body(await office.create_organisation(callers.of(request), body.name))

    @router.get("/organisations")
    async def page(request: Request) -> wire.OrganisationList:
        """Your organisation; all of them for operators."""
        found = await office.organisations(callers.of(request))
        return wire.OrganisationList(organisations=[organisation_body(one) for one in found])

    @router.get("/organisations/{organisation}")
    async def show(organisation: str, request: Request) -> wire.OrganisationBody:
        """One organisation."""
        return organisation_body(await office.organisation(callers.of(request), organisation))

    @router.get("/organisations/{organisation}/members")
    async def members(organisation: str, request: Request) -> wire.MemberList:
        """Members and service accounts."""
        found = await office.members(callers.of(request), organisation)
        return wire.MemberList(members=[user_body(user) for user in found])

    @router.post("/organisations/{organisation}/members", status_code=201)
    async def add(
        organisation: str, body: wire.NewMember, request: Request, response: Response
    ) -> wire.InvitedMember:
        """Add a member, who gets a mail to set the first password."""
        response.headers.update(SECRET)
        user, invitation = await office.add_member(
            callers.of(request), organisation, email=body.email, name=body.name, role=body.role
        )
        return wire.InvitedMember(**user_body(user).model_dump(), invitation=invitation)

    @router.post("/organisations/{organisation}/members/{user}/invitation", status_code=201)
    async def invite(
        organisation: str, user: str, request: Request, response: Response
    ) -> wire.InvitedMember:
        """Invite a member again, who lost the mail or the password. Earlier invitations end."""
        response.headers.update(SECRET)
        found, invitation = await office.invite(callers.of(request), organisation, user)
        return wire.InvitedMember(**user_body(found).model_dump(), invitation=invitation)

    @router.post("/organisations/{organisation}/service-accounts", status_code=201)
    async def add_service(
        organisation: str, body: wire.NewServiceAccount, request: Request
    ) -> wire.UserBody:
        """Add a service account; then make it a key with `POST /keys`."""
        return user_body(
            await office.add_service(callers.of(request), organisation, body.name, body.role)
        )

    @router.patch("/organisations/{organisation}/members/{user}")
    async def change(
        organisation: str, user: str, body: wire.ChangeMember, request: Request
    ) -> wire.UserBody:
        """Change a member's role, or shut them out. Either ends their sessions."""
        return user_body(
            await office.change_member(
                callers.of(request), organisation, user, role=body.role, disabled=body.disabled
            )
        )

    @router.get("/users")
    async def find(
        request: Request, email: Annotated[str, Query(min_length=3, max_length=254)]
    ) -> wire.UserList:
        """Who has an email; for operators."""
        found = await office.find(callers.of(request), email)
        return wire.UserList(users=[user_body(user) for user in found])

    @router.get("/users/{user}")
    async def one(user: str, request: Request) -> wire.UserBody:
        """A user with the profile: yourself, one of your organisation, anybody for operators."""
        return user_body(await office.user(callers.of(request), user))

    @router.patch("/users/{user}")
    async def disable(user: str, body: wire.ChangeUser, request: Request) -> wire.UserBody:
        """Shut a player out, or let them in again; for operators."""
        return user_body(await office.disable(callers.of(request), user, body.disabled))

    @router.get("/audit")
    async def audit(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(max_length=36)] = None,
    ) -> wire.AuditPage:
        """Administrative acts, newest first. `before` is the id of the last one you have."""
        found = await office.audit(callers.of(request), limit=limit, before=before)
        return wire.AuditPage(entries=[audit_entry(entry) for entry in found])

    return router
