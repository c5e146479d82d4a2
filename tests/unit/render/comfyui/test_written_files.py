"""Tests that the files which hostile nodes leave behind are removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.wire import OutputFile

ADA_PROMPT, BOB_PROMPT = (f"{number:08d}-0000-0000-0000-000000000000" for number in (1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> ProcessFolder:
    options = ComfyOptions(
        home=tmp_path, python=tmp_path, folder=tmp_path / "run", models=tmp_path / "models"
    )
    folder = ProcessFolder(options)
    folder.prepare()
    return folder


def make_output_file(filename: str, subfolder: str = "", folder_type: str = "output") -> OutputFile:
    return OutputFile.model_validate(
        {"filename": filename, "subfolder": subfolder, "type": folder_type}
    )


def read_content(written_files: WrittenFiles, file: OutputFile, prompt_id: str) -> bytes | None:
    opened_file = written_files.open_file(file, prompt_id)
    if opened_file is None:
        return None
    with opened_file:
        return opened_file.read()


def test_next_prompt_finds_no_files_of_the_last(folder: ProcessFolder) -> None:
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(ADA_PROMPT, "ada")
    for path in folder.writable:
        (path / "deep" / ADA_PROMPT).mkdir(parents=True)
        (path / "deep" / ADA_PROMPT / ".hidden").write_text("Ada's")
        (path / "latest.png").write_text("Ada's")
    written_files.end_prompt(ADA_PROMPT)
    assert [list(path.iterdir()) for path in folder.writable] == [[]] * 4
    written_files.begin_prompt(BOB_PROMPT, "bob")
    assert read_content(written_files, make_output_file("latest.png"), ADA_PROMPT) == b"Ada's", (
        "it has yet to be stored"
    )
    assert read_content(written_files, make_output_file("latest.png"), BOB_PROMPT) is None
    written_files.discard_files(ADA_PROMPT)
    written_files.discard_files(ADA_PROMPT)
    assert read_content(written_files, make_output_file("latest.png"), ADA_PROMPT) is None
    assert list(folder.done.iterdir()) == []


def test_files_written_between_prompts_are_removed(folder: ProcessFolder) -> None:
    written_files = WrittenFiles(folder)
    (folder.base / "output" / "late.png").write_text("by a thread that still runs")
    written_files.begin_prompt(BOB_PROMPT, "ada")
    assert [list(path.iterdir()) for path in folder.writable] == [[]] * 4
    assert list(folder.done.iterdir()) == []


def test_file_is_opened_where_its_node_wrote_it(folder: ProcessFolder) -> None:
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(ADA_PROMPT, "ada")
    (folder.base / "output" / ADA_PROMPT).mkdir()
    (folder.base / "output" / ADA_PROMPT / "a.png").write_text("by its prompt")
    (folder.base / "output" / "b.png").write_text("by itself")
    for _ in range(2):
        assert (
            read_content(written_files, make_output_file("a.png", ADA_PROMPT), ADA_PROMPT)
            == b"by its prompt"
        )
        assert (
            read_content(written_files, make_output_file("b.png", ADA_PROMPT), ADA_PROMPT)
            == b"by itself"
        )
        assert read_content(written_files, make_output_file("b.png"), ADA_PROMPT) == b"by itself"
        assert (
            read_content(written_files, make_output_file("a.png", ADA_PROMPT, "temp"), ADA_PROMPT)
            is None
        )
        written_files.end_prompt(ADA_PROMPT)
    # Another prompt that got the file from the cache.
    written_files.begin_prompt(BOB_PROMPT, "ada")
    (folder.base / "output" / ADA_PROMPT).mkdir()
    (folder.base / "output" / ADA_PROMPT / "c.png").write_text(
        "by a prompt that pretends to be Ada's"
    )
    assert (
        read_content(written_files, make_output_file("a.png", ADA_PROMPT), BOB_PROMPT)
        == b"by its prompt"
    )
    assert read_content(written_files, make_output_file("c.png", ADA_PROMPT), BOB_PROMPT) is None


@pytest.mark.parametrize("has_ended", [False, True])
def test_file_in_the_folder_of_another_tenants_prompt_is_not_opened(
    folder: ProcessFolder, has_ended: bool
) -> None:
    written_files = WrittenFiles(folder)
    written_files.begin_prompt(BOB_PROMPT, "bob")
    written_files.end_prompt(BOB_PROMPT)
    written_files.begin_prompt(ADA_PROMPT, "ada")
    (folder.base / "output" / ADA_PROMPT).mkdir()
    (folder.base / "output" / ADA_PROMPT / "a.png").write_text("Ada's")
    if has_ended:
        written_files.end_prompt(ADA_PROMPT)
    for file in (make_output_file("a.png", ADA_PROMPT), make_output_file(f"{ADA_PROMPT}/a.png")):
        assert read_content(written_files, file, ADA_PROMPT) == b"Ada's"
        assert read_content(written_files, file, BOB_PROMPT) is None


def test_repeated_prompt_replaces_its_files(folder: ProcessFolder) -> None:
    written_files = WrittenFiles(folder)
    for text in ("first", "second"):
        written_files.begin_prompt(ADA_PROMPT, "ada")
        (folder.base / "output" / "a.png").write_text(text)
        written_files.end_prompt(ADA_PROMPT)
    assert read_content(written_files, make_output_file("a.png"), ADA_PROMPT) == b"second"


@pytest.mark.parametrize("has_ended", [False, True])
@pytest.mark.parametrize(
    ("subfolder", "filename"),
    [
        ("p", "absent.png"),
        ("../../..", "etc/passwd"),
        ("..", "secret.png"),
        ("", "/etc/passwd"),
        ("/etc", "passwd"),
        ("", ""),
        ("", "x\0y"),
        ("", "folder"),
        ("", "pipe"),
        ("", "link"),
        ("way", "secret.png"),
        ("/".join(["d"] * 100), "a.png"),
    ],
)
def test_only_regular_files_inside_the_folder_are_opened(
    folder: ProcessFolder, subfolder: str, filename: str, has_ended: bool
) -> None:
    written_files, output_folder = WrittenFiles(folder), folder.base / "output"
    (folder.path / "secret.png").write_text("the stack's")
    written_files.begin_prompt(ADA_PROMPT, "ada")
    (output_folder / "folder").mkdir()
    os.mkfifo(output_folder / "pipe")
    (output_folder / "link").symlink_to(folder.path / "secret.png")
    (output_folder / "way").symlink_to(folder.path)
    (output_folder / "/".join(["d"] * 100)).mkdir(parents=True)
    (output_folder / "/".join(["d"] * 100) / "a.png").touch()
    if has_ended:
        written_files.end_prompt(ADA_PROMPT)
    assert read_content(written_files, make_output_file(filename, subfolder), ADA_PROMPT) is None


def test_locked_and_deep_folders_are_removed(folder: ProcessFolder) -> None:
    """The folders have no permissions, and are nested deeper than Python's recursion limit."""
    written_files, output_folder = WrittenFiles(folder), folder.base / "output"
    written_files.begin_prompt(ADA_PROMPT, "ada")
    (output_folder / "closed" / "closed").mkdir(parents=True)
    (output_folder / "closed" / "closed").chmod(0)
    (output_folder / "closed").chmod(0)
    folder_fd = os.open(output_folder, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=folder_fd)
        deeper_fd = os.open("d", os.O_RDONLY, dir_fd=folder_fd)
        os.close(folder_fd)
        folder_fd = deeper_fd
    os.close(folder_fd)
    output_folder.chmod(0)
    written_files.end_prompt(ADA_PROMPT)
    assert list(output_folder.iterdir()) == []
    assert output_folder.stat().st_mode & 0o777 == 0o700, "the next prompt writes here"
    written_files.discard_files(ADA_PROMPT)
    assert list(folder.done.iterdir()) == []
