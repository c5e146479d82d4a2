"""Compares the installed packages with requirements.lock, and installs what differs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from moyin.errors import StackError
from moyin.stack.doctor.result import CheckResult, ok, warn
from moyin.stack.options import Options
from moyin.stack.state import find_lock_holder
from moyin.system.packages import build_install_command, build_uv_environ
from moyin.system.processes import STACK_VARIABLE

_SHOWN_PACKAGES = 3
_ERROR_LINES = 5


def check_packages(options: Options) -> CheckResult:
    """Check that all packages have the version of requirements.lock.

    They do not after `git pull` without `make`, or if another program's installation into the same
    environment has replaced some.
    """
    lock = _find_lock()
    if lock is None:
        return ok("packages", "not compared: there is no requirements.lock")
    differences = list(_find_differences(lock))
    if not differences:
        return ok("packages", f"those of {lock}")
    more = len(differences) - _SHOWN_PACKAGES
    found = ", ".join(differences[:_SHOWN_PACKAGES]) + (f" and {more} more" if more > 0 else "")
    is_fixable = can_install(options)
    return warn(
        "packages",
        f"not those of {lock.name}: {found}",
        "run `moyin down`, then `make demo`, which installs them",
        fix=f"install those versions into {sys.prefix}" if is_fixable else "",
    )


def can_install(options: Options) -> bool:
    """Return whether `install_packages` may change this Python's environment.

    That is: it is a virtual environment, and no stack runs from it.
    """
    return (
        _find_lock() is not None
        and sys.prefix != sys.base_prefix
        and not _may_run(options)
        and not _is_used_by_another(options.stack_id)
    )


def install_packages(*, again: str = "") -> None:
    """Install the packages of requirements.lock with their versions, or raise `StackError`.

    Args:
        again: a package to install even if its version is the right one, because of its files.
    """
    lock = _find_lock()
    if lock is None:
        raise StackError("there is no requirements.lock")
    python = Path(sys.executable)
    command = [*build_install_command(python), "--no-deps", "-r", str(lock)]
    if again:
        command += ["--reinstall-package", again]
    try:
        process = subprocess.run(
            command,
            env=build_uv_environ(python, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise StackError(f"uv cannot be run: {error}: run `make demo`") from error
    if process.returncode != 0:
        lines = " ".join(process.stdout.splitlines()[-_ERROR_LINES:])
        raise StackError(f"the installation failed: {lines}")
    # The packages that were looked for before are remembered as missing.
    importlib.invalidate_caches()


def _may_run(options: Options) -> bool:
    try:
        return find_lock_holder(options.layout.lock) is not None
    except PermissionError:
        return True  # The check of the data folder reports it.


def _is_used_by_another(stack: str) -> bool:
    """Return whether a stack with another data folder runs from this Python's environment."""
    folder = f"{sys.prefix}{os.sep}"
    for process in psutil.process_iter():
        try:
            other = process.environ().get(STACK_VARIABLE, stack)
            if other != stack and "".join(process.cmdline()[:1]).startswith(folder):
                return True
        except psutil.Error:
            continue  # It has ended, or belongs to another user.
    return False


def _find_lock() -> Path | None:
    """Return the path of requirements.lock, which only a checkout of the sources has."""
    path = Path(__file__).parents[3] / "requirements.lock"
    return path if path.is_file() else None


def _find_differences(lock: Path) -> Iterator[str]:
    for line in lock.read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is missing"
            continue
        if version not in requirement.specifier:
            yield f"{requirement.name} {version} instead of {str(requirement.specifier)[2:]}"
