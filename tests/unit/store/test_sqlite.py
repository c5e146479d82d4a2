from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from moyin.store.sql import Database, migrate
from moyin.store.sqlite import dump_json

WORDS = sa.Table("words", sa.MetaData(), sa.Column("word", sa.Text, primary_key=True))


@pytest.fixture
async def word_database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'words.db'}")
    await database.write(WORDS.metadata.create_all)
    yield database
    await database.close()


async def insert_words(database: Database, *words: str) -> None:
    rows = [{"word": word} for word in words]
    await database.write(lambda c: c.execute(WORDS.insert(), rows))


async def read_words(database: Database) -> list[str]:
    query = sa.select(WORDS.c.word).order_by(WORDS.c.word)
    return await database.read(lambda c: list(c.execute(query).scalars()))


async def test_a_failed_transaction_changes_nothing(word_database: Database) -> None:
    await insert_words(word_database, "a")

    def insert_and_fail(connection: sa.Connection) -> None:
        connection.execute(WORDS.insert(), {"word": "b"})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await word_database.write(insert_and_fail)
    with pytest.raises(ValueError, match="no"):
        async with word_database.writing() as connection:
            await connection.run_sync(insert_and_fail)
    assert await read_words(word_database) == ["a"]


async def test_rows_can_be_read_after_the_transaction(word_database: Database) -> None:
    await insert_words(word_database, "a", "b", "c")
    async with word_database.reading() as connection:
        result = await connection.execute(sa.select(WORDS).order_by(WORDS.c.word))
    assert result.fetchone() == ("a",)
    assert result.fetchmany(1) == [("b",)]
    assert [row.word for row in result] == ["c"]


async def test_more_transactions_than_threads_wait_for_each_other(word_database: Database) -> None:
    async def insert_slowly(number: int) -> None:
        async with word_database.writing() as connection:
            await connection.execute(WORDS.insert(), {"word": f"{number:02}"})
            await asyncio.sleep(0.001)
            assert (await connection.execute(sa.select(sa.func.count()).select_from(WORDS))).all()

    async def read_twice() -> None:
        async with word_database.reading() as connection:
            rows_before = (await connection.execute(sa.select(WORDS))).all()
            await asyncio.sleep(0.01)
            assert (await connection.execute(sa.select(WORDS))).all() == rows_before

    writers = [insert_slowly(number) for number in range(20)]
    readers = [read_twice() for _ in range(30)]
    quick_writes = [insert_words(word_database, f"q{number:02}") for number in range(20)]
    await asyncio.wait_for(asyncio.gather(*writers, *readers, *quick_writes), 60)
    assert len(await read_words(word_database)) == 40


async def test_a_cancelled_transaction_is_rolled_back_and_releases_the_lock(
    word_database: Database,
) -> None:
    has_inserted = asyncio.Event()

    async def insert_and_hang() -> None:
        async with word_database.writing() as connection:
            await connection.execute(WORDS.insert(), {"word": "lost"})
            has_inserted.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(insert_and_hang())
    await has_inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await insert_words(word_database, "next")
    assert await read_words(word_database) == ["next"]


async def test_a_cancelled_call_is_committed_or_rolled_back(
    word_database: Database,
) -> None:
    tasks = [asyncio.create_task(insert_words(word_database, str(number))) for number in range(8)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await insert_words(word_database, "next")
    assert "next" in await read_words(word_database)


async def test_a_new_file_can_be_opened_concurrently(tmp_path: Path) -> None:
    """Every process gets WAL mode, although switching to it needs exclusive access to the file."""
    url = f"sqlite:///{tmp_path / 'moyin.db'}"
    databases = [Database(url) for _ in range(8)]
    await asyncio.gather(*(database.ensure_schema() for database in databases))
    journal_modes = await asyncio.gather(
        *(database.read(read_journal_mode) for database in databases * 3)
    )
    assert set(journal_modes) == {"wal"}
    for database in databases:
        await database.close()


async def test_a_restored_file_is_set_to_wal_mode(tmp_path: Path) -> None:
    url, path = f"sqlite:///{tmp_path / 'moyin.db'}", tmp_path / "moyin.db"
    await asyncio.to_thread(migrate, url)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    database = Database(url)
    await database.ensure_schema()
    assert await database.read(read_journal_mode) == "wal"
    await database.close()


def read_journal_mode(connection: sa.Connection) -> str:
    return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"kind": "code", "difficulty": -0.2412, "list": [1, 2.5, True, None, "ü", "違", "\u0000"]},
        {1: "a number becomes a text"},
        10**30,
        "half of a pair: \ud800",
        -math.inf,
    ],
)
def test_dumped_json_is_equivalent_to_that_of_json_dumps(value: Any) -> None:
    assert json.loads(dump_json(value)) == json.loads(json.dumps(value))


def test_values_that_are_not_json_are_refused() -> None:
    with pytest.raises(TypeError):
        dump_json(object())
