"""Defines the routes of organisations, their users, and the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints

from deployments.accounts.routes.callers import (
    NO_STORE_HEADERS,
    CallerResolver,
    RequestedPage,
    SearchText,
)
from moyin.access.accounts.organisations import OrganisationService
from moyin.access.protocol import wire
from moyin.access.protocol.response import build_audit_entry, build_organisation, build_user
from moyin.http.validation import UtcDatetime
from moyin.store.audit import AuditFilter

_Text = Annotated[str, StringConstraints(min_length=1, max_length=160, pattern=r"^[^\x00]*$")]


def new_organisation_routes(
    organisations: OrganisationService, callers: CallerResolver
) -> APIRouter:
    """Return the routes by which administrators and operators manage organisations."""
    router = APIRouter(tags=["organisations"])

    @router.post("/organisations", status_code=201, name="create")
    async def create_organisation(
        body: wire.NewOrganisation, request: Request
    ) -> wire.OrganisationBody:
        """Create an organisation. Only operators may do so."""
        return build_organisation(
            await organisations.create_organisation(callers.resolve_caller(request), body.name)
        )

    @router.get("/organisations", name="page")
    async def list_organisations(
        request: Request, page: RequestedPage, search: SearchText = ""
    ) -> wire.OrganisationList:
        """List your organisation. Operators get all organisations, newest first."""
        page_items, next_cursor = await organisations.list_organisations(
            callers.resolve_caller(request), search=search, page=page
        )
        return wire.OrganisationList(
            organisations=[build_organisation(o) for o in page_items], next_cursor=next_cursor
        )

    @router.get("/organisations/{organisation}", name="show")
    async def get_organisation(organisation: str, request: Request) -> wire.OrganisationBody:
        """Return your organisation. Operators may get any organisation."""
        return build_organisation(
            await organisations.get_organisation(callers.resolve_caller(request), organisation)
        )

    @router.get("/organisations/{organisation}/members", name="members")
    async def list_members(
        organisation: str, request: Request, page: RequestedPage, search: SearchText = ""
    ) -> wire.MemberList:
        """List the members and service accounts of an organisation, newest first.

        `search` selects those whose name or email contains this text.
        """
        users, next_cursor = await organisations.list_members(
            callers.resolve_caller(request), organisation, search=search, page=page
        )
        return wire.MemberList(
            members=[build_user(user) for user in users], next_cursor=next_cursor
        )

    @router.post("/organisations/{organisation}/members", status_code=201, name="add")
    async def add_member(
        organisation: str, body: wire.NewMember, request: Request, response: Response
    ) -> wire.InvitedMember:
        """Add a member and mail an invitation. Its token lets the member set a first password."""
        response.headers.update(NO_STORE_HEADERS)
        user, invitation = await organisations.add_member(
            callers.resolve_caller(request),
            organisation,
            email=body.email,
            name=body.name,
            role=body.role,
        )
        return wire.InvitedMember(**build_user(user).model_dump(), invitation=invitation)

    @router.post(
        "/organisations/{organisation}/members/{user}/invitation", status_code=201, name="invite"
    )
    async def invite_member(
        organisation: str, user: str, request: Request, response: Response
    ) -> wire.InvitedMember:
        """Mail a member a new invitation. Earlier invitations become invalid."""
        response.headers.update(NO_STORE_HEADERS)
        member, invitation = await organisations.invite_member(
            callers.resolve_caller(request), organisation, user
        )
        return wire.InvitedMember(**build_user(member).model_dump(), invitation=invitation)

    @router.post(
        "/organisations/{organisation}/service-accounts", status_code=201, name="add_service"
    )
    async def add_service_account(
        organisation: str, body: wire.NewServiceAccount, request: Request
    ) -> wire.UserBody:
        """Add a service account. It has no key yet: `POST /keys` creates one."""
        return build_user(
            await organisations.add_service_account(
                callers.resolve_caller(request), organisation, body.name, body.role
            )
        )

    @router.patch("/organisations/{organisation}/members/{user}", name="change")
    async def change_member(
        organisation: str, user: str, body: wire.ChangeMember, request: Request
    ) -> wire.UserBody:
        """Change a member's role, or disable the member. Both end the member's sessions."""
        return build_user(
            await organisations.change_member(
                callers.resolve_caller(request),
                organisation,
                user,
                role=body.role,
                disabled=body.disabled,
            )
        )

    @router.get("/users", name="find")
    async def find_users(
        request: Request, email: Annotated[str, Query(min_length=3, max_length=254)]
    ) -> wire.UserList:
        """List the user who has this email; the list is empty if there is none. For operators."""
        users = await organisations.find_users(callers.resolve_caller(request), email)
        return wire.UserList(users=[build_user(user) for user in users])

    @router.get("/users/{user}", name="one")
    async def get_user(user: str, request: Request) -> wire.UserBody:
        """Return a user of your organisation, or yourself. Operators may get any user."""
        return build_user(await organisations.get_user(callers.resolve_caller(request), user))

    @router.patch("/users/{user}", name="disable")
    async def set_disabled(user: str, body: wire.ChangeUser, request: Request) -> wire.UserBody:
        """Disable or enable a player. Only operators may do so."""
        return build_user(
            await organisations.set_user_disabled(
                callers.resolve_caller(request), user, body.disabled
            )
        )

    @router.get("/audit", name="audit")
    async def list_audit(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str | None, Query(max_length=36)] = None,
        owner: Annotated[_Text | None, Query(description="The tenant; for operators.")] = None,
        actor: Annotated[
            _Text | None, Query(description="The id of the user or of the key.")
        ] = None,
        action: Annotated[
            _Text | None,
            Query(description="An operation, such as `key.create`, or all of a kind: `key`."),
        ] = None,
        target: Annotated[_Text | None, Query(description="The id of what changed.")] = None,
        since: Annotated[
            UtcDatetime | None, Query(alias="from", description="The earliest time.")
        ] = None,
        until: Annotated[
            UtcDatetime | None, Query(alias="to", description="The time before which it was.")
        ] = None,
    ) -> wire.AuditPage:
        """List audit entries, newest first.

        `before` is the id of the previous page's last entry.
        """
        entries = await organisations.list_audit_entries(
            callers.resolve_caller(request),
            AuditFilter(
                owner=owner, actor=actor, action=action, target=target, since=since, until=until
            ),
            limit=limit,
            before_id=before,
        )
        return wire.AuditPage(entries=[build_audit_entry(entry) for entry in entries])

    return router
