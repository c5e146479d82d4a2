"""Tests the bubblewrap options that isolate ComfyUI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.render.comfyui import sandbox
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network
from moyin.render.comfyui.sandbox import (
    build_bubblewrap_options,
    choose_user_id,
    find_device_groups,
    find_unreadable_file,
)


def make_options(base: Path, **changes: object) -> ComfyOptions:
    settings: dict[str, object] = {
        "home": base / "comfyui",
        "python": Path(sys.executable),
        "folder": base / "data" / "run",
        "models": base / "models",
        "hidden": (base / "data",),
        "cpu": True,
    }
    return ComfyOptions(**(settings | changes))  # type: ignore[arg-type]


def build_arguments(comfy_options: ComfyOptions, **env: str) -> list[str]:
    comfy_options.home.mkdir(parents=True, exist_ok=True)
    folder = ProcessFolder(comfy_options)
    folder.prepare()
    return build_bubblewrap_options(comfy_options, folder, env)


def find_mounts(arguments: list[str], option: str) -> dict[str, str]:
    """Return the source path of each mount in bubblewrap's arguments, by its path in the sandbox.

    Args:
        arguments: bubblewrap's arguments.
        option: the kind of mount, such as ``--bind``.
    """
    return {
        arguments[i + 2]: arguments[i + 1] for i, word in enumerate(arguments) if word == option
    }


def find_option_values(arguments: list[str], option: str) -> list[str]:
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == option]


def test_process_reads_and_writes_only_its_own_folders(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "more").mkdir()
    comfy_options = make_options(
        tmp_path, custom_nodes=(tmp_path / "nodes",), readable=(tmp_path / "more",)
    )
    arguments = build_arguments(comfy_options)
    base = tmp_path / "data" / "run" / "base"
    read_mounts = find_mounts(arguments, "--ro-bind")
    write_mounts = find_mounts(arguments, "--bind")
    for path in (tmp_path / "comfyui", tmp_path / "models", tmp_path / "nodes", tmp_path / "more"):
        assert read_mounts[str(path)] == str(path)
    assert read_mounts["/etc/passwd"] == str(tmp_path / "data" / "run" / "etc" / "passwd")
    # Temporary folders are not compared, because the test's own folder lies in one of them.
    assert {path for path in write_mounts if path.startswith(str(tmp_path))} == {
        str(base / name) for name in ("output", "temp", "user", "scratch")
    }
    assert set(write_mounts.values()) == {
        str(base / n) for n in ("output", "temp", "user", "scratch")
    }
    forbidden_paths = {
        "/",
        "/etc",
        "/root",
        "/home",
        "/var",
        "/run",
        "/proc",
        str(tmp_path),
        str(Path.home()),
    }
    assert not forbidden_paths & {
        *read_mounts,
        *read_mounts.values(),
        *write_mounts,
        *write_mounts.values(),
    }
    assert arguments[-4:] == ["--remount-ro", "/", "--chdir", "/"]


@pytest.mark.parametrize(
    ("network", "shares_gpu", "absent_flags"),
    [
        (Network.NONE, False, set()),
        (Network.HOST, False, {"--unshare-net"}),
        (Network.NONE, True, {"--unshare-ipc"}),
    ],
)
def test_namespaces_are_separate_unless_they_must_be_shared(
    tmp_path: Path, network: Network, shares_gpu: bool, absent_flags: set[str]
) -> None:
    pipe_folder = tmp_path / "mps"
    pipe_folder.mkdir()
    env = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe_folder)} if shares_gpu else {}
    arguments = build_arguments(make_options(tmp_path, network=network), **env)
    all_flags = {
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--new-session",
    }
    assert all_flags - set(arguments) == absent_flags
    assert {"--die-with-parent", "--unshare-cgroup-try"} <= set(arguments)
    shared_mounts = find_mounts(arguments, "--bind")
    assert (str(pipe_folder) in shared_mounts, shared_mounts.get("/dev/shm") == "/dev/shm") == (
        shares_gpu,
        shares_gpu,
    )
    assert ("/etc/hosts" in find_mounts(arguments, "--ro-bind")) == (network is Network.HOST)


@pytest.mark.parametrize(
    ("uid", "expected_arguments", "absent_option"),
    [
        (0, ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID"], "--unshare-user"),
        (1000, ["--unshare-user", "--disable-userns"], "--cap-add"),
    ],
)
def test_root_drops_capabilities_and_other_users_get_a_namespace(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uid: int,
    expected_arguments: list[str],
    absent_option: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    arguments = build_arguments(make_options(tmp_path))
    assert any(
        arguments[i : i + len(expected_arguments)] == expected_arguments
        for i in range(len(arguments))
    )
    assert absent_option not in arguments


def test_a_confined_process_has_a_user_id_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    all_ids, some_ids = tmp_path / "uid_map", tmp_path / "some"
    all_ids.write_text("         0          0 4294967295\n")
    some_ids.write_text("         0       1000          1\n         1     100000      65536\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choose_user_id(make_options(tmp_path), all_ids) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    first_uid, second_uid = (
        choose_user_id(make_options(tmp_path, folder=tmp_path / name), all_ids)
        for name in ("1", "2")
    )
    assert first_uid != second_uid
    assert all(uid is not None and uid >= 1_900_000_000 for uid in (first_uid, second_uid))
    assert choose_user_id(make_options(tmp_path), some_ids) == 65534
    assert choose_user_id(make_options(tmp_path, uid=4711), all_ids) == 4711
    assert choose_user_id(make_options(tmp_path, isolation=Isolation.FILES), all_ids) is None


def test_hidden_folder_stays_hidden_in_a_readable_one(tmp_path: Path) -> None:
    """The folders with data and pictures are hidden, although they lie in ComfyUI's readable folder."""
    home = tmp_path / "comfyui"
    for name in ("output", "input", "models", "data/artifacts"):
        (home / name).mkdir(parents=True)
    comfy_options = make_options(
        tmp_path, folder=home / "data" / "run", models=home / "models", hidden=(home / "data",)
    )
    arguments = build_arguments(comfy_options)
    hidden_folders = find_option_values(arguments, "--tmpfs")
    assert {str(home / name) for name in ("data", "output", "input")} <= set(hidden_folders)
    assert set(hidden_folders) <= set(find_option_values(arguments, "--remount-ro"))
    positions = [
        arguments.index(str(path)) for path in (home, home / "data", home / "data" / "run" / "base")
    ]
    assert positions == sorted(positions), "outer folders come first"


