"""Implements ``moyin migrate``. Operators migrate a shared database; replicas never do."""

from __future__ import annotations

from typing import Annotated

import typer

from moyin.cli.screen import out
from moyin.settings import Settings

__all__ = ["migrate"]


def migrate(
    revision: Annotated[
        str, typer.Argument(help="Revision to migrate to; `head` is the newest.")
    ] = "head",
    down: Annotated[
        bool, typer.Option("--down", help="Migrate down to an older revision.")
    ] = False,
) -> None:
    """Migrate the database in MOYIN_DATABASE_URL. `moyin up` migrates its own database."""
    # Imported here, because the SQL libraries take as long to import as most commands to run.
    from moyin.store.sql import migrate as run_migrations

    run_migrations(Settings().sql_url, revision, down=down)
    out.print(f"the database is at {revision}")
