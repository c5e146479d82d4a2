"""Implements ``moyin migrate``, which migrates the database, and ``moyin prune``, which deletes jobs.

The SQL libraries are imported only when they are used, because importing them takes as long as most
commands run.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moyin.cli.screen import AsLocalJson, errors, format_count, print_outcome
from moyin.settings import Settings

# Lets a revision such as `-1` be an argument, although it looks like an option.
MIGRATE_CONTEXT = {"ignore_unknown_options": True}


def migrate(
    revision: Annotated[
        str,
        typer.Argument(
            metavar="REVISION",
            help="Revision to migrate to; `head` is the newest, `-1` is one step `--down`.",
        ),
    ] = "head",
    down: Annotated[
        bool, typer.Option("--down", help="Migrate down to an older revision.")
    ] = False,
    as_json: AsLocalJson = False,
) -> None:
    """Migrate the shared database in MOYIN_DATABASE_URL; `moyin up` migrates the embedded one."""
    from moyin.store.sql import migrate as run_migrations
    from moyin.store.sql import read_revision

    # `-1` is a revision, not an option (see `MIGRATE_CONTEXT`), but other such words are mistakes.
    if revision.startswith("-") and not revision[1:].isdecimal():
        raise typer.BadParameter(
            f"No such option: {revision} (REVISION is `head`, the name of a revision, or `-1`)"
        )
    url = Settings().sql_url
    run_migrations(url, revision, down=down)
    reached_revision = asyncio.run(read_revision(url))
    state_text = (
        "has no tables" if reached_revision is None else f"is at revision {reached_revision}"
    )
    print_outcome({"revision": reached_revision}, f"the database {state_text}", as_json=as_json)


def prune(
    days: Annotated[
        int,
        typer.Option(
            min=1, max=36_500, help="Delete jobs that finished at least this many days ago."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the number of jobs and delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsLocalJson = False,
) -> None:
    """Delete old jobs and batches with their files, as MOYIN_KEEP_JOBS_DAYS does every hour."""
    asyncio.run(_prune(days, dry_run=dry_run, is_confirmed=yes, as_json=as_json))


async def _prune(days: int, *, dry_run: bool, is_confirmed: bool, as_json: bool) -> None:
    from moyin.store.blobs import BlobStore
    from moyin.store.pruning import Pruner, PruneResult
    from moyin.store.sql import Database, now

    settings, ended_before = Settings(), now() - timedelta(days=days)
    database = Database(settings.sql_url)
    try:
        await database.ensure_schema()
        pruner = Pruner(database, BlobStore(settings.blobs_url))
        job_count = await pruner.count_prunable(ended_before)
        batch_count = await pruner.count_prunable_batches(ended_before)
        summary = (
            f"{format_count(job_count, 'job')} and {format_count(batch_count, 'batch', 'batches')} ended at least "
            f"{format_count(days, 'day')} ago"
        )
        if dry_run:
            outcome = {"dry_run": True, "jobs": job_count, "batches": batch_count}
            print_outcome(outcome, summary, as_json=as_json)
            return
        if not is_confirmed and (job_count or batch_count):
            typer.confirm(f"{summary}. Delete them with their files?", abort=True, err=True)
        deleted_total = PruneResult()
        with Progress(
            TextColumn("jobs deleted"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        ) as progress:
            task = progress.add_task("", total=job_count)
            async for batch in pruner.run(ended_before):
                deleted_total += batch
                progress.advance(task, batch.jobs)
        print_outcome(
            {"dry_run": False, **asdict(deleted_total)},
            f"deleted {format_count(deleted_total.jobs, 'job')}, "
            f"{format_count(deleted_total.batches, 'batch', 'batches')} and "
            f"{format_count(deleted_total.files, 'file')}, {decimal(deleted_total.size)}",
            as_json=as_json,
        )
    finally:
        await database.close()
