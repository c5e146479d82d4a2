from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from moyin.store.schema import metadata
from moyin.store.sql import Database


async def test_migrations_make_exactly_the_schema(database: Database) -> None:
    async with database.reading() as connection:
        differences = await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c), metadata)
        )
    assert differences == []


def test_processes_that_start_together_find_one_schema(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    code = f"from moyin.store.sql import migrate; migrate({url!r})"
    racing = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in racing] == [0, 0, 0]
