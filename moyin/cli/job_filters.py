"""Defines the filter options of ``moyin jobs``, and requests the jobs that match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from moyin.client.gateway import GatewayClient

_MAX_PAGE = 200
Status = Annotated[
    str | None,
    typer.Option(help="queued, running, succeeded, failed or cancelled; several with commas."),
]
Kind = Annotated[str | None, typer.Option(help="chat, render, http or pipeline.")]
Pool = Annotated[str | None, typer.Option(help="The render pool of one of the steps.")]
Template = Annotated[str | None, typer.Option(help="The template of one of the steps.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A member of the metadata; repeat for several."),
]
After = Annotated[
    str | None, typer.Option(help="First time of submission, such as 2026-01-31T12:00:00Z.")
]
Before = Annotated[str | None, typer.Option(help="Time before which jobs were submitted.")]
Search = Annotated[
    str | None, typer.Option(help="Words in the texts of the request and in the metadata.")
]


def build_filter(
    *,
    status: str | None,
    kind: str | None,
    pool: str | None,
    template: str | None,
    metadata: Sequence[str] | None,
    after: str | None,
    before: str | None,
    search: str | None,
) -> dict[str, Any]:
    """Return the object ``filter`` of a bulk request to the API; empty if all options are None."""
    members: dict[str, Any] = {
        "status": status,
        "kind": kind,
        "pool": pool,
        "template": template,
        "metadata": _parse_metadata(metadata or ()) or None,
        "created_after": after,
        "created_before": before,
        "search": search,
    }
    return {name: value for name, value in members.items() if value is not None}


async def read_jobs(
    gateway: GatewayClient, where: dict[str, Any], limit: int
) -> list[dict[str, Any]]:
    """Return up to ``limit`` jobs, newest first; an empty page is not taken for the last one.

    Args:
        where: the filter from `build_filter`.
    """
    labels = {f"metadata.{key}": value for key, value in where.get("metadata", {}).items()}
    query = {**{name: value for name, value in where.items() if name != "metadata"}, **labels}
    jobs: list[dict[str, Any]] = []
    cursor = None
    while True:
        page_size = min(limit - len(jobs), _MAX_PAGE)
        cursor_parameter: dict[str, str] = {} if cursor is None else {"cursor": cursor}
        path = f"/jobs?{urlencode({**query, **cursor_parameter, 'limit': page_size})}"
        page = await gateway.call("GET", path)
        jobs += page["jobs"]
        cursor = page["next_cursor"]
        if cursor is None or len(jobs) >= limit:
            return jobs


async def change_jobs(
    gateway: GatewayClient, path: str, where: dict[str, Any], *, dry_run: bool
) -> dict[str, Any]:
    """Cancel or delete all matching jobs, and return the total counts.

    A request covers a limited number of jobs, so it is repeated until all are done.

    Args:
        path: ``/jobs/cancel`` or ``/jobs/delete``.
        where: the filter from `build_filter`.
        dry_run: True to count the jobs and change nothing.
    """
    total_counts: dict[str, Any] = {"matched": 0, "done": 0, "skipped": 0, "dry_run": dry_run}
    cursor = None
    while True:
        cursor_member: dict[str, str] = {} if cursor is None else {"cursor": cursor}
        body = {"filter": where, "dry_run": dry_run, **cursor_member}
        counts = await gateway.call("POST", path, body)
        for name in ("matched", "done", "skipped"):
            total_counts[name] += counts[name]
        cursor = counts["next_cursor"]
        if cursor is None:
            return total_counts


def _parse_metadata(pairs: Sequence[str]) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(
                f"{pair!r} must be KEY=VALUE, such as project=aurora", param_hint="--metadata"
            )
        if key in metadata:
            raise typer.BadParameter(f"{key} must be given only once", param_hint="--metadata")
        metadata[key] = value
    return metadata
