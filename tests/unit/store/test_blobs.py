from __future__ import annotations

import hashlib
import io
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moyin.store.blobs import BlobStore
from tests.blob_contract import BlobContract


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path / 'blobs'}")


class TestFolderBlobs(BlobContract):
    pass


async def test_an_interrupted_write_leaves_no_file(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_with_full_disk(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail_with_full_disk)
    with pytest.raises(OSError, match="No space"):
        await blobs.put(b"abc")
    monkeypatch.undo()
    assert [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()] == []
    assert await blobs.get(await blobs.put(b"abc")) == b"abc"


def test_other_file_systems_are_refused() -> None:
    with pytest.raises(ValueError, match="must begin with file:"):
        BlobStore("memory://blobs")


@pytest.mark.parametrize("from_file", [False, True])
async def test_storing_a_blob_again_renews_it(
    blobs: BlobStore, tmp_path: Path, from_file: bool
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    digest = await blobs.put(b"abc")
    [path] = (tmp_path / "blobs").rglob(digest)
    os.utime(path, (1, 1))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    await (blobs.put_file(source) if from_file else blobs.put(b"abc"))
    assert await blobs.delete(digest, yesterday) is None
    os.utime(path, (1, 1))
    assert await blobs.delete(digest, yesterday) == 3


async def test_a_blob_stored_again_during_its_deletion_stays(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await blobs.put(b"abc")
    [path] = (tmp_path / "blobs").rglob(digest)
    os.utime(path, (1, 1))
    original_rename = Path.rename

    def rename_after_renewal(self: Path, target: Path) -> Path:
        # A writer stores the blob between the check of its age and the rename.
        os.utime(path)
        monkeypatch.undo()
        return original_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_after_renewal)
    assert await blobs.delete(digest, datetime.now(UTC) - timedelta(days=1)) is None
    assert await blobs.get(digest) == b"abc"


class ChangingFile(io.BytesIO):
    """A file with different content at each read, like a file that is being written."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            self.seek(0)
            self.write(b"evil")
            self.seek(0)
        return data


async def test_a_stream_is_read_once(blobs: BlobStore, tmp_path: Path) -> None:
    """A stream is read once, and the stored bytes match the digest.

    A second read could get other bytes, if the file is being written.
    """
    blob = await blobs.put_stream(ChangingFile(b"good"), 100)
    assert blob.sha256 == hashlib.sha256(b"good").hexdigest()
    assert await blobs.get(blob.sha256) == b"good"
    files = [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()]
    assert [p.name for p in files] == [blob.sha256]
