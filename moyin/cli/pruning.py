"""``moyin prune``: jobs that ended long ago, straight in the database and the artifact store."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moyin.cli.screen import errors, out
from moyin.settings import Settings
from moyin.store.blobs import BlobStore
from moyin.store.pruning import Pruner, PruneResult
from moyin.store.sql import Database, now

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
    asyncio.run(_prune(days, dry_run=dry_run, sure=yes))


async def _prune(days: int, *, dry_run: bool, sure: bool) -> None:
    # Here: the SQL libraries take as long to import as most commands take altogether.

    settings, before = Settings(), now() - timedelta(days=days)
    database = Database(settings.sql_url)
    try:
        await database.ready()
        pruner = Pruner(database, BlobStore(settings.blobs_url))
        due = await pruner.count_prunable(before)
        told = f"{due:,} jobs ended {days} days ago or longer"
        if dry_run or not due:
            out.print(told)
            return
        if not sure:
            typer.confirm(f"{told}. Delete them with their files?", abort=True, err=True)
        gone = PruneResult()
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
            async for part in pruner.run(before):
                gone += part
                progress.advance(task, part.jobs)
        out.print(f"deleted {gone.jobs:,} jobs and {gone.files:,} files, {decimal(gone.size)}")
    finally:
        await database.close()
