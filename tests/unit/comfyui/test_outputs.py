from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moyin.comfyui.folder import ProcessFolder
from moyin.comfyui.options import ComfyOptions
from moyin.comfyui.outputs import Outputs
from moyin.protocols.comfyui.wire import HistoryEntry
from moyin.store.blobs import BlobStore

FIRST, SECOND = f"{1:08d}-0000-0000-0000-000000000000", f"{2:08d}-0000-0000-0000-000000000000"


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path / 'blobs'}")


@pytest.fixture
def folder(tmp_path: Path) -> ProcessFolder:
    folder = ProcessFolder(
        ComfyOptions(
            home=tmp_path, python=tmp_path, folder=tmp_path / "run", models=tmp_path / "models"
        )
    )
    (folder.path / "output" / FIRST).mkdir(parents=True)
    return folder


def entry(filename: str, subfolder: str = "") -> HistoryEntry:
    images = [{"filename": filename, "subfolder": subfolder, "type": "output"}]
    return HistoryEntry.model_validate(
        {"outputs": {"1": {"images": images}}, "status": {"status_str": "success"}}
    )


async def content(outputs: Outputs, blobs: BlobStore, prompt_id: str, told: HistoryEntry) -> bytes:
    kept = await outputs.collect(prompt_id, told)
    assert kept is not None
    return await blobs.get(kept.done.files[0].sha256)


async def test_what_a_cached_prompt_names_is_remembered_when_its_file_is_gone(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    outputs, told = Outputs(folder, blobs), entry("a.png", FIRST)
    path = folder.path / "output" / FIRST / "a.png"
    path.write_bytes(b"first")
    assert await content(outputs, blobs, FIRST, told) == b"first"
    assert not path.exists()
    assert await content(outputs, blobs, SECOND, told) == b"first"
    assert await outputs.collect(SECOND, entry("b.png", FIRST)) is None


async def test_what_a_cached_prompt_names_may_have_been_pruned(
    folder: ProcessFolder, blobs: BlobStore, tmp_path: Path
) -> None:
    outputs, told = Outputs(folder, blobs), entry("a.png", FIRST)
    (folder.path / "output" / FIRST / "a.png").write_bytes(b"first")
    kept = await outputs.collect(FIRST, told)
    assert kept is not None
    sha256 = kept.done.files[0].sha256
    [path] = (tmp_path / "blobs").rglob(sha256)
    os.utime(path, (1, 1))
    assert await outputs.collect(SECOND, told) is not None
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert await blobs.delete(sha256, yesterday) is None, "it is the second's as well"
    os.utime(path, (1, 1))
    assert await blobs.delete(sha256, yesterday) == len(b"first")
    # It has to be made anew.
    assert await outputs.collect(SECOND, told) is None


async def test_a_name_that_is_used_again_is_another_file(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    """Nodes that choose their files' names themselves know nothing of prompts, nor whose they are."""
    outputs, told = Outputs(folder, blobs), entry("latest.png")
    path = folder.path / "output" / "latest.png"
    path.write_bytes(b"Ada's")
    assert await content(outputs, blobs, FIRST, told) == b"Ada's"
    path.write_bytes(b"Bob's picture")
    assert await content(outputs, blobs, SECOND, told) == b"Bob's picture"
