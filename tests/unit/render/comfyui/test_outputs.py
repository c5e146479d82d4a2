from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import pytest

from moyin.errors import RenderFailed
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.outputs import OutputStore
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.wire import HistoryEntry, HistoryStatus
from moyin.store.blobs import Blob, BlobStore

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
    outputs: OutputStore,
    folder: ProcessFolder,
    prompt_id: str,
    name: str,
    content: bytes,
    tenant: str = "ada",
) -> None:
    """Write an output file as a node of the prompt does, and end the prompt."""
    written_files = outputs._written
    written_files.begin_prompt(prompt_id, tenant)
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
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, f"{FIRST_PROMPT}/a.png", b"first")
    assert await collect_content(outputs, blobs, FIRST_PROMPT, history_entry) == b"first"
    assert not list(folder.done.iterdir())
    outputs._written.begin_prompt(SECOND_PROMPT, "ada")
    assert await collect_content(outputs, blobs, SECOND_PROMPT, history_entry) == b"first"
    assert await outputs.collect(SECOND_PROMPT, make_entry("b.png", FIRST_PROMPT)) is None


@pytest.mark.parametrize("subfolder", [FIRST_PROMPT, ""])
async def test_name_of_another_tenants_file_leads_to_no_file(
    folder: ProcessFolder, blobs: BlobStore, subfolder: str
) -> None:
    """A node may report any name, also that of a file which another tenant's prompt has written."""
    outputs, history_entry = new_outputs(folder, blobs), make_entry("a.png", subfolder)
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, "a.png", b"Ada's", "ada")
    outputs._written.begin_prompt(SECOND_PROMPT, "bob")
    images = history_entry.outputs["1"]
    assert await outputs.collect_node_output(SECOND_PROMPT, images) == []
    assert await collect_content(outputs, blobs, FIRST_PROMPT, history_entry) == b"Ada's"
    assert await outputs.collect_node_output(SECOND_PROMPT, images) == []
    assert await outputs.collect(SECOND_PROMPT, history_entry) is None


async def test_pruned_cached_file_is_not_returned(
    folder: ProcessFolder, blobs: BlobStore, tmp_path: Path
) -> None:
    outputs, history_entry = new_outputs(folder, blobs), make_entry("a.png", FIRST_PROMPT)
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, f"{FIRST_PROMPT}/a.png", b"first")
    result = await outputs.collect(FIRST_PROMPT, history_entry)
    assert result is not None
    sha256 = result.done.files[0].sha256
    [path] = (tmp_path / "blobs").rglob(sha256)
    os.utime(path, (1, 1))
    outputs._written.begin_prompt(SECOND_PROMPT, "ada")
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
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, "latest.png", b"Ada's")
    assert await collect_content(outputs, blobs, FIRST_PROMPT, history_entry) == b"Ada's"
    write_file_and_end_prompt(outputs, folder, SECOND_PROMPT, "latest.png", b"Bob's picture")
    assert await collect_content(outputs, blobs, SECOND_PROMPT, history_entry) == b"Bob's picture"


async def test_files_larger_than_the_limit_fail_their_render(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    outputs = new_outputs(folder, blobs, limit_bytes=10)
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, "a.png", bytes(6))
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
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, name, b"content")
    result = await outputs.collect(FIRST_PROMPT, make_entry(name))
    assert result is not None
    assert [file.media_type for file in result.done.files] == [media_type]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("line\nfeed.png", "control characters"),
        ("escape\x1b[2J.png", "control characters"),
        ("c1\x9b.png", "control characters"),
        ("a\0.png", "control characters"),
        ("gnp.\u202eexe", "marks of direction"),
        ("\ud83d.png", "invalid Unicode"),
        ("x" * 256, "more than 255 bytes"),
        ("ü" * 128, "more than 255 bytes"),
        ("x" * 256 + "/a.png", "more than 255 bytes"),
        ("/".join(["folder"] * 200), "more than 1,024 bytes"),
        ("/".join(["f"] * 40), "more than 32 folders"),
        ("../a.png", "no place inside its folder"),
        ("/etc/passwd", "no place inside its folder"),
        ("", "no place inside its folder"),
    ],
)
async def test_name_that_harms_others_fails_its_render(
    folder: ProcessFolder, blobs: BlobStore, name: str, fault: str
) -> None:
    outputs = new_outputs(folder, blobs)
    folder_name, _, filename = name.rpartition("/")
    for entry in (make_entry(name), make_entry(filename, folder_name)):
        with pytest.raises(
            RenderFailed, match=f"node 1 has written a file whose name has .*{fault}"
        ):
            await outputs.collect(FIRST_PROMPT, entry)
        assert await outputs.collect_node_output(FIRST_PROMPT, entry.outputs["1"]) == []


