"""Runs all checks of ``moyin doctor``, and mends what can be mended safely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from moyin.errors import MoyinError
from moyin.render.comfyui.install import install
from moyin.stack.doctor import configuration, data, machine, services, software
from moyin.stack.doctor.result import CheckResult
from moyin.stack.options import Options

OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fix:
    """A function that mends a problem, and the check to repeat afterwards."""

    check: Callable[[Options], CheckResult]
    repair: Callable[[Options, OnStep], object]


_FIXES: Mapping[str, _Fix] = {
    "secret files": _Fix(
        check=data.check_secret_files,
        repair=lambda options, _: data.close_secret_files(options),
    ),
    "comfyui": _Fix(
        check=software.check_comfyui,
        repair=lambda options, on_step: install(options.settings, on_step),
    ),
    "api key": _Fix(
        check=data.check_api_key,
        repair=lambda options, _: data.replace_api_key(options),
    ),
    "processes": _Fix(
        check=services.check_processes,
        repair=lambda options, _: services.end_processes_left_over(options),
    ),
}


def run_checks(options: Options) -> Iterator[CheckResult]:
    """Run all checks and yield the results. The only side effect is a new data folder."""
    yield machine.check_python()
    yield machine.check_clock(options)
    yield machine.check_processors()
    yield machine.check_memory()
    yield machine.check_folder(options)
    yield machine.check_disk(options)
    yield data.check_secret_files(options)
    yield data.check_database(options)
    yield data.check_api_key(options)
    # Before the ports, which such processes hold.
    yield services.check_processes(options)
    yield services.check_ports(options)
    yield from services.check_running_parts(options)
    yield from services.check_servers(options)
    yield software.check_ray()
    yield from software.check_programs(options)
    yield machine.check_gpu(options)
    yield software.check_comfyui(options)
    yield software.check_isolation(options)
    yield configuration.check_serve_config(options)
    yield configuration.check_shares(options)
    yield configuration.check_model_keys(options)
    yield configuration.check_model_files(options)
    yield configuration.check_templates(options)


def mend(options: Options, on_step: OnStep) -> Iterator[CheckResult]:
    """Run all checks, mend each problem that has a fix, and yield the final results.

    The function ``on_step`` is called with a line of text before each step.
    """
    for result in run_checks(options):
        yield _mend(options, result, on_step) if result.fix else result


def _mend(options: Options, result: CheckResult, on_step: OnStep) -> CheckResult:
    fix = _FIXES[result.name]
    on_step(f"{result.name}: {result.fix}")
    try:
        fix.repair(options, on_step)
    except (MoyinError, OSError) as error:
        message = error.message if isinstance(error, MoyinError) else str(error)
        return replace(result, advice=f"{result.advice} (--fix failed: {message})")
    after = fix.check(options)
    return replace(after, fixed=not after.fix)
