from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from moyin.domain.stored_file import BATCH_INPUT, INTERNAL, StoredFile
from moyin.errors import FileStorageFull, StoredFileNotFound
from moyin.store.files import FileStore
from moyin.store.sql import Database, now


def make_file(number: int, *, owner: str = "ada", size: int = 3) -> StoredFile:
    return StoredFile(
        id=f"file-{number}",
        owner=owner,
        purpose=BATCH_INPUT,
        filename="input.jsonl",
        media_type="application/jsonl",
        size=size,
        sha256="a" * 64,
        created_at=now() - timedelta(minutes=10 - number),
    )


@pytest.fixture
def files(database: Database) -> FileStore:
    return FileStore(database, max_bytes=100)


async def test_a_file_is_visible_to_its_tenant_only(files: FileStore) -> None:
    stored_file = make_file(1)
    await files.add(stored_file)
    await files.add(replace(stored_file, filename="other"))
    assert await files.get("ada", "file-1") == stored_file
    with pytest.raises(StoredFileNotFound):
        await files.get("bob", "file-1")
    with pytest.raises(StoredFileNotFound):
        await files.delete("bob", "file-1")


async def test_a_deleted_file_is_hidden_but_a_batch_still_finds_it(files: FileStore) -> None:
    await files.add(make_file(1))
    await files.delete("ada", "file-1")
    assert await files.find("ada", "file-1") is None
    deleted_file = await files.find("ada", "file-1", with_deleted=True)
    assert deleted_file is not None and deleted_file.sha256 == "a" * 64
    with pytest.raises(StoredFileNotFound, match="there is no file 'file-1': GET"):
        await files.delete("ada", "file-1")


async def test_expired_files_are_not_listed(files: FileStore) -> None:
    await files.add(replace(make_file(1), expires_at=now() - timedelta(seconds=1)))
    await files.add(replace(make_file(2), expires_at=now() + timedelta(hours=1)))
    page, _ = await files.list_page("ada")
    assert [f.id for f in page] == ["file-2"]


async def test_pages_follow_each_other_in_either_order(files: FileStore) -> None:
    for number in range(1, 6):
        await files.add(make_file(number))
    await files.add(replace(make_file(6), purpose=INTERNAL))
    page, has_more = await files.list_page("ada", limit=2)
    assert ([f.id for f in page], has_more) == (["file-5", "file-4"], True)
    page, has_more = await files.list_page("ada", limit=3, after_id="file-4")
    assert ([f.id for f in page], has_more) == (["file-3", "file-2", "file-1"], False)
    page, _ = await files.list_page("ada", limit=2, after_id="file-2", newest_first=False)
    assert [f.id for f in page] == ["file-3", "file-4"]
    assert await files.list_page("ada", purpose="user_data") == ([], False)
    with pytest.raises(StoredFileNotFound, match="after"):
        await files.list_page("ada", after_id="file-9")


async def test_total_size_of_a_tenants_files_is_bounded(files: FileStore) -> None:
    await files.add(make_file(1, size=60))
    with pytest.raises(FileStorageFull) as exc_info:
        await files.add(make_file(2, size=41))
    assert exc_info.value.details == {"used_bytes": 60, "max_bytes": 100}
    await files.add(make_file(3, owner="bob", size=90))
    await files.delete("ada", "file-1")
    await files.add(make_file(2, size=41))
