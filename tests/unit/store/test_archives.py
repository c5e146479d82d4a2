"""Tests archives of files against other programs that read them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from moyin.domain.artifact import Artifact, StoredArtifact
from moyin.errors import ArchiveTooLarge
from moyin.store.archives import MAX_BYTES, MAX_FILES, Archive, choose_file_names
from moyin.store.blobs import BlobStore

MADE = datetime(2026, 11, 29, 12, 30, 10, tzinfo=UTC)


def new_file(name: str, *, sha256: str = "0" * 64, size: int = 1) -> StoredArtifact:
    artifact = Artifact(
        id="art_" + "0" * 32, name=name, media_type="image/png", size=size, sha256=sha256
    )
    return StoredArtifact(artifact=artifact, job_id=None, created_at=MADE)


async def write(archive: Archive, blobs: BlobStore) -> Sequence[bytes]:
    return [chunk async for chunk in archive.read_chunks(blobs)]


def check_with_unzip(path: Path) -> None:
    """Check an archive with Info-ZIP's `unzip`, if it is installed."""
    if (unzip_program := shutil.which("unzip")) is not None:
        subprocess.run([unzip_program, "-tq", path], check=True)


async def test_an_archive_is_read_by_others_and_has_the_promised_size(tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    contents = {"a.png": b"x" * 700_000, "夜.png": b"night", "empty.txt": b""}
    files = [
        new_file(name, sha256=await blobs.put(content), size=len(content))
        for name, content in contents.items()
    ]
    archive = Archive(files)
    chunks = await write(archive, blobs)
    assert sum(map(len, chunks)) == archive.size
    # A large file is never held as a whole.
    assert max(map(len, chunks)) < 300_000
    path = tmp_path / "archive.zip"
    path.write_bytes(b"".join(chunks))
    with zipfile.ZipFile(path) as zip_file:
        assert zip_file.testzip() is None
        assert {name: zip_file.read(name) for name in zip_file.namelist()} == contents
        assert {entry.date_time for entry in zip_file.infolist()} == {MADE.timetuple()[:6]}
        assert {entry.compress_type for entry in zip_file.infolist()} == {zipfile.ZIP_STORED}
    await asyncio.to_thread(check_with_unzip, path)


async def test_a_file_whose_content_is_gone_ends_the_archive(tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    with pytest.raises(FileNotFoundError):
        await write(Archive([new_file("a.png")]), blobs)


def test_names_are_safe_and_different_on_every_system() -> None:
    names = choose_file_names(
        [
            new_file(name)
            for name in (
                "a.png", "A.PNG", "a (2).png", "a.png", "../../etc/passwd", "C:\\x\\y.png", "..", "",
                "con.txt", "a<b>:c?.png", "caf\u00e9.png", "cafe\u0301.png", "a\x00b.png", "/",
            )
        ]
    )  # fmt: skip
    assert names == [
        "a.png", "A (2).PNG", "a (2) (2).png", "a (3).png", "passwd", "y.png", "upload.png",
        "upload (2).png", "_con.txt", "a_b__c_.png", "caf\u00e9.png", "cafe\u0301 (2).png", "ab.png",
        "upload (3).png",
    ]  # fmt: skip


def test_archives_are_bounded() -> None:
    Archive([new_file("a.png", size=MAX_BYTES)])
    Archive([new_file("a.png")] * MAX_FILES)
    with pytest.raises(ArchiveTooLarge) as exc_info:
        Archive([new_file("a.png")] * (MAX_FILES + 1))
    assert exc_info.value.details == {"max_files": MAX_FILES}
    with pytest.raises(ArchiveTooLarge) as exc_info:
        Archive([new_file("a.png", size=MAX_BYTES), new_file("b.png")])
    assert exc_info.value.details == {"max_bytes": MAX_BYTES}


def test_the_largest_archive_needs_no_zip64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest possible archive needs no ZIP64 parts, because its announced size has none."""
    names = ["n" * 200 + f"{number}.png" for number in range(MAX_FILES)]
    archive = Archive([new_file(name, size=MAX_BYTES // MAX_FILES) for name in names])
    assert archive.size < zipfile.ZIP64_LIMIT
    assert zipfile.ZIP_FILECOUNT_LIMIT >= MAX_FILES
