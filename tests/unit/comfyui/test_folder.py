from __future__ import annotations

import os
from pathlib import Path

import pytest

from moyin.comfyui.folder import ProcessFolder
from moyin.comfyui.options import ComfyOptions
from moyin.errors import StackError
from moyin.protocols.comfyui.wire import OutputFile
from moyin.store.blobs import BlobStore


def folder(path: Path, **changes: object) -> ProcessFolder:
    settings: dict[str, object] = {
        "home": path, "python": path, "folder": path / "run", "models": path / "models",
    }  # fmt: skip
    return ProcessFolder(ComfyOptions(**(settings | changes)))  # type: ignore[arg-type]


def test_a_new_process_finds_nothing_of_the_one_before(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    made = folder(tmp_path, custom_nodes=(nodes,))
    for _ in range(2):
        made.prepare()
        assert sorted(p.name for p in (made.path / "custom_nodes").iterdir()) == [
            "moyin_bridge",
            "nodes",
        ]
        assert (made.path / "custom_nodes" / "nodes").resolve() == nodes
        assert (made.path / "models").resolve() == tmp_path / "models"
        assert not list((made.path / "output").iterdir())
        (made.path / "output" / "old.png").touch()
        (tmp_path / "models" / "checkpoint").touch()
    assert (tmp_path / "models" / "checkpoint").exists()


def test_a_missing_node_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="absent"):
        folder(tmp_path, custom_nodes=(tmp_path / "absent",)).prepare()


@pytest.mark.parametrize(
    ("subfolder", "filename", "found"),
    [
        ("p/sub", "a.png", True),
        ("p", "absent.png", False),
        ("../../..", "etc/passwd", False),
        ("..", "secret.png", False),
        ("", "/etc/passwd", False),
    ],
)
def test_only_what_lies_inside_is_an_output(
    tmp_path: Path, subfolder: str, filename: str, found: bool
) -> None:
    made = folder(tmp_path)
    made.prepare()
    (made.path / "output" / "p" / "sub").mkdir(parents=True)
    (made.path / "output" / "p" / "sub" / "a.png").touch()
    (made.path / "secret.png").touch()
    file = OutputFile(filename=filename, subfolder=subfolder, type="output")
    assert (made.locate(file) is not None) is found


async def test_inputs_come_from_the_store_and_the_unused_ones_go(tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path / 'blobs'}")
    made = folder(tmp_path, input_bytes=25)
    made.prepare()
    names = []
    for number in range(4):
        sha256 = await blobs.put(bytes([number]) * 10)
        names.append(f"moyin/{sha256}.png")
        await made.add_inputs(blobs, {names[-1]: sha256})
        os.utime(made.path / "input" / names[-1], (number, number))
    under_way = made.path / "input" / "moyin" / ".copying.1"
    under_way.write_bytes(bytes(100))
    made.trim_inputs({names[0]})
    assert under_way.exists()
    under_way.unlink()
    left = {f"moyin/{path.name}" for path in (made.path / "input" / "moyin").iterdir()}
    assert left == {names[0], names[3]}, "the oldest is needed"

    with pytest.raises(ValueError, match="not the name"):
        await made.add_inputs(blobs, {"../escape.png": "0" * 64})
    with pytest.raises(FileNotFoundError):
        await made.add_inputs(blobs, {f"moyin/{'0' * 64}": "0" * 64})


def test_only_the_prompts_own_files_are_discarded(tmp_path: Path) -> None:
    made = folder(tmp_path)
    made.prepare()
    for kind in ("output", "temp"):
        for prompt in ("mine", "other"):
            (made.path / kind / prompt).mkdir()
    made.discard("mine")
    made.discard("unknown")
    assert [p.name for p in made.path.glob("*/other")] == ["other", "other"]
    assert not list(made.path.glob("*/mine"))
