from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions


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
        assert sorted(p.name for p in (made.base / "custom_nodes").iterdir()) == [
            "moyin_bridge",
            "nodes",
        ]
        assert (made.base / "custom_nodes" / "nodes").resolve() == nodes
        assert (made.base / "models").resolve() == tmp_path / "models"
        places = [*made.writable, made.inputs, made.staging, made.done]
        assert [list(place.iterdir()) for place in places] == [[]] * len(places)
        for place in places:
            (place / "old.png").touch()
        (tmp_path / "models" / "checkpoint").touch()
    assert (tmp_path / "models" / "checkpoint").exists()


def test_a_missing_node_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="absent"):
        folder(tmp_path, custom_nodes=(tmp_path / "absent",)).prepare()


def test_nobody_else_looks_into_the_folder_and_the_process_may_read_its_part(
    tmp_path: Path,
) -> None:
    made = folder(tmp_path)
    umask = os.umask(0o077)
    try:
        made.prepare()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    readable = [
        made.base,
        made.inputs,
        made.etc,
        *made.base.glob("custom_nodes/**/*"),
        *made.etc.iterdir(),
    ]
    assert all(path.stat().st_mode & stat.S_IROTH for path in readable)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in made.writable)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_the_process_writes_is_its_users(tmp_path: Path) -> None:
    made = folder(tmp_path)
    made.prepare(uid=1_900_000_001)
    assert {path.stat().st_uid for path in made.writable} == {1_900_000_001}
    assert {path.stat().st_uid for path in (made.path, made.base, made.inputs)} == {0}
    assert made.etc.joinpath("passwd").read_text().startswith("comfyui:x:1900000001:1900000001:")
