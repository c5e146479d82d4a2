"""Tests that other programs can read our archives of files."""

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


def make_file(name: str, *, sha256: str = "0" * 64, size: int = 1) -> StoredArtifact:
    artifact = Artifact(
        id="art_" + "0" * 32, name=name, media_type="image/png", size=size, sha256=sha256
    )
    return StoredArtifact(artifact=artifact, job_id=None, created_at=MADE)


async def read_archive(archive: Archive, blobs: BlobStore) -> Sequence[bytes]:
    return [chunk async for chunk in archive.read_chunks(blobs)]


def check_with_unzip(path: Path) -> None:
    """Check an archive with Info-ZIP's `unzip`, if it is installed."""
    if (unzip_program := shutil.which("unzip")) is not None:
        subprocess.run([unzip_program, "-tq", path], check=True)


async def test_other_programs_read_an_archive_of_the_announced_size(tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    contents = {"a.png": b"x" * 700_000, "夜.png": b"night", "empty.txt": b""}
    files = [
        make_file(name, sha256=await blobs.put(content), size=len(content))
        for name, content in contents.items()
    ]
    archive = Archive(files)
    chunks = await read_archive(archive, blobs)
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


async def test_missing_content_of_a_file_aborts_the_archive(tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    with pytest.raises(FileNotFoundError):
        await read_archive(Archive([make_file("a.png")]), blobs)


def test_file_names_in_archives_are_safe_and_unique_on_every_system() -> None:
    file_names = choose_file_names(
        [
            make_file(name)
            for name in (
                "a.png", "A.PNG", "a (2).png", "a.png", "../../etc/passwd", "C:\\x\\y.png", "..", "",
                "con.txt", "a<b>:c?.png", "caf\u00e9.png", "cafe\u0301.png", "a\x00b.png", "/",
            )
        ]
    )  # fmt: skip
    assert file_names == [
        "a.png", "A (2).PNG", "a (2) (2).png", "a (3).png", "passwd", "y.png", "upload.png",
        "upload (2).png", "_con.txt", "a_b__c_.png", "caf\u00e9.png", "cafe\u0301 (2).png", "ab.png",
        "upload (3).png",
    ]  # fmt: skip


def test_bytes_and_files_of_archives_are_bounded() -> None:
    Archive([make_file("a.png", size=MAX_BYTES)])
    Archive([make_file("a.png")] * MAX_FILES)
    with pytest.raises(ArchiveTooLarge) as exc_info:
        Archive([make_file("a.png")] * (MAX_FILES + 1))
    assert exc_info.value.details == {"max_files": MAX_FILES}
    with pytest.raises(ArchiveTooLarge) as exc_info:
        Archive([make_file("a.png", size=MAX_BYTES), make_file("b.png")])
    assert exc_info.value.details == {"max_bytes": MAX_BYTES}


def test_the_largest_archive_needs_no_zip64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest archive needs no ZIP64 parts, because its size is announced without them."""
    file_names = ["n" * 200 + f"{number}.png" for number in range(MAX_FILES)]
    archive = Archive([make_file(name, size=MAX_BYTES // MAX_FILES) for name in file_names])
    assert archive.size < zipfile.ZIP64_LIMIT
    assert zipfile.ZIP_FILECOUNT_LIMIT >= MAX_FILES
