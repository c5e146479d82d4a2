from __future__ import annotations

import errno
import os
import stat
from collections import namedtuple
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from moyin.errors import StackError
from moyin.settings import Settings
from moyin.stack.layout import Layout, explain_os_errors, replace_file

# HAProxy binds PATH.PID.tmp in a folder named after the node (56 characters).
_UNIX_PATH_BYTES = 107
_NODE_ID = "n" * 56


def test_prepare_makes_private_folders(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "deep" / "data")
    layout.prepare()
    for folder in (layout.data, layout.run, layout.logs, layout.sockets):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    layout.prepare()  # Preparing twice is allowed.


def test_socket_paths_fit_however_long_the_data_folder_is(tmp_path: Path) -> None:
    layout = Layout(tmp_path / ("x" * 200))
    haproxy_socket = layout.haproxy / _NODE_ID / "s.4194304.tmp"
    plasma_socket = (
        layout.ray / "session_2026-11-25_00-05-34_123456_1234567" / "sockets" / "plasma_store"
    )
    assert len(str(haproxy_socket)) <= _UNIX_PATH_BYTES
    assert len(str(plasma_socket)) <= _UNIX_PATH_BYTES


def test_two_data_folders_share_no_sockets(tmp_path: Path) -> None:
    assert Layout(tmp_path / "a").sockets != Layout(tmp_path / "b").sockets


def test_file_in_place_of_the_data_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StackError) as exc_info:
        Layout(tmp_path / "data").prepare()
    assert "set MOYIN_DATA" in exc_info.value.message
    assert "\n" not in exc_info.value.message


def test_a_socket_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.sockets.symlink_to(tmp_path)
    try:
        with pytest.raises(StackError, match="must be a folder of this user"):
            layout.prepare()
    finally:
        layout.sockets.unlink()


def test_full_disk_is_reported_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DiskUsage = namedtuple("DiskUsage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: DiskUsage(10**12, 10**12, 5 * 2**20))
    with pytest.raises(StackError, match=r"5 MB are free.*disk is full"):
        Layout(tmp_path / "data").prepare()


@pytest.mark.parametrize(
    ("error_number", "message"),
    [
        (errno.EACCES, "no permission to write there"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
def test_os_error_becomes_advice(error_number: int, message: str) -> None:
    with pytest.raises(StackError, match=message), explain_os_errors(Path("/somewhere")):
        raise OSError(error_number, os.strerror(error_number))


def test_newest_log_with_lines_of_the_app_comes_last(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    layout.prepare()
    folder = layout.ray / "session_latest" / "logs" / "serve"
    folder.mkdir(parents=True)
    logs_and_times = ("replica_models_c.log", 3), ("replica_models_b_moyin.log", 1)
    for name, modified_at in (*logs_and_times, ("replica_models_a_moyin.log", 2)):
        (folder / name).touch()
        os.utime(folder / name, (modified_at, modified_at))
    assert [path.name for path in layout.list_app_logs("models")] == [
        "replica_models_c.log",
        "replica_models_b_moyin.log",
        "replica_models_a_moyin.log",
    ]
    assert layout.list_app_logs("nothing") == []
    layout.remove_runtime_files()
    assert not layout.sockets.exists()
    assert [path.parent for path in layout.list_app_logs("models")] == [
        layout.logs / "ray" / "serve"
    ] * 3


@pytest.mark.parametrize("name", ["a%20b", "50%", "a?b", "ä b#c", "c:d"])
def test_database_path_keeps_special_characters_of_the_data_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOYIN_DATABASE_URL", raising=False)
    settings = Settings(data=tmp_path / name)
    assert make_url(settings.sql_url).database == str(tmp_path / name / "moyin.db")


def test_data_folder_with_double_colon_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"a::b: .* set MOYIN_DATA to another folder"):
        Layout(tmp_path / "a::b").prepare()


def test_failed_write_keeps_the_previous_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    replace_file(path, b"before")
    original_write = Path.write_bytes

    def write_half(self: Path, data: bytes) -> int:
        original_write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_apps_with_logs_are_listed_by_name(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data")
    serve_logs = layout.ray_logs / "serve"
    serve_logs.mkdir(parents=True)
    for name in ("gateway_Gateway_x1", "gateway_Gateway_x1_moyin", "render-my_pool_RenderPool_y2"):
        (serve_logs / f"replica_{name}.log").touch()
    (serve_logs / "controller_12.log").touch()
    assert layout.list_apps_with_logs() == {"gateway", "render-my_pool"}
