"""The command line that confines ComfyUI, and what bubblewrap makes of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from moyin.errors import StackError
from moyin.render.comfyui import sandbox
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions, Isolation, Network
from moyin.render.comfyui.sandbox import bubblewrap_options, closed_to, device_groups, user_of


def options(place: Path, **changes: object) -> ComfyOptions:
    settings: dict[str, object] = {
        "home": place / "comfyui",
        "python": Path(sys.executable),
        "folder": place / "data" / "run",
        "models": place / "models",
        "hidden": (place / "data",),
        "cpu": True,
    }
    return ComfyOptions(**(settings | changes))  # type: ignore[arg-type]


def line(wanted: ComfyOptions, **env: str) -> list[str]:
    wanted.home.mkdir(parents=True, exist_ok=True)
    folder = ProcessFolder(wanted)
    folder.prepare()
    return bubblewrap_options(wanted, folder, env)


def places(words: list[str], option: str) -> dict[str, str]:
    """Paths outside by path inside."""
    return {
        words[place + 2]: words[place + 1] for place, word in enumerate(words) if word == option
    }


def singles(words: list[str], option: str) -> list[str]:
    return [words[place + 1] for place, word in enumerate(words) if word == option]


def test_it_reads_its_own_and_writes_its_own_folders(tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "more").mkdir()
    wanted = options(tmp_path, custom_nodes=(tmp_path / "nodes",), readable=(tmp_path / "more",))
    words = line(wanted)
    base = tmp_path / "data" / "run" / "base"
    read, write = places(words, "--ro-bind"), places(words, "--bind")
    for path in (tmp_path / "comfyui", tmp_path / "models", tmp_path / "nodes", tmp_path / "more"):
        assert read[str(path)] == str(path)
    assert read["/etc/passwd"] == str(tmp_path / "data" / "run" / "etc" / "passwd")
    # The temporary folders are not written: the tests' own lies in one of them.
    assert {path for path in write if path.startswith(str(tmp_path))} == {
        str(base / name) for name in ("output", "temp", "user", "scratch")
    }
    assert set(write.values()) == {str(base / n) for n in ("output", "temp", "user", "scratch")}
    secret = {
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
    assert not secret & {*read, *read.values(), *write, *write.values()}
    assert words[-4:] == ["--remount-ro", "/", "--chdir", "/"]


@pytest.mark.parametrize(
    ("network", "sharing", "absent"),
    [
        (Network.NONE, False, set()),
        (Network.HOST, False, {"--unshare-net"}),
        (Network.NONE, True, {"--unshare-ipc"}),
    ],
)
def test_namespaces(tmp_path: Path, network: Network, sharing: bool, absent: set[str]) -> None:
    pipes = tmp_path / "mps"
    pipes.mkdir()
    env = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes)} if sharing else {}
    words = line(options(tmp_path, network=network), **env)
    every = {"--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--new-session"}
    assert every - set(words) == absent
    assert {"--die-with-parent", "--unshare-cgroup-try"} <= set(words)
    shared = places(words, "--bind")
    assert (str(pipes) in shared, shared.get("/dev/shm") == "/dev/shm") == (sharing, sharing)
    assert ("/etc/hosts" in places(words, "--ro-bind")) == (network is Network.HOST)


@pytest.mark.parametrize(
    ("uid", "has", "has_not"),
    [
        (0, ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID"], "--unshare-user"),
        (1000, ["--unshare-user", "--disable-userns"], "--cap-add"),
    ],
)
def test_root_gives_up_its_number_and_others_get_no_rights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uid: int, has: list[str], has_not: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    words = line(options(tmp_path))
    assert any(words[place : place + len(has)] == has for place in range(len(words)))
    assert has_not not in words


def test_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    everybody, some = tmp_path / "uid_map", tmp_path / "some"
    everybody.write_text("         0          0 4294967295\n")
    some.write_text("         0       1000          1\n         1     100000      65536\n")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert user_of(options(tmp_path), everybody) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    first, second = (
        user_of(options(tmp_path, folder=tmp_path / name), everybody) for name in ("1", "2")
    )
    assert first != second
    assert all(uid is not None and uid >= 1_900_000_000 for uid in (first, second))
    assert user_of(options(tmp_path), some) == 65534
    assert user_of(options(tmp_path, uid=4711), everybody) == 4711
    assert user_of(options(tmp_path, isolation=Isolation.FILES), everybody) is None


def test_what_is_hidden_stays_so_in_a_folder_that_may_be_read(tmp_path: Path) -> None:
    """Somebody keeps the data folder, and pictures of his own, in his ComfyUI's folder."""
    home = tmp_path / "comfyui"
    for name in ("output", "input", "models", "data/artifacts"):
        (home / name).mkdir(parents=True)
    wanted = options(
        tmp_path, folder=home / "data" / "run", models=home / "models", hidden=(home / "data",)
    )
    words = line(wanted)
    hidden = singles(words, "--tmpfs")
    assert {str(home / name) for name in ("data", "output", "input")} <= set(hidden)
    assert set(hidden) <= set(singles(words, "--remount-ro"))
    order = [
        words.index(str(path)) for path in (home, home / "data", home / "data" / "run" / "base")
    ]
    assert order == sorted(order), "outer folders first"


def test_models_that_are_links_are_seen_where_they_lead(tmp_path: Path) -> None:
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
    read = places(line(options(tmp_path)), "--ro-bind")
    file = tmp_path / "alias" / "big" / "a.safetensors"
    assert read[str(file)] == str(disk / "big" / "a.safetensors")
    assert read[str(disk / "big")] == str(disk / "big")
    assert not {str(tmp_path / "gone"), str(secret)} & read.keys()


@pytest.mark.parametrize("name", ["/", "/etc", "data", "absent"])
def test_folders_that_show_too_much_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(StackError, match=name):
        line(options(tmp_path, readable=(tmp_path / name,)))


def test_an_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="absent can't be run"):
        line(options(tmp_path, python=tmp_path / "absent"))


def test_cards_and_who_may_use_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cards = [Path("/dev/null"), Path("/dev/zero")]
    monkeypatch.setattr(sandbox, "graphics_devices", lambda: cards)
    words = line(options(tmp_path, cpu=False))
    assert places(words, "--dev-bind") == {str(card): str(card) for card in cards}
    assert "/sys" in places(words, "--ro-bind")
    without = line(options(tmp_path))
    assert not places(without, "--dev-bind")
    assert "/sys" not in places(without, "--ro-bind")
    assert device_groups(cards) == [], "everybody may"
    console = Path("/dev/console")
    if console.exists() and console.stat().st_gid:
        assert device_groups([console]) == [console.stat().st_gid]


def test_no_folder_is_written_through_another(tmp_path: Path) -> None:
    """A mount in a folder that is written would be a folder in it outside, which can be moved."""
    words = line(options(tmp_path))
    written = [Path(path) for path in places(words, "--bind")]
    others = [Path(path) for path in places(words, "--ro-bind")]
    assert not [p for p in others for w in written if p.is_relative_to(w)]


def test_a_model_that_only_its_owner_may_read_is_named(tmp_path: Path) -> None:
    model = tmp_path / "checkpoints" / "a.safetensors"
    model.parent.mkdir()
    model.touch()
    model.chmod(0o644)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert closed_to(1_900_000_000, [tmp_path]) is None
    model.chmod(0o600)
    assert closed_to(1_900_000_000, [tmp_path]) == model
    assert closed_to(model.stat().st_uid, [tmp_path]) is None
