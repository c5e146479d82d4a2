from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from moyin.errors import InvalidKey, InvalidRequest, NotFound
from moyin.store.keys import KeyStore
from moyin.store.sql import Database


async def test_a_key_authenticates_its_owner_until_revoked(database: Database) -> None:
    keys = KeyStore(database)
    key_id, api_key = await keys.create("studio", "first")
    assert (await keys.verify(api_key)).owner == "studio"
    await keys.revoke(key_id)
    with pytest.raises(InvalidKey):
        await keys.verify(api_key)
    [listed_key] = await keys.list_all()
    assert (listed_key.id, listed_key.revoked_at is not None) == (key_id, True)
    with pytest.raises(NotFound):
        await keys.revoke("nobody")


async def test_no_key_is_created_for_a_reserved_owner(database: Database) -> None:
    """No key is created for a reserved owner; a key of ``moyin:judge`` could spend its budget."""
    keys = KeyStore(database)
    with pytest.raises(InvalidRequest) as exc_info:
        await keys.create("moyin:judge", "")
    assert exc_info.value.field == "owner"
    assert await keys.list_all() == []
    await keys.create("moyin", "a studio of that name")


@pytest.mark.parametrize(
    "alter_key", [lambda t: t[:-1], lambda t: t + "x", lambda t: "", str.upper]
)
async def test_an_altered_key_is_refused(database: Database, alter_key: object) -> None:
    keys = KeyStore(database)
    _, api_key = await keys.create("studio", "first")
    with pytest.raises(InvalidKey):
        await keys.verify(alter_key(api_key))  # type: ignore[operator]


async def test_secret_of_a_key_is_not_in_the_database_file(
    database: Database, tmp_path: Path
) -> None:
    _, api_key = await KeyStore(database).create("studio", "first")
    secret = api_key.split("_", 2)[2]
    with sqlite3.connect(tmp_path / "moyin.db") as connection:
        sql_dump = "\n".join(connection.iterdump())
    connection.close()
    assert "studio" in sql_dump
    assert secret not in sql_dump


async def test_a_key_is_valid_even_if_its_use_cannot_be_recorded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyStore(database)
    _, api_key = await keys.create("studio", "first")

    def refuse_connection() -> None:
        raise ConnectionRefusedError(111, "Connect call failed")

    monkeypatch.setattr(database, "writing", refuse_connection)
    assert (await keys.verify(api_key)).owner == "studio"
