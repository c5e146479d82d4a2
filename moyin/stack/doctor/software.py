"""Checks the programs that the stack runs: Ray, HAProxy, Valkey, Temporal, ComfyUI, bubblewrap."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.bubblewrap import require_confinement
from moyin.render.comfyui.install import find_comfyui
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.doctor.result import CheckResult, check_call, fail, ok, warn, warn_if
from moyin.stack.options import Options, find_executable

# The versions of Ray that pyproject.toml allows.
_RAY_SERIES = "2.60"


def check_ray() -> CheckResult:
    """Check that Ray is the tested version, and that the program `ray` belongs to this Python."""
    version = metadata.version("ray")
    if not version.startswith(f"{_RAY_SERIES}."):
        return fail(
            "ray",
            f"{version}, but Moyin needs {_RAY_SERIES}",
            "install requirements.lock (`make demo`); all nodes need the same version",
        )
    program = Path(find_executable("ray"))
    is_foreign = program.parent != Path(sys.executable).parent
    advice = "install Moyin and Ray in one environment: that program may be another version"
    return warn_if(is_foreign, "ray", f"{version}, {program}", advice)


def check_programs(options: Options) -> Iterator[CheckResult]:
    yield check_call("haproxy", ray.find_haproxy)
    if options.runs_valkey:
        yield check_call("valkey", lambda: valkey.create_service(options).command[0])
    if options.runs_temporal:
        yield check_call("temporal", lambda: temporal.create_service(options).command[0])


def check_comfyui(options: Options) -> CheckResult:
    try:
        installation = find_comfyui(options.settings)
    except StackError as error:
        # A ComfyUI of the user's own is not replaced.
        has_default_home = options.settings.comfyui_home is None
        fix = "install it, which takes some minutes and 2 GiB" if has_default_home else ""
        return warn("comfyui", "none", error.message, fix=fix)
    return ok("comfyui", str(installation.home))


def check_isolation(options: Options) -> CheckResult:
    """Check that this machine can isolate renders as the app configuration requires."""
    pools = apps.find_isolated_pools(options.serve_config)
    try:
        program = require_confinement()
    except StackError as error:
        # Isolation is only needed if the configuration has a pool with `isolation: strict`.
        if pools:
            return fail("isolation", f"pools {', '.join(pools)} will not start", error.message)
        return warn("isolation", "no pool needs it", error.message)
    return ok("isolation", f"strict, with {program}")
