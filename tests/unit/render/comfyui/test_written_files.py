"""What prompts leave behind, by nodes that mean no good."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.written_files import WrittenFiles
from moyin.render.protocol.wire import OutputFile

ADA, BOB = (f"{number:08d}-0000-0000-0000-000000000000" for number in (1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> ProcessFolder:
    options = ComfyOptions(
        home=tmp_path, python=tmp_path, folder=tmp_path / "run", models=tmp_path / "models"
    )
    folder = ProcessFolder(options)
    folder.prepare()
    return folder


def output(filename: str, subfolder: str = "", kind: str = "output") -> OutputFile:
    return OutputFile.model_validate({"filename": filename, "subfolder": subfolder, "type": kind})


def content(written: WrittenFiles, file: OutputFile, prompt_id: str) -> bytes | None:
    opened = written.open(file, prompt_id)
    if opened is None:
        return None
    with opened:
        return opened.read()


def test_the_next_prompt_finds_nothing_whatever_names_were_chosen(folder: ProcessFolder) -> None:
    written = WrittenFiles(folder)
    written.begin(ADA)
    for place in folder.writable:
        (place / "deep" / ADA).mkdir(parents=True)
        (place / "deep" / ADA / ".hidden").write_text("Ada's")
        (place / "latest.png").write_text("Ada's")
    written.end(ADA)
    assert [list(place.iterdir()) for place in folder.writable] == [[]] * 4
    written.begin(BOB)
    assert content(written, output("latest.png"), ADA) == b"Ada's", "it is still to be stored"
    assert content(written, output("latest.png"), BOB) is None
    written.discard(ADA)
    written.discard(ADA)
    assert content(written, output("latest.png"), ADA) is None
    assert list(folder.done.iterdir()) == []


def test_what_comes_between_two_prompts_is_nobodys(folder: ProcessFolder) -> None:
    written = WrittenFiles(folder)
    (folder.base / "output" / "late.png").write_text("by a thread that went on")
    written.begin(BOB)
    assert [list(place.iterdir()) for place in folder.writable] == [[]] * 4
    assert list(folder.done.iterdir()) == []


def test_a_file_is_found_where_its_node_wrote_it(folder: ProcessFolder) -> None:
    written = WrittenFiles(folder)
    written.begin(ADA)
    (folder.base / "output" / ADA).mkdir()
    (folder.base / "output" / ADA / "a.png").write_text("by its prompt")
    (folder.base / "output" / "b.png").write_text("by itself")
    for _ in range(2):
        assert content(written, output("a.png", ADA), ADA) == b"by its prompt"
        assert content(written, output("b.png", ADA), ADA) == b"by itself"
        assert content(written, output("b.png"), ADA) == b"by itself"
        assert content(written, output("a.png", ADA, "temp"), ADA) is None
        written.end(ADA)
    # Another prompt that got it from the cache.
    written.begin(BOB)
    (folder.base / "output" / ADA).mkdir()
    (folder.base / "output" / ADA / "c.png").write_text("by somebody who says that he is Ada")
    assert content(written, output("a.png", ADA), BOB) == b"by its prompt"
    assert content(written, output("c.png", ADA), BOB) is None


def test_a_repeated_prompt_replaces_what_it_wrote_first(folder: ProcessFolder) -> None:
    written = WrittenFiles(folder)
    for text in ("first", "second"):
        written.begin(ADA)
        (folder.base / "output" / "a.png").write_text(text)
        written.end(ADA)
    assert content(written, output("a.png"), ADA) == b"second"


@pytest.mark.parametrize("ended", [False, True])
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
def test_only_regular_files_inside_are_outputs(
    folder: ProcessFolder, subfolder: str, filename: str, ended: bool
) -> None:
    written, place = WrittenFiles(folder), folder.base / "output"
    (folder.path / "secret.png").write_text("the stack's")
    written.begin(ADA)
    (place / "folder").mkdir()
    os.mkfifo(place / "pipe")
    (place / "link").symlink_to(folder.path / "secret.png")
    (place / "way").symlink_to(folder.path)
    (place / "/".join(["d"] * 100)).mkdir(parents=True)
    (place / "/".join(["d"] * 100) / "a.png").touch()
    if ended:
        written.end(ADA)
    assert content(written, output(filename, subfolder), ADA) is None


def test_what_can_not_be_opened_by_its_owner_goes_as_well(folder: ProcessFolder) -> None:
    """And folders so deep that no function can call itself that often."""
    written, place = WrittenFiles(folder), folder.base / "output"
    written.begin(ADA)
    (place / "closed" / "closed").mkdir(parents=True)
    (place / "closed" / "closed").chmod(0)
    (place / "closed").chmod(0)
    here = os.open(place, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    place.chmod(0)
    written.end(ADA)
    assert list(place.iterdir()) == []
    assert place.stat().st_mode & 0o777 == 0o700, "the next prompt writes here"
    written.discard(ADA)
    assert list(folder.done.iterdir()) == []
