from __future__ import annotations

import asyncio
import json

import pytest

from moyin.domain.identity import Identity, UserdataScope, get_userdata_scope
from moyin.errors import FileExists, UserFileNotFound, UserStorageFull
from moyin.store.sql import Database
from moyin.store.userdata import UserdataStore

ANN = UserdataScope(owner="studio", user="ann")
OTHERS = (
    UserdataScope(owner="studio"),
    UserdataScope(owner="studio", user="bob"),
    UserdataScope(owner="rival", user="ann"),
)


@pytest.fixture
def files(database: Database) -> UserdataStore:
    return UserdataStore(database, max_file_bytes=100, max_bytes=250, max_files=3)


async def list_paths(files: UserdataStore, scope: UserdataScope = ANN) -> list[str]:
    return [file.path for file in await files.list(scope)]


def test_a_scope_belongs_to_a_user_or_the_tenant() -> None:
    assert get_userdata_scope(Identity(owner="studio", key_id="k", user="ann")) == ANN
    assert get_userdata_scope(Identity(owner="studio", key_id="k")) == UserdataScope(
        owner="studio", user=""
    )


async def test_a_written_file_can_be_read(files: UserdataStore) -> None:
    first_file = await files.write(ANN, "a.json", b"one")
    rewritten_file = await files.write(ANN, "a.json", b"three")
    assert (rewritten_file.size, rewritten_file.created) == (5, first_file.created)
    assert rewritten_file.modified >= first_file.modified
    assert await files.read(ANN, "a.json") == b"three"
    await files.write(ANN, "empty", b"")
    assert await files.read(ANN, "empty") == b""
    await files.delete(ANN, "a.json")
    for operation in (files.read(ANN, "a.json"), files.delete(ANN, "a.json")):
        with pytest.raises(UserFileNotFound):
            await operation


async def test_files_of_other_scopes_cannot_be_read_or_changed(files: UserdataStore) -> None:
    await files.write(ANN, "a.json", b"hers")
    for scope in OTHERS:
        assert await list_paths(files, scope) == []
        for operation in (
            files.read(scope, "a.json"), files.delete(scope, "a.json"),
            files.move(scope, "a.json", "b.json"),
        ):  # fmt: skip
            with pytest.raises(UserFileNotFound):
                await operation
        await files.write(scope, "a.json", b"theirs", overwrite=False)
        await files.update(scope, "a.json", lambda before: (before or b"") + b"!")
        assert await files.read(scope, "a.json") == b"theirs!"
    assert await files.read(ANN, "a.json") == b"hers"


async def test_a_file_is_overwritten_only_if_allowed(files: UserdataStore) -> None:
    await files.write(ANN, "a", b"1", overwrite=False)
    await files.write(ANN, "b", b"2")
    with pytest.raises(FileExists):
        await files.write(ANN, "a", b"x", overwrite=False)
    with pytest.raises(FileExists):
        await files.move(ANN, "a", "b", overwrite=False)
    assert await files.read(ANN, "b") == b"2"
    moved_file = await files.move(ANN, "a", "b")
    assert (moved_file.path, await files.read(ANN, "b"), await list_paths(files)) == (
        "b",
        b"1",
        ["b"],
    )
    assert (await files.move(ANN, "b", "b")).path == "b"
    with pytest.raises(UserFileNotFound):
        await files.move(ANN, "a", "c")


async def test_a_scope_has_a_maximum_size(files: UserdataStore) -> None:
    with pytest.raises(UserStorageFull):
        await files.write(ANN, "a", b"x" * 101)
    await files.write(ANN, "a", b"x" * 100)
    await files.write(ANN, "b", b"x" * 100)
    with pytest.raises(UserStorageFull):
        await files.write(ANN, "c", b"x" * 51)
    with pytest.raises(UserStorageFull):
        await files.update(ANN, "c", lambda _: b"x" * 51)
    await files.write(ANN, "b", b"x" * 50)
    await files.write(ANN, "c", b"x" * 50)
    with pytest.raises(UserStorageFull):
        await files.write(ANN, "d", b"")
    await files.write(OTHERS[0], "a", b"x" * 100)


async def test_concurrent_updates_are_all_kept(database: Database) -> None:
    files = UserdataStore(database)

    async def store_number(number: int) -> None:
        def add_number(content: bytes | None) -> bytes:
            return json.dumps({**json.loads(content or b"{}"), str(number): number}).encode()

        await files.update(ANN, "settings", add_number)

    await asyncio.gather(*map(store_number, range(20)))
    assert len(json.loads(await files.read(ANN, "settings"))) == 20
    outcomes = await asyncio.gather(
        *(files.write(ANN, "new", b"%d" % n, overwrite=False) for n in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, FileExists) for outcome in outcomes) == 4
