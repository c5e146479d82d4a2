"""Implements ``moyin audit``, which lists, searches and exports the audit log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from moyin.cli.screen import AsJson, print_csv, print_json, print_json_line, print_records
from moyin.cli.session import build_path, run_with_gateway
from moyin.client.gateway import GatewayClient

app = typer.Typer(help="The audit log: list, search, export.", no_args_is_help=True)
Search = Annotated[
    str | None, typer.Option(help="Only entries that contain this text, in any of their members.")
]
After = Annotated[
    datetime | None,
    typer.Option("--from", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="First time (UTC)."),
]
Before = Annotated[
    datetime | None,
    typer.Option(
        "--to",
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        help="Only entries before this time (UTC).",
    ),
]
_MAX_PAGE = 200
_COLUMNS = (
    "id", "at", "owner", "actor", "action", "target", "details", "request_id", "address"
)  # fmt: skip
_SHOWN = ("at", "actor", "action", "target", "details")


class ExportFormat(StrEnum):
    """The format in which audit entries are exported."""

    CSV = "csv"
    JSONL = "jsonl"


@app.command("list")
def list_entries(
    search: Search = None,
    after: After = None,
    before: Before = None,
    limit: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of entries, newest first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List audit entries; piped output has tab-separated time, actor, action, target, details."""

    async def read_matches(gateway: GatewayClient) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        async with aclosing(_read_entries(gateway, search, after, before)) as matches:
            async for entry in matches:
                entries.append(entry)
                if len(entries) == limit:
                    break
        return entries

    entries = run_with_gateway(read_matches)
    if as_json:
        print_json({"entries": entries})
        return
    print_records(
        _SHOWN,
        ([entry[name] for name in _SHOWN] for entry in entries),
        empty_text="no entries match",
    )


@app.command()
def export(
    search: Search = None,
    after: After = None,
    before: Before = None,
    form: Annotated[
        ExportFormat, typer.Option("--format", help="csv, or jsonl: a JSON object per line.")
    ] = ExportFormat.CSV,
    as_json: Annotated[bool, typer.Option("--json", help="The same as `--format jsonl`.")] = False,
) -> None:
    """Write the complete entries to standard output, newest first."""

    if as_json:
        form = ExportFormat.JSONL

    async def write_matches(gateway: GatewayClient) -> None:
        if form is ExportFormat.CSV:
            print_csv(_COLUMNS, ())
        async with aclosing(_read_entries(gateway, search, after, before)) as matches:
            async for entry in matches:
                await asyncio.to_thread(_write_entry, entry, form)

    run_with_gateway(write_matches)


def _write_entry(entry: dict[str, Any], export_format: ExportFormat) -> None:
    if export_format is ExportFormat.CSV:
        print_csv((), [[entry[name] for name in _COLUMNS]])
    else:
        print_json_line(entry)


async def _read_entries(
    gateway: GatewayClient, search: str | None, after: datetime | None, before: datetime | None
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the matching entries, newest first; the filtering happens here, not in the gateway.

    Args:
        search: a text that an entry must contain, in any case.
        after: the earliest time of the entries.
        before: the time before which the entries were written.
    """
    search_text = None if search is None else search.casefold()
    start, end = (None if time is None else time.replace(tzinfo=UTC) for time in (after, before))
    last_id = None
    while True:
        path = build_path("/accounts/audit", {"limit": _MAX_PAGE, "before": last_id})
        entries = (await gateway.call("GET", path))["entries"]
        for entry in entries:
            written_at = datetime.fromisoformat(entry["at"])
            if start is not None and written_at < start:
                return
            is_in_time = end is None or written_at < end
            entry_text = json.dumps(list(entry.values()), ensure_ascii=False).casefold()
            if is_in_time and (search_text is None or search_text in entry_text):
                yield entry
        if len(entries) < _MAX_PAGE:
            return
        last_id = entries[-1]["id"]
