from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions


def make_folder(path: Path, **changes: object) -> ProcessFolder:
    settings: dict[str, object] = {
        "home": path, "python": path, "folder": path / "run", "models": path / "models",
    }  # fmt: skip
    return ProcessFolder(ComfyOptions(**(settings | changes)))  # type: ignore[arg-type]


def test_new_process_finds_no_old_files(tmp_path: Path) -> None:
    node_package = tmp_path / "nodes"
    node_package.mkdir()
    process_folder = make_folder(tmp_path, custom_nodes=(node_package,))
    for _ in range(2):
        process_folder.prepare()
        assert sorted(p.name for p in (process_folder.base / "custom_nodes").iterdir()) == [
            "moyin_bridge",
            "nodes",
        ]
        assert (process_folder.base / "custom_nodes" / "nodes").resolve() == node_package
        assert (process_folder.base / "models").resolve() == tmp_path / "models"
        folders = [
            *process_folder.writable,
            process_folder.inputs,
            process_folder.staging,
            process_folder.done,
        ]
        assert [list(path.iterdir()) for path in folders] == [[]] * len(folders)
        for path in folders:
            (path / "old.png").touch()
        (tmp_path / "models" / "checkpoint").touch()
    assert (tmp_path / "models" / "checkpoint").exists()


def test_missing_node_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="absent"):
        make_folder(tmp_path, custom_nodes=(tmp_path / "absent",)).prepare()


def test_folder_is_private_and_its_base_is_readable(
    tmp_path: Path,
) -> None:
    process_folder = make_folder(tmp_path)
    umask = os.umask(0o077)
    try:
        process_folder.prepare()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(process_folder.path.stat().st_mode) == 0o700
    readable_files = [
        process_folder.base,
        process_folder.inputs,
        process_folder.etc,
        *process_folder.base.glob("custom_nodes/**/*"),
        *process_folder.etc.iterdir(),
    ]
    assert all(path.stat().st_mode & stat.S_IROTH for path in readable_files)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in process_folder.writable)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_writable_folders_belong_to_the_processs_user(tmp_path: Path) -> None:
    process_folder = make_folder(tmp_path)
    process_folder.prepare(uid=1_900_000_001)
    assert {path.stat().st_uid for path in process_folder.writable} == {1_900_000_001}
    assert {
        path.stat().st_uid
        for path in (process_folder.path, process_folder.base, process_folder.inputs)
    } == {0}
    assert (
        process_folder.etc.joinpath("passwd")
        .read_text()
        .startswith("comfyui:x:1900000001:1900000001:")
    )
