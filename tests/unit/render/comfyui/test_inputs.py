"""Tests how input files are downloaded and linked into a prompt's folder."""

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


async def store_content(blobs: BlobStore, content: bytes) -> tuple[str, str]:
    sha256 = await blobs.put(content)
    return f"moyin/{sha256}.png", sha256


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_staged_files_are_hidden_until_they_are_placed(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    inputs = InputFiles(folder, 1000)
    (ada_name, ada_sha256), (bob_name, bob_sha256) = [
        await store_content(blobs, text) for text in (b"Ada", b"Bob")
    ]
    await inputs.fetch(blobs, {ada_name: ada_sha256})
    await inputs.fetch(blobs, {bob_name: bob_sha256})
    assert inputs.are_staged([ada_name, bob_name])
    assert list_names(folder.inputs) == set()
    inputs.place_files([ada_name])
    assert list_names(folder.inputs) == {Path(ada_name).name}
    inputs.place_files([bob_name])
    assert list_names(folder.inputs) == {Path(bob_name).name}, (
        "the files of an unfinished prompt are removed"
    )
    inputs.remove_placed_files()
    assert list_names(folder.inputs) == set()
    assert inputs.are_staged([ada_name, bob_name])
    with pytest.raises(FileNotFoundError):
        inputs.place_files([f"moyin/{'0' * 64}"])


async def test_files_are_copied_where_links_fail(
    folder: ProcessFolder, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse_link)
    inputs = InputFiles(folder, 1000)
    name, sha256 = await store_content(blobs, b"Ada")
    await inputs.fetch(blobs, {name: sha256})
    inputs.place_files([name])
    assert (folder.inputs / Path(name).name).read_bytes() == b"Ada"


async def test_least_recently_used_inputs_are_trimmed(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    inputs = InputFiles(folder, 25)
    staged_names = []
    for number in range(4):
        name, sha256 = await store_content(blobs, bytes([number]) * 10)
        staged_names.append(name)
        await inputs.fetch(blobs, {name: sha256})
        os.utime(folder.staging / Path(name).name, (number, number))
    partial_file = folder.staging / ".copying.1"
    partial_file.write_bytes(bytes(100))
    inputs.trim_staged({staged_names[0]})
    assert partial_file.exists()
    partial_file.unlink()
    remaining_names = {f"moyin/{name}" for name in list_names(folder.staging)}
    assert remaining_names == {staged_names[0], staged_names[3]}, "the oldest is needed"

    with pytest.raises(ValueError, match="must have the form moyin"):
        await inputs.fetch(blobs, {"../escape.png": "0" * 64})
    with pytest.raises(FileNotFoundError):
        await inputs.fetch(blobs, {f"moyin/{'0' * 64}": "0" * 64})
