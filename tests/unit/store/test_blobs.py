from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from moyin.store.blobs import BlobStore


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path / 'blobs'}")


async def test_a_blob_is_named_by_its_content(blobs: BlobStore, tmp_path: Path) -> None:
    data = b"picture" * 100_000
    digest = await blobs.put(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert await blobs.put(data) == digest
    assert await blobs.get(digest) == data
    assert await blobs.exists(digest)
    source = tmp_path / "source"
    source.write_bytes(data)
    blob = await blobs.put_file(source)
    assert (blob.sha256, blob.size) == (digest, len(data))


async def test_ranges(blobs: BlobStore) -> None:
    data = bytes(range(256)) * 4096
    digest = await blobs.put(data)
    whole = b"".join([chunk async for chunk in blobs.read(digest)])
    part = b"".join([chunk async for chunk in blobs.read(digest, start=300_000, end=700_001)])
    assert whole == data
    assert part == data[300_000:700_001]


async def test_copy_appears_whole(blobs: BlobStore, tmp_path: Path) -> None:
    digest = await blobs.put(b"abc")
    await blobs.copy_to(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"abc"


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "A" * 64, ""])
async def test_what_is_not_there_is_not_found(blobs: BlobStore, tmp_path: Path, name: str) -> None:
    assert not await _exists(blobs, name)
    with pytest.raises(FileNotFoundError):
        await blobs.get(name)
    with pytest.raises(FileNotFoundError):
        await blobs.copy_to(name, tmp_path / "copy")
    assert [p.name for p in tmp_path.iterdir() if p.name != "blobs"] == []


async def _exists(blobs: BlobStore, name: str) -> bool:
    try:
        return await blobs.exists(name)
    except FileNotFoundError:
        return False


async def test_an_interrupted_write_leaves_nothing(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        await blobs.put(b"abc")
    monkeypatch.undo()
    assert [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()] == []
    assert await blobs.get(await blobs.put(b"abc")) == b"abc"
