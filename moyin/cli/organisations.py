"""Implements ``moyin organisations``, and finds an organisation's API path for other commands."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from moyin.cli.screen import AsJson, out, print_json, print_records
from moyin.cli.session import run_with_gateway
from moyin.client.gateway import GatewayClient
from moyin.errors import StackError

app = typer.Typer(help="Organisations: list, show, create.", no_args_is_help=True)
_COLUMNS = ("id", "name", "created")
_PATH = "/accounts/organisations"
OrganisationOption = Annotated[
    str | None,
    typer.Option("--organisation", help="Id of an organisation; default: your only one."),
]


@app.command("list")
def list_organisations(as_json: AsJson = False) -> None:
    """List your organisation; operators see all organisations."""
    page = run_with_gateway(lambda gateway: gateway.call("GET", _PATH))
    if as_json:
        print_json(page)
    else:
        print_records(
            _COLUMNS,
            map(_build_row, page["organisations"]),
            empty_text="no organisations: an operator makes one with `moyin organisations create NAME`",
        )


@app.command()
def show(
    organisation: Annotated[str, typer.Argument(metavar="ID", help="The organisation's id.")],
    as_json: AsJson = False,
) -> None:
    """Show an organisation."""
    body = run_with_gateway(
        lambda gateway: gateway.call("GET", get_organisation_path(organisation))
    )
    if as_json:
        print_json(body)
    else:
        print_records(_COLUMNS, [_build_row(body)])


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The organisation's name.")],
    as_json: AsJson = False,
) -> None:
    """Create an organisation and print its id; needs the rights of an operator."""
    body = run_with_gateway(lambda gateway: gateway.call("POST", _PATH, {"name": name}))
    if as_json:
        print_json(body)
    else:
        out.print(body["id"])


async def resolve_organisation_path(gateway: GatewayClient, organisation: str | None) -> str:
    """Return the API path of an organisation; None means the caller's only organisation.

    Raises:
        StackError: the caller has no organisation, or has several and did not name one.
    """
    if organisation is not None:
        return get_organisation_path(organisation)
    page = await gateway.call("GET", _PATH)
    organisation_ids = [str(body["id"]) for body in page["organisations"]]
    if not organisation_ids:
        raise StackError(
            "there is no organisation: an operator makes one with `moyin organisations create NAME`"
        )
    if len(organisation_ids) > 1:
        raise StackError(
            "there are several organisations: name one with --organisation "
            "(`moyin organisations list`)"
        )
    return get_organisation_path(organisation_ids[0])


def get_organisation_path(organisation: str) -> str:
    return f"{_PATH}/{quote(organisation, safe='')}"


def _build_row(body: dict[str, Any]) -> tuple[object, ...]:
    return body["id"], body["name"], body["created_at"]
