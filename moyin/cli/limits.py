"""Implements ``moyin limits``, which shows and sets limits and budgets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from moyin.cli.screen import AsJson, AsLocalJson, print_json, print_outcome, print_records
from moyin.cli.session import run_with_gateway, send_request
from moyin.client.gateway import GatewayClient

app = typer.Typer(help="Limits and budgets: list, show, set, clear.", no_args_is_help=True)
Subject = Annotated[str, typer.Argument(metavar="SUBJECT", help="key:ID, user:ID or owner:TENANT.")]
_LISTS = frozenset({"pools", "allowed_nodes", "denied_nodes"})
_COUNT = re.compile(r"\d{1,12}")
_UNLIMITED = "none"


@app.command("list")
def list_limits(as_json: AsJson = False) -> None:
    """List the limits that apply to you."""
    page = run_with_gateway(lambda gateway: gateway.call("GET", "/accounts/limits"))
    if as_json:
        print_json(page)
    else:
        _print_limits(page["limits"], empty_text="no limits apply to you")


@app.command()
def show(subject: Subject, as_json: AsJson = False) -> None:
    """Show the limits of a key, a user or a tenant."""
    limit = run_with_gateway(lambda gateway: gateway.call("GET", _build_path(subject)))
    if as_json:
        print_json(limit)
    else:
        _print_limits([limit])


@app.command("set")
def set_limits(
    subject: Subject,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE",
            help="usd_per_day, usd_per_month, requests_per_minute, tokens_per_minute, "
            "concurrent_requests, open_jobs, best_priority, graph_nodes, graph_links, graph_bytes, pools, "
            "allowed_nodes or denied_nodes. "
            "Lists have commas; `none` removes the limit.",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Set limits of a key, a user or a tenant, and keep the limits that are not named."""
    changes = dict(map(_parse_limit, values))

    async def merge_limits(gateway: GatewayClient) -> Any:
        # Send the other limits, too, because the route replaces all limits of the subject.
        present_limits = await gateway.call("GET", _build_path(subject))
        merged_limits = {
            name: value for name, value in present_limits.items() if name != "subject"
        } | changes
        body = {name: value for name, value in merged_limits.items() if value is not None}
        return await gateway.call("PUT", _build_path(subject), body)

    limit = run_with_gateway(merge_limits)
    if as_json:
        print_json(limit)
    else:
        _print_limits([limit])


@app.command()
def clear(subject: Subject, as_json: AsLocalJson = False) -> None:
    """Remove all limits of a key, a user or a tenant."""
    send_request("DELETE", _build_path(subject))
    outcome = {"subject": subject, "cleared": True}
    print_outcome(outcome, f"{subject} has no limits", as_json=as_json)


def _parse_limit(assignment: str) -> tuple[str, Any]:
    """Return the name and the value of NAME=VALUE; the gateway checks both."""
    name, separator, value = assignment.partition("=")
    if not separator or not name:
        raise typer.BadParameter(
            f"{assignment}: must be NAME=VALUE, such as usd_per_day=5", param_hint="NAME=VALUE"
        )
    if value == _UNLIMITED:
        return name, None
    if name in _LISTS:
        return name, [item for item in value.split(",") if item]
    return name, int(value) if _COUNT.fullmatch(value) else value


def _print_limits(limits: Iterable[Mapping[str, Any]], empty_text: str = "no limits") -> None:
    print_records(
        ("subject", "limit", "value"),
        (
            (limit["subject"], name, value)
            for limit in limits
            for name, value in limit.items()
            if name != "subject" and value is not None
        ),
        empty_text=empty_text,
    )


def _build_path(subject: str) -> str:
    return f"/accounts/limits/{quote(subject, safe='')}"
