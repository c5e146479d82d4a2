"""Migrations on SQLite and on a real PostgreSQL: up, down, and with what was there before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from moyin.domain.identity import ALL_SCOPES
from moyin.domain.job import StepKind
from moyin.domain.limits import Limit
from moyin.errors import RateLimited
from moyin.store.jobs import JobStore, NewJob
from moyin.store.keys import KeyStore
from moyin.store.schema import metadata
from moyin.store.sql import Database, migrate, now
from moyin.store.tokens import digest
from tests.integration.accounts_fixtures import Postgres

OLD_KEY = "moyin_00112233_secret"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'moyin.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.new())


def test_up_and_down_keep_the_keys_of_before(empty_url: str) -> None:
    migrate(empty_url, "0001")
    asyncio.run(_with(empty_url, _insert_old_key))
    migrate(empty_url)
    assert asyncio.run(_with(empty_url, _differences)) == []
    identity = asyncio.run(_with(empty_url, lambda d: KeyStore(d).verify(OLD_KEY)))
    assert (identity.owner, identity.scopes, identity.user) == ("studio", ALL_SCOPES, None)
    migrate(empty_url, "0001", down=True)
    assert asyncio.run(_with(empty_url, _tables)) == {
        "alembic_version", "api_keys", "artifacts", "jobs", "usage",
    }  # fmt: skip
    migrate(empty_url)
    assert asyncio.run(_with(empty_url, lambda d: KeyStore(d).verify(OLD_KEY))) == identity
    migrate(empty_url, "base", down=True)
    assert asyncio.run(_with(empty_url, _tables)) == {"alembic_version"}


def test_prompts_of_before_with_a_client_are_known_as_such(empty_url: str) -> None:
    migrate(empty_url, "0006")
    asyncio.run(_with(empty_url, _insert_old_jobs))
    migrate(empty_url, "0007")
    found = asyncio.run(_with(empty_url, _prompts))
    assert {job_id: bool(prompt) for job_id, prompt in found.items()} == {"p": True, "j": False}


@pytest.fixture
async def jobs(database_url: str) -> AsyncIterator[JobStore]:
    database = Database(database_url)
    yield JobStore(database)
    await database.close()


async def test_of_jobs_that_come_at_once_as_many_are_opened_as_may_be(jobs: JobStore) -> None:
    limits = (Limit(subject="owner:studio", open_jobs=5), Limit(subject="key:k", open_jobs=9))

    async def submit(number: int) -> bool:
        new = NewJob(
            id=f"job-{number}", owner="studio", kind="chat", spec="0" * 64,
            heads=((StepKind.CHAT, "default"),), key_id="k", limits=limits,
            idempotency_key=f"key-{number}", fingerprint="f",
        )  # fmt: skip
        try:
            _, created = await jobs.create(new)
        except RateLimited as error:
            assert error.details == {"limit": "open_jobs", "of": "owner"}
            return False
        return created

    assert sorted(await asyncio.gather(*map(submit, range(20)))) == [False] * 15 + [True] * 5
    opened = [job.id for job in (await jobs.page("studio"))[0]]
    assert len(opened) == 5
    # A repeat of what was accepted is no new job, whatever the limit.
    number = int(opened[0].removeprefix("job-"))
    assert await submit(number) is False
    assert len((await jobs.page("studio"))[0]) == 5


async def test_jobs_are_found_by_their_labels(jobs: JobStore) -> None:
    labels = ({"client": "acme", "run no. 1": "a/b"}, {"client": "acme"}, {"client": "other"})
    for number, given in enumerate(labels):
        heads = ((StepKind.RENDER, "default"),)
        await jobs.create(
            NewJob(
                id=f"job-{number}", owner="ann", kind="render", spec="0" * 64, heads=heads,
                metadata=given,
            )
        )  # fmt: skip

    async def found(**asked: str) -> list[str]:
        return [job.id for job in (await jobs.page("ann", labels=asked))[0]]

    assert await found(client="acme") == ["job-1", "job-0"]
    assert await found(**{"client": "acme", "run no. 1": "a/b"}) == ["job-0"]
    assert await found(client="nobody") == await found(nothing="") == []


async def _with(url: str, work: Any) -> Any:
    database = Database(url)
    try:
        return await work(database)
    finally:
        await database.close()


async def _insert_old_key(database: Database) -> None:
    statement = sa.text(
        "INSERT INTO api_keys (id, owner, name, digest, created_at) "
        "VALUES ('00112233', 'studio', 'old', :digest, :at)"
    ).bindparams(sa.bindparam("at", now(), sa.DateTime(timezone=True)), digest=digest(OLD_KEY))
    async with database.writing() as connection:
        await connection.execute(statement)


async def _insert_old_jobs(database: Database) -> None:
    statement = sa.text(
        "INSERT INTO jobs (id, owner, kind, status, spec, heads, results, progress, attempts, "
        "priority, metadata, dispatched, created_at, channel) VALUES "
        "(:id, 'studio', 'render', 'queued', '0', '[]', '[]', '{}', 1, 3, '{}', :no, :at, :channel)"
    ).bindparams(
        sa.bindparam("at", now(), sa.DateTime(timezone=True)), sa.bindparam("no", False, sa.Boolean)
    )
    async with database.writing() as connection:
        for job_id, channel in (("p", "c"), ("j", None)):
            await connection.execute(statement, {"id": job_id, "channel": channel})


async def _prompts(database: Database) -> dict[str, Any]:
    async with database.reading() as connection:
        rows = (await connection.execute(sa.text("SELECT id, comfyui FROM jobs"))).all()
    return {job_id: prompt for job_id, prompt in rows}


async def _differences(database: Database) -> Any:
    async with database.reading() as connection:
        return await connection.run_sync(
            lambda c: compare_metadata(MigrationContext.configure(c), metadata)
        )


async def _tables(database: Database) -> set[str]:
    async with database.reading() as connection:
        names = await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
    return set(names)
