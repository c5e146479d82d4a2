"""Implements ``moyin prune``, which deletes old jobs from the database and the artifact store."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moyin.cli.screen import errors, out
from moyin.settings import Settings

__all__ = ["prune"]


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
) -> None:
    """Delete old jobs, with the files that nothing else refers to.

    Works whether the stack runs or not. Set MOYIN_KEEP_JOBS_DAYS to prune every hour.
    """
    asyncio.run(_prune(days, dry_run=dry_run, is_confirmed=yes))


async def _prune(days: int, *, dry_run: bool, is_confirmed: bool) -> None:
    # Imported here, because the SQL libraries take as long to import as most commands to run.
    from moyin.store.blobs import BlobStore
    from moyin.store.pruning import Pruner, PruneResult
    from moyin.store.sql import Database, now

    settings, before = Settings(), now() - timedelta(days=days)
    database = Database(settings.sql_url)
    try:
        await database.ensure_schema()
        pruner = Pruner(database, BlobStore(settings.blobs_url))
        due = await pruner.count_prunable(before)
        summary = f"{due:,} jobs ended at least {days} days ago"
        if dry_run or not due:
            out.print(summary)
            return
        if not is_confirmed:
            typer.confirm(f"{summary}. Delete them with their files?", abort=True, err=True)
        deleted = PruneResult()
        with Progress(
            TextColumn("jobs deleted"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        ) as progress:
            task = progress.add_task("", total=due)
            async for batch in pruner.run(before):
                deleted += batch
                progress.advance(task, batch.jobs)
        size = decimal(deleted.size)
        out.print(f"deleted {deleted.jobs:,} jobs and {deleted.files:,} files, {size}")
    finally:
        await database.close()
