"""The tests that each implementation of `BlobStore` must pass."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moyin.store.blobs import BlobStore


class BlobContract:
    """Tests the store that the fixture ``blobs`` returns, which must be empty."""

    async def test_a_blob_is_named_by_its_content(self, blobs: BlobStore, tmp_path: Path) -> None:
        content = b"picture" * 100_000
        digest = await blobs.put(content)
        assert digest == hashlib.sha256(content).hexdigest()
        assert await blobs.put(content) == digest
        assert await blobs.get(digest) == content
        assert await blobs.exists(digest)
        source = tmp_path / "source"
        source.write_bytes(content)
        blob = await blobs.put_file(source)
        assert (blob.sha256, blob.size) == (digest, len(content))

    async def test_a_file_is_stored_unchanged(self, blobs: BlobStore, tmp_path: Path) -> None:
        source = tmp_path / "source.png"
        source.write_bytes(b"from a file")
        blob = await blobs.put_file(source)
        assert await blobs.get(blob.sha256) == b"from a file"
        with pytest.raises(FileNotFoundError):
            await blobs.put_file(tmp_path / "nothing")

    async def test_a_stream_is_stored_up_to_its_limit(
        self, blobs: BlobStore, tmp_path: Path
    ) -> None:
        source = tmp_path / "source.png"
        source.write_bytes(b"from a stream")
        for _ in range(2):
            with source.open("rb") as file:
                blob = await blobs.put_stream(file, 13)
            assert await blobs.get(blob.sha256) == b"from a stream"
            assert blob.size == 13
        with (
            source.open("rb") as file,
            pytest.raises(OSError, match="larger than the limit of 12 bytes"),
        ):
            await blobs.put_stream(file, 12)

    async def test_any_range_of_bytes_is_readable(self, blobs: BlobStore) -> None:
        content = bytes(range(256)) * 4096 * 9
        digest = await blobs.put(content)
        assert await _read(blobs, digest) == content
        for start, end in ((300_000, 5_000_001), (len(content) - 1, len(content)), (7, 7)):
            assert await _read(blobs, digest, start, end) == content[start:end]

    async def test_an_empty_blob_is_stored(self, blobs: BlobStore, tmp_path: Path) -> None:
        digest = await blobs.put(b"")
        assert await blobs.exists(digest)
        assert await blobs.get(digest) == b""
        assert await _read(blobs, digest) == b""
        await blobs.copy_to(digest, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b""

    async def test_a_copy_has_the_whole_content(self, blobs: BlobStore, tmp_path: Path) -> None:
        digest = await blobs.put(b"abc")
        await blobs.copy_to(digest, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"abc"

    @pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "A" * 64, ""])
    async def test_missing_blobs_are_not_found(
        self, blobs: BlobStore, tmp_path: Path, name: str
    ) -> None:
        assert not await blobs.exists(name)
        with pytest.raises(FileNotFoundError):
            await blobs.get(name)
        with pytest.raises(FileNotFoundError):
            await _read(blobs, name)
        with pytest.raises(FileNotFoundError):
            await blobs.copy_to(name, tmp_path / "copy")
        assert [p.name for p in tmp_path.iterdir() if p.name != "blobs"] == []

    async def test_concurrent_writes_of_one_content_make_one_blob(
        self, blobs: BlobStore, tmp_path: Path
    ) -> None:
        content = b"the same" * 100_000
        source = tmp_path / "source"
        source.write_bytes(content)
        puts = (blobs.put(content) for _ in range(20))
        file_puts = (blobs.put_file(source) for _ in range(20))
        digests, stored_blobs = await asyncio.gather(
            asyncio.gather(*puts), asyncio.gather(*file_puts)
        )
        [digest] = {*digests, *(blob.sha256 for blob in stored_blobs)}
        assert await blobs.get(digest) == content

    async def test_only_old_blobs_are_deleted(self, blobs: BlobStore) -> None:
        digest = await blobs.put(b"abc")
        assert await blobs.delete(digest, datetime.now(UTC) - timedelta(days=1)) is None
        assert await blobs.exists(digest)
        assert await blobs.delete(digest, datetime.now(UTC) + timedelta(minutes=1)) == 3
        assert not await blobs.exists(digest)
        assert await blobs.delete(digest, datetime.now(UTC) + timedelta(minutes=1)) is None
        assert await blobs.get(await blobs.put(b"abc")) == b"abc"

    async def test_only_existing_blobs_are_renewed(self, blobs: BlobStore) -> None:
        digest = await blobs.put(b"abc")
        assert await blobs.renew(digest)
        assert await blobs.get(digest) == b"abc"
        assert not await blobs.renew("0" * 64)
        assert not await blobs.renew("nonsense")


async def _read(blobs: BlobStore, digest: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in blobs.read_chunks(digest, start=start, end=end)])
