"""Implements ``moyin members``, which manages the members and service accounts of organisations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote

import typer

from moyin.cli.organisations import OrganisationOption, resolve_organisation_path
from moyin.cli.screen import AsJson, errors, out, print_json, print_records
from moyin.cli.session import run_with_gateway
from moyin.client.gateway import GatewayClient
from moyin.domain.account import Role

app = typer.Typer(
    help="Members and service accounts: list, invite, change roles, disable.",
    no_args_is_help=True,
)
User = Annotated[str, typer.Argument(metavar="USER", help="Id or email of the member.")]
RoleOption = Annotated[Role, typer.Option(help="Role: viewer, member or admin.")]


@app.command("list")
def list_members(organisation: OrganisationOption = None, as_json: AsJson = False) -> None:
    """List members and service accounts."""

    async def read_members(gateway: GatewayClient) -> Any:
        return await gateway.call(
            "GET", f"{await resolve_organisation_path(gateway, organisation)}/members"
        )

    page = run_with_gateway(read_members)
    if as_json:
        print_json(page)
        return
    _print_members(page["members"])


@app.command()
def invite(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Email of the new member.")],
    name: Annotated[str, typer.Option(help="Name of the member.")] = "",
    role: RoleOption = Role.MEMBER,
    organisation: OrganisationOption = None,
    as_json: AsJson = False,
) -> None:
    """Add a member and mail an invitation; print its token if this gateway sends no mail."""

    async def add_member(gateway: GatewayClient) -> Any:
        path = f"{await resolve_organisation_path(gateway, organisation)}/members"
        return await gateway.call("POST", path, {"email": email, "name": name, "role": role})

    _print_invitation(run_with_gateway(add_member), as_json)


@app.command("invite-again")
def invite_again(
    user: User, organisation: OrganisationOption = None, as_json: AsJson = False
) -> None:
    """Mail a new invitation to a member; earlier invitations become invalid."""

    async def renew_invitation(gateway: GatewayClient) -> Any:
        path = await _find_member(gateway, organisation, user)
        return await gateway.call("POST", f"{path}/invitation")

    _print_invitation(run_with_gateway(renew_invitation), as_json)


@app.command("add-service")
def add_service_account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the service account.")],
    role: RoleOption = Role.MEMBER,
    organisation: OrganisationOption = None,
    as_json: AsJson = False,
) -> None:
    """Add a service account and print its id; `moyin keys create --user ID` creates its key."""

    async def create_account(gateway: GatewayClient) -> Any:
        path = f"{await resolve_organisation_path(gateway, organisation)}/service-accounts"
        return await gateway.call("POST", path, {"name": name, "role": role})

    account = run_with_gateway(create_account)
    if as_json:
        print_json(account)
    else:
        out.print(account["id"])


@app.command("role")
def set_role(
    user: User,
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="viewer, member or admin.")],
    organisation: OrganisationOption = None,
    as_json: AsJson = False,
) -> None:
    """Change the role of a member, and end the member's sessions."""
    _change_member(user, {"role": role}, organisation, as_json)


@app.command()
def disable(user: User, organisation: OrganisationOption = None, as_json: AsJson = False) -> None:
    """Disable a member: end the sessions and disable the keys, but keep the jobs and files."""
    _change_member(user, {"disabled": True}, organisation, as_json)


@app.command()
def enable(user: User, organisation: OrganisationOption = None, as_json: AsJson = False) -> None:
    """Enable a disabled member again."""
    _change_member(user, {"disabled": False}, organisation, as_json)


def _change_member(
    user: str, body: dict[str, Any], organisation: str | None, as_json: bool
) -> None:
    async def update_member(gateway: GatewayClient) -> Any:
        path = await _find_member(gateway, organisation, user)
        return await gateway.call("PATCH", path, body)

    changed_member = run_with_gateway(update_member)
    if as_json:
        print_json(changed_member)
    else:
        _print_members([changed_member])


async def _find_member(gateway: GatewayClient, organisation: str | None, user: str) -> str:
    """Return the API path of a member.

    Args:
        organisation: the id of the organisation; None means the caller's only one.
        user: the id or the email of the member.
    """
    path = f"{await resolve_organisation_path(gateway, organisation)}/members"
    if "@" in user:
        members = (await gateway.call("GET", path))["members"]
        matching_ids = (m["id"] for m in members if (m["email"] or "").lower() == user.lower())
        if (member_id := next(matching_ids, None)) is None:
            raise typer.BadParameter(
                f"no member has the email {user}: `moyin members list` shows all", param_hint="USER"
            )
        user = str(member_id)
    return f"{path}/{quote(user, safe='')}"


def _print_invitation(member: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(member)
        return
    _print_members([member])
    if member["invitation"] is None:
        errors.print("the invitation was mailed")
    else:
        errors.print(
            "no mail is sent: give the member this token for `POST /accounts/password/reset`"
        )
        out.print(member["invitation"], markup=False)


def _print_members(members: Iterable[dict[str, Any]]) -> None:
    print_records(
        ("id", "email", "name", "kind", "role", "state"),
        map(_build_row, members),
        optional_columns=("kind",),
        empty_text="no members: `moyin members invite EMAIL` adds one",
    )


def _build_row(user: dict[str, Any]) -> tuple[object, ...]:
    state = "disabled" if user["disabled"] else "active"
    return user["id"], user["email"], user["name"], user["kind"], user["role"], state
