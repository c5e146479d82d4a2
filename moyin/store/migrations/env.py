"""Alembic's entry point: runs the migrations on the URL that `moyin.store.sql.migrate` hands over."""

from __future__ import annotations

import asyncio
from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

from moyin.store.schema import metadata
from moyin.store.sqlite import BUSY_SECONDS


def _run(connection: sa.Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        # All or nothing, which both databases can do; Alembic does not ask it of SQLite by itself.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _on_a_server(url: str) -> None:
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_run)
            await connection.commit()
    finally:
        await engine.dispose()


def _in_a_file(url: sa.URL) -> None:
    engine = sa.create_engine(
        url.set(drivername="sqlite+pysqlite"), connect_args={"timeout": BUSY_SECONDS}
    )

    @sa.event.listens_for(engine, "connect")
    def _tune(connection: Any, _record: Any) -> None:
        # Off: the driver's own transactions, which end before each change of the schema.
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
    _in_a_file(_url)
else:
    asyncio.run(_on_a_server(context.config.attributes["url"]))
