"""Runs Alembic's migrations on the database URL that `moyin.store.sql.migrate` sets."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

from moyin.errors import StackError
from moyin.store.schema import metadata
from moyin.store.sqlite import BUSY_SECONDS


def _run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        # SQLite can roll back DDL, too, but Alembic does not do so by default.
        transactional_ddl=True,
        # PostgreSQL builds some indexes outside of a transaction, which ends the one before them.
        transaction_per_migration=connection.dialect.name == "postgresql",
    )
    _require_known_revision()
    with context.begin_transaction():
        context.run_migrations()


def _require_known_revision() -> None:
    """Raise `StackError` if the schema revision of the database is unknown."""
    known_revisions = {script.revision for script in context.script.walk_revisions()}
    for revision in set(context.get_context().get_current_heads()) - known_revisions:
        raise StackError(
            f"the database has the schema revision {revision!r}, which this version of Moyin does not "
            "know, since a newer version or a development version created it; use that version or a "
            "new database"
        )


async def _migrate_postgresql(url: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run)
            await connection.commit()
    finally:
        await engine.dispose()


def _migrate_sqlite(url: sa.URL) -> None:
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"), connect_args={"timeout": BUSY_SECONDS}
    )

    @sa.event.listens_for(engine, "connect")
    def _tune(connection: Any, _record: Any) -> None:
        # Disables the driver's own transactions, which it commits before each DDL statement.
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            _run(connection)
    finally:
        engine.dispose()


_url = sa.make_url(context.config.attributes["url"])
if _url.get_backend_name() == "sqlite":
    _migrate_sqlite(_url)
else:
    asyncio.run(_migrate_postgresql(context.config.attributes["url"]))
