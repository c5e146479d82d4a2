"""Runs all checks of ``moyin doctor``, and mends what can be mended safely."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from moyin.errors import MoyinError
from moyin.render.comfyui.install import install
from moyin.stack.doctor import (
    configuration,
    data,
    databases,
    folder,
    machine,
    packages,
    services,
    software,
)
from moyin.stack.doctor.result import CheckResult, CheckVerdict, OnStep
from moyin.stack.options import Options


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fix:
    """A function that mends a problem, and the check to repeat afterwards."""

    check: Callable[[Options], CheckResult]
    repair: Callable[[Options, OnStep], object]


def _install_again(program: str) -> Callable[[Options, OnStep], object]:
    package = software.PROGRAM_PACKAGES[program]
    return lambda options, _: packages.install_packages(reinstalled_package=package)


# No fix deletes what people made, ends a process of another program, or needs rights that this user
# does not have.
_FIXES: Mapping[str, _Fix] = {
    "packages": _Fix(
        check=packages.check_packages,
        repair=lambda options, _: packages.install_packages(),
    ),
    "disk": _Fix(check=folder.check_disk, repair=folder.free_space),
    "data folder": _Fix(
        check=folder.check_folder,
        repair=lambda options, _: folder.unlock_folder(options),
    ),
    "secret files": _Fix(
        check=data.check_secret_files,
        repair=lambda options, _: data.close_secret_files(options),
    ),
    "signing key": _Fix(
        check=data.check_signing_key,
        repair=lambda options, _: data.replace_signing_key(options),
    ),
    "database": _Fix(
        check=databases.check_database,
        repair=lambda options, _: databases.migrate_database(options),
    ),
    "api key": _Fix(check=data.check_api_key, repair=data.replace_api_key),
    "processes": _Fix(
        check=services.check_processes,
        repair=lambda options, _: services.end_leftover_processes(options),
    ),
    "valkey data": _Fix(check=databases.check_valkey_data, repair=databases.cut_valkey_data),
    "ports": _Fix(
        check=services.check_moved_ports,
        repair=lambda options, _: services.move_ports(options),
    ),
    "haproxy": _Fix(check=software.check_haproxy, repair=_install_again("haproxy")),
    "valkey": _Fix(check=software.check_valkey, repair=_install_again("valkey")),
    "temporal": _Fix(check=software.check_temporal, repair=_install_again("temporal")),
    "comfyui": _Fix(
        check=software.check_comfyui,
        repair=lambda options, on_step: install(options.settings, on_step, repair=True),
    ),
}


def run_checks(options: Options) -> Iterator[CheckResult]:
    """Run all checks and yield the results. Only a missing data folder is created."""
    yield machine.check_python()
    # First, because the other checks use the packages.
    yield packages.check_packages(options)
    yield machine.check_processors()
    yield machine.check_memory()
    # Before the data folder, which cannot be used on a full disk.
    yield folder.check_disk(options)
    yield folder.check_folder(options)
    if folder.has_closed_folders(options):
        return  # The other checks read these folders. `mend_problems` has opened them if it could.
    yield machine.check_clock(options)
    yield data.check_secret_files(options)
    yield databases.check_database(options)
    yield data.check_signing_key(options)
    yield data.check_api_key(options)
    # Before the ports and Valkey's data, which such processes hold.
    yield services.check_processes(options)
    yield services.check_ports(options)
    yield from services.check_running_parts(options)
    yield from services.check_servers(options)
    yield software.check_ray()
    yield from software.check_programs(options)
    if options.runs_valkey:
        yield databases.check_valkey_data(options)
    yield machine.check_gpu(options)
    yield software.check_comfyui(options)
    yield from software.check_audio(options)
    yield software.check_isolation(options)
    yield configuration.check_serve_config(options)
    yield configuration.check_shares(options)
    yield configuration.check_model_keys(options)
    yield configuration.check_model_files(options)
    yield configuration.check_templates(options)


def mend_problems(options: Options, on_step: OnStep) -> Iterator[CheckResult]:
    """Run all checks, mend each problem that has a fix, and yield the final results.

    The function ``on_step`` is called with a line of text before each step.
    """
    for result in run_checks(options):
        yield _mend_problem(options, result, on_step) if result.fix else result


def _mend_problem(options: Options, result: CheckResult, on_step: OnStep) -> CheckResult:
    fix = _FIXES[result.name]
    on_step(f"{result.name}: {result.fix}")
    try:
        fix.repair(options, on_step)
    except (MoyinError, OSError, subprocess.SubprocessError) as error:
        message = error.message if isinstance(error, MoyinError) else str(error)
        return replace(result, advice=f"{result.advice} (--fix failed: {message})")
    repeated_result = fix.check(options)
    return replace(repeated_result, fixed=repeated_result.verdict is CheckVerdict.OK)