def test_targets_of_linked_models_are_mounted(tmp_path: Path) -> None:
    disk, secret = tmp_path / "disk", tmp_path / "data" / "secret"
    (disk / "big").mkdir(parents=True)
    (disk / "big" / "a.safetensors").touch()
    (tmp_path / "alias").symlink_to(disk)
    checkpoints = tmp_path / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    secret.parent.mkdir()
    secret.touch()
    (checkpoints / "a.safetensors").symlink_to(tmp_path / "alias" / "big" / "a.safetensors")
    (checkpoints / "loras").symlink_to(disk / "big")
    (checkpoints / "gone").symlink_to(tmp_path / "gone")
    (checkpoints / "secret").symlink_to(secret)
    read_mounts = find_mounts(build_arguments(make_options(tmp_path)), "--ro-bind")
    file = tmp_path / "alias" / "big" / "a.safetensors"
    assert read_mounts[str(file)] == str(disk / "big" / "a.safetensors")
    assert read_mounts[str(disk / "big")] == str(disk / "big")
    assert not {str(tmp_path / "gone"), str(secret)} & read_mounts.keys()


@pytest.mark.parametrize("name", ["/", "/etc", "data", "absent"])
def test_too_broad_and_missing_folders_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(StackError, match=name):
        build_arguments(make_options(tmp_path, readable=(tmp_path / name,)))


def test_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="absent can't be run"):
        build_arguments(make_options(tmp_path, python=tmp_path / "absent"))


def test_graphics_devices_and_their_groups_are_passed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards = [Path("/dev/null"), Path("/dev/zero")]
    monkeypatch.setattr(sandbox, "find_graphics_devices", lambda: cards)
    arguments = build_arguments(make_options(tmp_path, cpu=False))
    assert find_mounts(arguments, "--dev-bind") == {str(card): str(card) for card in cards}
    assert "/sys" in find_mounts(arguments, "--ro-bind")
    words_without_gpu = build_arguments(make_options(tmp_path))
    assert not find_mounts(words_without_gpu, "--dev-bind")
    assert "/sys" not in find_mounts(words_without_gpu, "--ro-bind")
    assert find_device_groups(cards) == [], "every user may use them"
    console = Path("/dev/console")
    if console.exists() and console.stat().st_gid:
        assert find_device_groups([console]) == [console.stat().st_gid]


def test_no_mount_lies_in_a_writable_mount(tmp_path: Path) -> None:
    """No read-only mount lies below a writable one, where a process could rename its parent folder."""
    arguments = build_arguments(make_options(tmp_path))
    writable_mounts = [Path(path) for path in find_mounts(arguments, "--bind")]
    read_only_mounts = [Path(path) for path in find_mounts(arguments, "--ro-bind")]
    assert not [p for p in read_only_mounts for w in writable_mounts if p.is_relative_to(w)]


def test_model_that_only_its_owner_may_read_is_named(tmp_path: Path) -> None:
    model = tmp_path / "checkpoints" / "a.safetensors"
    model.parent.mkdir()
    model.touch()
    model.chmod(0o644)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert find_unreadable_file(1_900_000_000, [tmp_path]) is None
    model.chmod(0o600)
    assert find_unreadable_file(1_900_000_000, [tmp_path]) == model
    assert find_unreadable_file(model.stat().st_uid, [tmp_path]) is None
