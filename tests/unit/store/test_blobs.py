from __future__ import annotations

from pathlib import Path

import pytest

from moyin.store.blobs import BlobStore
from tests.blob_contract import BlobContract


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path / 'blobs'}")


class TestFolder(BlobContract):
    pass


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


def test_what_can_not_be_promised_is_refused() -> None:
    with pytest.raises(ValueError, match="a folder or in S3"):
        BlobStore("memory://blobs")
