"""Compares the installed packages with requirements.lock, and installs the locked versions."""

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
from moyin.stack.doctor.result import CheckResult, build_ok, build_warning
from moyin.stack.options import Options
from moyin.stack.state import find_lock_holder
from moyin.system.packages import build_install_command, build_uv_environ
from moyin.system.processes import STACK_VARIABLE

_SHOWN_PACKAGES = 3
_ERROR_LINES = 5


def check_packages(options: Options) -> CheckResult:
    """Check that all packages have the version of requirements.lock.

    Versions differ after `git pull` without `make`, or after the installation of another program
    into the same environment.
    """
    lock_file = _find_lock_file()
    if lock_file is None:
        return build_ok("packages", "not compared: there is no requirements.lock")
    differences = list(_find_differences(lock_file))
    if not differences:
        return build_ok("packages", f"those of {lock_file}")
    hidden_count = len(differences) - _SHOWN_PACKAGES
    finding = ", ".join(differences[:_SHOWN_PACKAGES]) + (
        f" and {hidden_count} more" if hidden_count > 0 else ""
    )
    is_fixable = can_install_packages(options)
    return build_warning(
        "packages",
        f"not those of {lock_file.name}: {finding}",
        "run `moyin down`, then `make demo`, which installs them",
        fix=f"install those versions into {sys.prefix}" if is_fixable else "",
    )


def can_install_packages(options: Options) -> bool:
    """Return True if `install_packages` may change this Python's environment.

    It may if this is a virtual environment from which no stack runs.
    """
    return (
        _find_lock_file() is not None
        and sys.prefix != sys.base_prefix
        and not _may_stack_run(options)
        and not _is_used_by_another(options.stack_id)
    )


def install_packages(*, reinstalled_package: str = "") -> None:
    """Install the packages of requirements.lock with their versions, or raise `StackError`.

    Args:
        reinstalled_package: a package to install even if its version is right, because its files
            may be damaged.
    """
    lock_file = _find_lock_file()
    if lock_file is None:
        raise StackError("there is no requirements.lock: run Moyin from a clone of its repository")
    python = Path(sys.executable)
    command = [*build_install_command(python), "--no-deps", "-r", str(lock_file)]
    if reinstalled_package:
        command += ["--reinstall-package", reinstalled_package]
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
        last_lines = " ".join(process.stdout.splitlines()[-_ERROR_LINES:])
        raise StackError(f"installing requirements.lock failed: {last_lines}: run `make demo`")
    # Python has cached that packages which were looked for before are missing.
    importlib.invalidate_caches()


def _may_stack_run(options: Options) -> bool:
    try:
        return find_lock_holder(options.layout.lock) is not None
    except PermissionError:
        return True  # The check of the data folder reports it.


def _is_used_by_another(stack_id: str) -> bool:
    """Return True if a stack with another data folder runs from this Python's environment."""
    folder = f"{sys.prefix}{os.sep}"
    for process in psutil.process_iter():
        try:
            other_stack_id = process.environ().get(STACK_VARIABLE, stack_id)
            if other_stack_id != stack_id and "".join(process.cmdline()[:1]).startswith(folder):
                return True
        except psutil.Error:
            continue  # It has ended, or belongs to another user.
    return False


def _find_lock_file() -> Path | None:
    """Return the path of requirements.lock, which only a checkout of the sources has."""
    path = Path(__file__).parents[3] / "requirements.lock"
    return path if path.is_file() else None


def _find_differences(lock_file: Path) -> Iterator[str]:
    for line in lock_file.read_text().splitlines():
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
