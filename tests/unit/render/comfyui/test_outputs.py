from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moyin.errors import RenderFailed
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.outputs import OutputStore
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.wire import HistoryEntry
from moyin.store.blobs import BlobStore

FIRST_PROMPT, SECOND_PROMPT = (
    f"{1:08d}-0000-0000-0000-000000000000",
    f"{2:08d}-0000-0000-0000-000000000000",
)


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
    folder.prepare()
    return folder


def write_file_and_end_prompt(
    folder: ProcessFolder, prompt_id: str, name: str, content: bytes
) -> None:
    """Write an output file as a node of the prompt does, and end the prompt."""
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(prompt_id)
    path = folder.base / "output" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    written_files.end_prompt(prompt_id)


def new_outputs(folder: ProcessFolder, blobs: BlobStore, limit_bytes: int = 1000) -> OutputStore:
    return OutputStore(WrittenFiles(folder), blobs, limit_bytes)


def make_entry(filename: str, subfolder: str = "") -> HistoryEntry:
    images = [{"filename": filename, "subfolder": subfolder, "type": "output"}]
    return HistoryEntry.model_validate(
        {
            "outputs": {"1": {"images": images}},
            "status": {"messages": [["execution_success", {}]]},
        }
    )


async def collect_content(
    outputs: OutputStore, blobs: BlobStore, prompt_id: str, entry: HistoryEntry
) -> bytes:
    result = await outputs.collect(prompt_id, entry)
    assert result is not None
    return await blobs.get(result.done.files[0].sha256)


async def test_cached_file_is_remembered_after_it_is_gone(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    outputs, history_entry = new_outputs(folder, blobs), make_entry("a.png", FIRST_PROMPT)
    write_file_and_end_prompt(folder, FIRST_PROMPT, f"{FIRST_PROMPT}/a.png", b"first")
    assert await collect_content(outputs, blobs, FIRST_PROMPT, history_entry) == b"first"
    assert not list(folder.done.iterdir())
    assert await collect_content(outputs, blobs, SECOND_PROMPT, history_entry) == b"first"
    assert await outputs.collect(SECOND_PROMPT, make_entry("b.png", FIRST_PROMPT)) is None


async def test_pruned_cached_file_is_not_returned(
    folder: ProcessFolder, blobs: BlobStore, tmp_path: Path
) -> None:
    outputs, history_entry = new_outputs(folder, blobs), make_entry("a.png", FIRST_PROMPT)
    write_file_and_end_prompt(folder, FIRST_PROMPT, f"{FIRST_PROMPT}/a.png", b"first")
    result = await outputs.collect(FIRST_PROMPT, history_entry)
    assert result is not None
    sha256 = result.done.files[0].sha256
    [path] = (tmp_path / "blobs").rglob(sha256)
    os.utime(path, (1, 1))
    assert await outputs.collect(SECOND_PROMPT, history_entry) is not None
    yesterday = datetime.now(UTC) - timedelta(days=1)
    assert await blobs.delete(sha256, yesterday) is None, "the second prompt refers to it, too"
    os.utime(path, (1, 1))
    assert await blobs.delete(sha256, yesterday) == len(b"first")
    # The prompt must be rendered again.
    assert await outputs.collect(SECOND_PROMPT, history_entry) is None


async def test_reused_file_name_is_another_file(folder: ProcessFolder, blobs: BlobStore) -> None:
    """A prompt gets its own file, even if another tenant's prompt used the file name before."""
    outputs, history_entry = new_outputs(folder, blobs), make_entry("latest.png")
    write_file_and_end_prompt(folder, FIRST_PROMPT, "latest.png", b"Ada's")
    assert await collect_content(outputs, blobs, FIRST_PROMPT, history_entry) == b"Ada's"
    write_file_and_end_prompt(folder, SECOND_PROMPT, "latest.png", b"Bob's picture")
    assert await collect_content(outputs, blobs, SECOND_PROMPT, history_entry) == b"Bob's picture"


async def test_files_larger_than_the_limit_fail_their_render(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    outputs = new_outputs(folder, blobs, limit_bytes=10)
    write_file_and_end_prompt(folder, FIRST_PROMPT, "a.png", bytes(6))
    assert await outputs.collect(FIRST_PROMPT, make_entry("a.png")) is not None
    (folder.base / "output" / "b.png").write_bytes(bytes(6))
    written_files = WrittenFiles(folder)
    written_files.end_prompt(SECOND_PROMPT)
    (folder.done / SECOND_PROMPT / "output" / "c.png").write_bytes(bytes(6))
    two_node_entry = make_entry("b.png")
    two_node_entry.outputs["2"] = make_entry("c.png").outputs["1"]
    with pytest.raises(RenderFailed, match="exceed the limit of 10 bytes"):
        await outputs.collect(SECOND_PROMPT, two_node_entry)
    assert not list(folder.done.iterdir())


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.MP4", "video/mp4"), ("a.webm", "video/webm"), ("a.wav", "audio/wav"),
        ("a.opus", "audio/ogg"), ("a.mp3", "audio/mpeg"), ("a.flac", "audio/flac"),
        ("a.glb", "model/gltf-binary"), ("a.txt", "text/plain"), ("a.json", "application/json"),
        ("a.latent", "application/octet-stream"), ("a", "application/octet-stream"),
    ],
)  # fmt: skip
async def test_outputs_of_all_kinds_have_their_media_types(
    folder: ProcessFolder, blobs: BlobStore, name: str, media_type: str
) -> None:
    outputs = new_outputs(folder, blobs)
    write_file_and_end_prompt(folder, FIRST_PROMPT, name, b"content")
    result = await outputs.collect(FIRST_PROMPT, make_entry(name))
    assert result is not None
    assert [file.media_type for file in result.done.files] == [media_type]
