"""Runs the migrations on the URL that `moyin.store.sql.migrate` passes: Alembic's entry point."""

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
        # Both databases can roll back DDL, but Alembic does not rely on that on SQLite by default.
        transactional_ddl=True,
    )
    _check_revision()
    with context.begin_transaction():
        context.run_migrations()


def _check_revision() -> None:
    """Refuse a database whose schema these migrations did not make."""
    known = {script.revision for script in context.script.walk_revisions()}
    for revision in set(context.get_context().get_current_heads()) - known:
        raise StackError(
            f"the database is at schema revision {revision!r}, which this version does not know: "
            "a development version before the first release or a newer version of Moyin made it; "
            "use a new database or the version that made this one"
        )


async def _migrate_server(url: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run)
            await connection.commit()
    finally:
        await engine.dispose()


def _migrate_file(url: sa.URL) -> None:
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"), connect_args={"timeout": BUSY_SECONDS}
    )

    @sa.event.listens_for(engine, "connect")
    def _tune(connection: Any, _record: Any) -> None:
        # Turns off the driver's own transactions, which commit before each DDL statement.
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
    _migrate_file(_url)
else:
    asyncio.run(_migrate_server(context.config.attributes["url"]))