@pytest.mark.parametrize(("node", "slot"), [("n" * 1_000_000, "images"), ("1", "s" * 1_000_000)])
async def test_name_of_a_node_or_slot_is_not_repeated_for_4096_files(
    folder: ProcessFolder, blobs: BlobStore, node: str, slot: str
) -> None:
    """The result, which goes through Ray, would have 4 GB."""
    outputs, entry = new_outputs(folder, blobs), make_entry("a.png")
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, "a.png", b"a")
    entry.outputs[node] = {slot: entry.outputs.pop("1")["images"] * 4096}
    with pytest.raises(RenderFailed, match=r"has an output whose id or name .* 255 bytes"):
        await outputs.collect(FIRST_PROMPT, entry)
    failed_entry = entry.model_copy(update={"status": HistoryStatus()})
    result = await outputs.collect(FIRST_PROMPT, failed_entry)
    assert result is not None
    assert result.done.files == ()


async def test_too_many_files_fail_their_render(folder: ProcessFolder, blobs: BlobStore) -> None:
    entry = make_entry("a.png")
    entry.outputs["1"]["images"] *= 100_000
    with pytest.raises(RenderFailed, match=r"100,000 output files, .* limit of 4,096"):
        await new_outputs(folder, blobs).collect(FIRST_PROMPT, entry)
    failed_entry = entry.model_copy(update={"status": HistoryStatus()})
    assert await new_outputs(folder, blobs).collect(FIRST_PROMPT, failed_entry) is not None


async def test_sparse_file_of_30_gib_is_not_read(folder: ProcessFolder, blobs: BlobStore) -> None:
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(FIRST_PROMPT, "ada")
    with (folder.base / "output" / "sparse.png").open("wb") as file:
        file.truncate(30 * 1024**3)
    outputs = OutputStore(written_files, blobs, 1_000)
    images = make_entry("sparse.png").outputs["1"]
    assert await outputs.collect_node_output(FIRST_PROMPT, images) == []
    written_files.end_prompt(FIRST_PROMPT)
    with pytest.raises(RenderFailed, match="exceed the limit of 1,000 bytes"):
        await outputs.collect(FIRST_PROMPT, make_entry("sparse.png"))
    assert not list(folder.done.iterdir())


async def test_files_stored_during_a_prompt_stay_within_the_limit(
    folder: ProcessFolder, blobs: BlobStore
) -> None:
    """A node writes a file, reports it, and writes the next one, for ever."""
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(FIRST_PROMPT, "ada")
    outputs = OutputStore(written_files, blobs, 1_000)
    stored_files = []
    for number in range(20):
        (folder.base / "output" / f"{number}.png").write_bytes(bytes([number]) * 300)
        images = make_entry(f"{number}.png").outputs["1"]
        stored_files += await outputs.collect_node_output(FIRST_PROMPT, images)
    assert len(stored_files) == 3


async def test_file_that_grows_while_it_is_stored_fails_its_render(
    folder: ProcessFolder, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_stream = blobs.put_stream

    async def put_while_growing(file: IO[bytes], max_bytes: int) -> Blob:
        with (folder.done / FIRST_PROMPT / "output" / "a.png").open("ab") as writer:
            writer.write(bytes(2_000))
        return await put_stream(file, max_bytes)

    monkeypatch.setattr(blobs, "put_stream", put_while_growing)
    outputs = new_outputs(folder, blobs)
    write_file_and_end_prompt(outputs, folder, FIRST_PROMPT, "a.png", b"small")
    with pytest.raises(RenderFailed, match="exceed the limit of 1,000 bytes"):
        await outputs.collect(FIRST_PROMPT, make_entry("a.png"))


async def test_links_pipes_and_sockets_are_not_stored(
    folder: ProcessFolder, blobs: BlobStore, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(b"the stack's")
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(FIRST_PROMPT, "ada")
    output_folder = folder.base / "output"
    os.mkfifo(output_folder / "pipe.png")
    (output_folder / "link.png").symlink_to(tmp_path / "secret.png")
    (output_folder / "dangling.png").symlink_to("/proc/self/environ")
    os.mknod(output_folder / "socket.png", stat.S_IFSOCK | 0o600)
    (output_folder / os.fsdecode(b"\xff\n.png")).write_bytes(b"not UTF-8")
    written_files.end_prompt(FIRST_PROMPT)
    outputs = OutputStore(written_files, blobs, 1_000)
    for name in ("pipe.png", "link.png", "dangling.png", "socket.png", "\ufffd.png"):
        folder.done.joinpath(FIRST_PROMPT).mkdir(exist_ok=True)
        assert await outputs.collect(FIRST_PROMPT, make_entry(name)) is None
    assert not list(folder.done.iterdir())


def test_20_000_files_of_a_prompt_are_moved_and_removed(folder: ProcessFolder) -> None:
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(FIRST_PROMPT, "ada")
    descriptor = os.open(folder.base / "output", os.O_DIRECTORY)
    for number in range(20_000):
        os.mknod(f"{number}.png", dir_fd=descriptor)
    os.close(descriptor)
    written_files.end_prompt(FIRST_PROMPT)
    assert list((folder.base / "output").iterdir()) == []
    written_files.discard_files(FIRST_PROMPT)
    assert list(folder.done.iterdir()) == []
