"""Input files on their way to a prompt."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.inputs import InputFiles
from moyin.render.comfyui.options import ComfyOptions
from moyin.store.blobs import BlobStore


@pytest.fixture
def folder(tmp_path: Path) -> ProcessFolder:
    options = ComfyOptions(
        home=tmp_path, python=tmp_path, folder=tmp_path / "run", models=tmp_path / "models"
    )
    folder = ProcessFolder(options)
    folder.prepare()
    return folder


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path / 'blobs'}")


async def stored(blobs: BlobStore, content: bytes) -> tuple[str, str]:
    sha256 = await blobs.put(content)
    return f"moyin/{sha256}.png", sha256


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


async def test_what_is_fetched_ahead_waits_where_the_process_does_not_see_it(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    inputs = InputFiles(folder, 1000)
    (ada, ada_sha256), (bob, bob_sha256) = [await stored(blobs, text) for text in (b"Ada", b"Bob")]
    await inputs.fetch(blobs, {ada: ada_sha256})
    await inputs.fetch(blobs, {bob: bob_sha256})
    assert inputs.has([ada, bob])
    assert names(folder.inputs) == set()
    inputs.place([ada])
    assert names(folder.inputs) == {Path(ada).name}
    inputs.place([bob])
    assert names(folder.inputs) == {Path(bob).name}, "a prompt that did not end leaves nothing"
    inputs.take_away()
    assert names(folder.inputs) == set()
    assert inputs.has([ada, bob])
    with pytest.raises(FileNotFoundError):
        inputs.place([f"moyin/{'0' * 64}"])


async def test_a_disk_without_links_gets_copies(
    folder: ProcessFolder, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    inputs = InputFiles(folder, 1000)
    name, sha256 = await stored(blobs, b"Ada")
    await inputs.fetch(blobs, {name: sha256})
    inputs.place([name])
    assert (folder.inputs / Path(name).name).read_bytes() == b"Ada"


async def test_inputs_come_from_the_store_and_the_unused_ones_go(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    inputs = InputFiles(folder, 25)
    kept = []
    for number in range(4):
        name, sha256 = await stored(blobs, bytes([number]) * 10)
        kept.append(name)
        await inputs.fetch(blobs, {name: sha256})
        os.utime(folder.staging / Path(name).name, (number, number))
    under_way = folder.staging / ".copying.1"
    under_way.write_bytes(bytes(100))
    inputs.trim({kept[0]})
    assert under_way.exists()
    under_way.unlink()
    left = {f"moyin/{name}" for name in names(folder.staging)}
    assert left == {kept[0], kept[3]}, "the oldest is needed"

    with pytest.raises(ValueError, match="not the name"):
        await inputs.fetch(blobs, {"../escape.png": "0" * 64})
    with pytest.raises(FileNotFoundError):
        await inputs.fetch(blobs, {f"moyin/{'0' * 64}": "0" * 64})
