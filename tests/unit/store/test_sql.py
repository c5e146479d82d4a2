from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from moyin.store import sql
from moyin.store.schema import is_in_metadata, metadata
from moyin.store.sql import Database, get_newest_revision, migrate

_SCHEMA = "SELECT name, sql FROM sqlite_master ORDER BY name"


async def test_the_migrations_create_exactly_the_schema(database: Database) -> None:
    async with database.reading() as connection:
        differences = await connection.run_sync(
            lambda c: compare_metadata(
                MigrationContext.configure(c, opts={"include_object": is_in_metadata}), metadata
            )
        )
    assert differences == []


def test_concurrent_migrations_create_one_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    script = f"from moyin.store.sql import migrate; migrate({url!r})"
    racing_processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [process.wait(60) for process in racing_processes] == [0, 0, 0]


def test_a_failed_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as connection:
        # The migration creates this table last, so it fails after most of its work.
        connection.execute("CREATE TABLE refresh_tokens (id TEXT)")
        connection.commit()
    with pytest.raises(sa.exc.OperationalError, match="refresh_tokens already exists"):
        migrate(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [
            ("refresh_tokens",)
        ]


def test_the_newest_revision_is_the_head_of_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(sql.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == get_newest_revision()


def test_alembic_is_not_imported_if_the_schema_is_current(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    script = (
        "import asyncio, sys; from moyin.store.sql import Database; "
        f"asyncio.run(Database({url!r}).ensure_schema()); print('alembic' in sys.modules)"
    )
    processes = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [process.stdout.strip() for process in processes] == ["True", "False"]


def test_an_advisory_lock_excludes_processes_until_its_holder_ends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    script = (
        "import asyncio, sys\nfrom moyin.store.sql import Database\n"
        "async def hold():\n"
        f"    async with Database({url!r}).advisory_lock('x') as alone:\n"
        "        print(alone, flush=True)\n        sys.stdin.read()\n"
        "asyncio.run(hold())"
    )

    async def try_locks(*names: str) -> list[bool]:
        async with AsyncExitStack() as exit_stack:
            return [
                await exit_stack.enter_async_context(Database(url).advisory_lock(name))
                for name in names
            ]

    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert asyncio.run(try_locks("x", "y")) == [False, True]
        holder.kill()
    assert asyncio.run(try_locks("x", "x")) == [True, False]
    assert asyncio.run(try_locks("x")) == [True]


def test_renders_that_wait_are_queued_after_migration_0016(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    url = f"sqlite:///{path}"
    migrate(url, "0015")
    common_values: dict[str, Any] = {
        "owner": "ann", "spec": "s", "heads": "[]", "results": "[]", "progress": "{}",
        "attempts": 1, "priority": 3, "metadata": "{}", "dispatched": 1,
        "created_at": "2026-01-01 00:00:00.000000", "started_at": "2026-01-01 00:00:01.000000",
    }  # fmt: skip
    began_at = "2026-01-01 00:01:00.000000"
    rows: dict[str, dict[str, Any]] = {
        "waiting": {"kind": "render", "status": "running", "begun_at": None},
        "rendering": {"kind": "render", "status": "running", "begun_at": began_at},
        "ended": {"kind": "render", "status": "succeeded", "begun_at": None},
        "pipeline": {"kind": "pipeline", "status": "running", "begun_at": None},
    }
    with closing(sqlite3.connect(path)) as connection:
        for job_id, row in rows.items():
            row_values = {**common_values, **row, "id": job_id}
            placeholders = ", ".join("?" * len(row_values))
            connection.execute(
                f"INSERT INTO jobs ({', '.join(row_values)}) VALUES ({placeholders})",
                tuple(row_values.values()),
            )
        connection.commit()
    migrate(url, "0016")
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT id, status, started_at, queued_at FROM jobs ORDER BY id"
        assert connection.execute(query).fetchall() == [
            ("ended", "succeeded", common_values["started_at"], None),
            ("pipeline", "running", common_values["started_at"], None),
            ("rendering", "running", began_at, None),
            ("waiting", "queued", None, None),
        ]
