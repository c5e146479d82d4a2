"""Tests migrations and queries of jobs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from moyin.domain.identity import ALL_SCOPES
from moyin.domain.job import StepKind
from moyin.domain.limits import Limit
from moyin.errors import RateLimited, StackError
from moyin.store.job_filter import JobFilter
from moyin.store.jobs import JobStore, NewJob
from moyin.store.keys import KeyStore
from moyin.store.schema import is_in_metadata, metadata, usage
from moyin.store.sql import Database, get_newest_revision, migrate, now, read_revision
from moyin.store.tokens import compute_digest
from tests.integration.access.fixtures import Postgres

KEY = "moyin_00112233_secret"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'moyin.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.create_database())


def test_migrating_up_makes_the_schema_and_down_removes_it(empty_url: str) -> None:
    for _ in range(2):
        migrate(empty_url)
        assert asyncio.run(_run_with_database(empty_url, _find_differences)) == []
        asyncio.run(_run_with_database(empty_url, _insert_key))
        identity = asyncio.run(_run_with_database(empty_url, lambda d: KeyStore(d).verify(KEY)))
        assert (identity.owner, identity.scopes, identity.user) == ("studio", ALL_SCOPES, None)
        migrate(empty_url, "base", down=True)
        assert asyncio.run(_run_with_database(empty_url, _list_tables)) == {"alembic_version"}


def test_migration_goes_one_step_down_and_refuses_unknown_revisions(empty_url: str) -> None:
    migrate(empty_url)
    newest_revision = get_newest_revision()
    migrate(empty_url, "-1", down=True)
    assert asyncio.run(read_revision(empty_url)) == f"{int(newest_revision) - 1:04}"
    with pytest.raises(StackError, match="cannot migrate up to 'nothing': "):
        migrate(empty_url, "nothing")
    migrate(empty_url, "+1")
    assert asyncio.run(read_revision(empty_url)) == newest_revision


async def test_calls_are_recorded_while_postgresql_builds_indexes(postgres: Postgres) -> None:
    url = postgres.url(postgres.create_database())
    await asyncio.to_thread(migrate, url, "0012")
    writer_database = Database(url)

    async def record_call() -> None:
        """Add a row to the ledger while a migration runs; fails if the migration locks the table."""
        async with writer_database.writing() as transaction:
            await transaction.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
            await transaction.execute(_INSERT_CALL, {"id": uuid.uuid4().hex, "at": now()})

    loop = asyncio.get_running_loop()
    with _before_each_statement(
        lambda statement: (
            asyncio.run_coroutine_threadsafe(record_call(), loop).result(30)
            if "INDEX" in statement
            else None
        )
    ) as statements:
        await asyncio.to_thread(migrate, url)
    built_indexes = [
        text for text in statements if text.startswith("CREATE INDEX") and "usage" in text
    ]
    assert len(built_indexes) == 8 and await _run_with_database(url, _count_calls) >= len(
        built_indexes
    )
    assert await _run_with_database(url, _find_differences) == []
    await writer_database.close()


@pytest.mark.parametrize("statement_count", [4, 8, 17])
def test_an_interrupted_migration_of_postgresql_is_completed_later(
    postgres: Postgres, statement_count: int
) -> None:
    url = postgres.url(postgres.create_database())
    migrate(url, "0012")
    remaining_count = statement_count

    def interrupt(statement: str) -> None:
        nonlocal remaining_count
        remaining_count -= "usage" in statement or "pg_index" in statement
        if not remaining_count:
            raise InterruptedError

    with _before_each_statement(interrupt), pytest.raises(InterruptedError):
        migrate(url)
    # What PostgreSQL leaves if it is interrupted while it builds the first index.
    asyncio.run(_run_with_database(url, _mark_an_index_invalid))
    migrate(url)
    assert asyncio.run(_run_with_database(url, _find_differences)) == []
    assert asyncio.run(_run_with_database(url, _list_invalid_indexes)) == []


def test_a_database_of_a_development_version_is_refused(empty_url: str) -> None:
    migrate(empty_url)
    asyncio.run(_run_with_database(empty_url, _set_revision))
    for is_downgrade in (False, True):
        with pytest.raises(
            StackError, match=r"has the schema revision '0005'.*use that version or a new database"
        ):
            migrate(empty_url, "base" if is_downgrade else "head", down=is_downgrade)
    assert "jobs" in asyncio.run(_run_with_database(empty_url, _list_tables))


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[JobStore]:
    database = Database(database_url)
    yield JobStore(database)
    await database.close()


async def test_concurrent_jobs_are_opened_up_to_the_limit(jobs: JobStore) -> None:
    limits = (Limit(subject="owner:studio", open_jobs=5), Limit(subject="key:k", open_jobs=9))

    async def create_job(number: int) -> bool:
        new_job = NewJob(
            id=f"job-{number}", owner="studio", kind="chat", spec="0" * 64,
            heads=((StepKind.CHAT, "default"),), key_id="k", limits=limits,
            idempotency_key=f"key-{number}", fingerprint="f",
        )  # fmt: skip
        try:
            _, is_created = await jobs.create(new_job)
        except RateLimited as error:
            assert error.details == {"limit": "open_jobs", "of": "owner"}
            return False
        return is_created

    assert sorted(await asyncio.gather(*map(create_job, range(20)))) == [False] * 15 + [True] * 5
    opened_ids = [job.id for job in (await jobs.list_page("studio"))[0]]
    assert len(opened_ids) == 5
    # A repeat of what was accepted is no new job, whatever the limit.
    number = int(opened_ids[0].removeprefix("job-"))
    assert await create_job(number) is False
    assert len((await jobs.list_page("studio"))[0]) == 5


async def test_jobs_are_found_by_their_labels(jobs: JobStore) -> None:
    labels_by_number = (
        {"client": "acme", "run no. 1": "a/b"},
        {"client": "acme"},
        {"client": "other"},
    )
    for number, labels_of_job in enumerate(labels_by_number):
        step_kinds = ((StepKind.RENDER, "default"),)
        await jobs.create(
            NewJob(
                id=f"job-{number}", owner="ann", kind="render", spec="0" * 64, heads=step_kinds,
                metadata=labels_of_job,
            )
        )  # fmt: skip

    async def find_by_labels(**filters: str) -> list[str]:
        return [job.id for job in (await jobs.list_page("ann", JobFilter(metadata=filters)))[0]]

    assert await find_by_labels(client="acme") == ["job-1", "job-0"]
    assert await find_by_labels(**{"client": "acme", "run no. 1": "a/b"}) == ["job-0"]
    assert await find_by_labels(client="nobody") == await find_by_labels(nothing="") == []


_INSERT_CALL = sa.text(
    "INSERT INTO usage VALUES (:id, 'r', 'studio', 'claude', 'haiku', 1, 0, 1, 0, true, :at)"
).bindparams(sa.bindparam("at", type_=sa.DateTime(timezone=True)))


@contextmanager
def _before_each_statement(on_statement: Callable[[str], Any]) -> Iterator[list[str]]:
    """Call ``on_statement`` before each SQL statement of a migration; yield the statements so far.

    Inserts of the test itself are left out.
    """
    statements: list[str] = []

    def record_statement(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "INSERT INTO usage" not in statement and "lock_timeout" not in statement:
            on_statement(statement)
            statements.append(statement.strip())

    sa.event.listen(sa.Engine, "before_cursor_execute", record_statement)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", record_statement)


async def _count_calls(database: Database) -> int:
    return int(await database.fetch_value(sa.select(sa.func.count()).select_from(usage)))


async def _mark_an_index_invalid(database: Database) -> None:
    async with database.writing() as transaction:
        await transaction.execute(
            sa.text(
                "UPDATE pg_index SET indisvalid = false FROM pg_class "
                "WHERE oid = indexrelid AND relname = 'ix_usage_owner_created_at_id'"
            )
        )


async def _list_invalid_indexes(database: Database) -> Any:
    async with database.reading() as transaction:
        query = sa.text("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
        return (await transaction.execute(query)).all()


async def _run_with_database(url: str, operation: Any) -> Any:
    database = Database(url)
    try:
        return await operation(database)
    finally:
        await database.close()


async def _insert_key(database: Database) -> None:
    statement = sa.text(
        "INSERT INTO api_keys (id, owner, name, digest, created_at) "
        "VALUES ('00112233', 'studio', 'render', :digest, :at)"
    ).bindparams(sa.bindparam("at", now(), sa.DateTime(timezone=True)), digest=compute_digest(KEY))
    async with database.writing() as connection:
        await connection.execute(statement)


async def _set_revision(database: Database) -> None:
    async with database.writing() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '0005'"))


async def _find_differences(database: Database) -> Any:
    async with database.reading() as connection:
        return await connection.run_sync(
            lambda c: compare_metadata(
                MigrationContext.configure(c, opts={"include_object": is_in_metadata}), metadata
            )
        )


async def _list_tables(database: Database) -> set[str]:
    async with database.reading() as connection:
        names = await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
    return set(names)
