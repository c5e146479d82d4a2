"""Checks this machine for problems that would prevent or slow the stack (``moyin doctor``)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import psutil

from moyin.errors import StackError
from moyin.render.comfyui.bubblewrap import require_confinement
from moyin.render.comfyui.install import find_comfyui
from moyin.render.templates.catalog import list_template_folders, read_templates
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.launch import read_running_state
from moyin.stack.options import Options
from moyin.stack.ports import require_free

_GIB = 1024**3


class CheckVerdict(StrEnum):
    """The verdict of a check; with ``fail`` the stack will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """The result of a check.

    Attributes:
        name: name of the check, such as ``memory``.
        found: what the check has found.
        advice: what to do if the verdict is not ``ok``.
    """

    name: str
    verdict: CheckVerdict
    found: str
    advice: str = ""


def run_checks(options: Options) -> Iterator[CheckResult]:
    """Run all checks and yield the results. The only side effect is a new data folder."""
    yield _check_python()
    yield _check_processors()
    yield _check_memory()
    yield _check_folder(options)
    yield _check_disk(options)
    yield _check_gpu(options)
    yield _check_comfyui(options)
    yield _check_isolation(options)
    yield from _check_programs(options)
    yield _check_serve_config(options)
    yield _check_templates(options)
    yield _check_ports(options)


def _warn_if(is_bad: bool, name: str, found: str, advice: str) -> CheckResult:
    verdict = CheckVerdict.WARN if is_bad else CheckVerdict.OK
    return CheckResult(name=name, verdict=verdict, found=found, advice=advice if is_bad else "")


def _check_python() -> CheckResult:
    found = ".".join(map(str, sys.version_info[:3]))
    is_untested = not (3, 11) <= sys.version_info[:2] <= (3, 13)
    return _warn_if(is_untested, "python", found, "use Python 3.11 to 3.13, which are tested")


def _check_processors() -> CheckResult:
    count = os.cpu_count() or 1
    advice = "Moyin starts in half the time with two or more"
    return _warn_if(count < 2, "processors", str(count), advice)


def _check_memory() -> CheckResult:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} GiB of {memory.total / _GIB:.1f} GiB available"
    # The stack without ComfyUI takes about 2 GiB; each ComfyUI takes half a GiB and its models.
    advice = "less than 4 GiB: stop other programs, or render elsewhere"
    return _warn_if(memory.available < 4 * _GIB, "memory", found, advice)


def _check_folder(options: Options) -> CheckResult:
    return _check_call(
        "data folder", options.layout.prepare, found=f"{options.layout.data} is writable"
    )


def _check_disk(options: Options) -> CheckResult:
    folder = options.layout.data
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    advice = "free some space: ComfyUI takes 2 GiB, pictures and models more"
    return _warn_if(free < 5 * _GIB, "disk", f"{free / _GIB:.0f} GiB free", advice)


def _check_gpu(options: Options) -> CheckResult:
    if options.gpus:
        return CheckResult(
            name="gpu", verdict=CheckVerdict.OK, found=f"{options.gpus} by nvidia-smi"
        )
    return CheckResult(
        name="gpu",
        verdict=CheckVerdict.WARN,
        found="none",
        advice="Ray gets one logical GPU and ComfyUI runs on the CPU, slowly",
    )


def _check_programs(options: Options) -> Iterator[CheckResult]:
    yield _check_call("haproxy", ray.find_haproxy)
    if options.runs_valkey:
        yield _check_call("valkey", lambda: valkey.create_service(options).command[0])
    if options.runs_temporal:
        yield _check_call("temporal", lambda: temporal.create_service(options).command[0])


def _check_comfyui(options: Options) -> CheckResult:
    try:
        installation = find_comfyui(options.settings)
    except StackError as error:
        return CheckResult(
            name="comfyui", verdict=CheckVerdict.WARN, found="none", advice=error.message
        )
    return CheckResult(name="comfyui", verdict=CheckVerdict.OK, found=str(installation.home))


def _check_isolation(options: Options) -> CheckResult:
    """Check that this machine can isolate renders as the app configuration requires."""
    pools = apps.find_isolated_pools(options.serve_config)
    try:
        program = require_confinement()
    except StackError as error:
        return CheckResult(
            name="isolation",
            # Isolation is only needed if the configuration has a pool with `isolation: strict`.
            verdict=CheckVerdict.FAIL if pools else CheckVerdict.WARN,
            found=f"pools {', '.join(pools)} will not start" if pools else "no pool needs it",
            advice=error.message,
        )
    return CheckResult(name="isolation", verdict=CheckVerdict.OK, found=f"strict, with {program}")


def _check_serve_config(options: Options) -> CheckResult:
    problems = apps.find_config_problems(options.serve_config)
    if not problems:
        return CheckResult(
            name="apps", verdict=CheckVerdict.OK, found=f"{options.serve_config} is valid"
        )
    return CheckResult(
        name="apps",
        verdict=CheckVerdict.FAIL,
        found=f"{options.serve_config} is not valid",
        advice=problems[0],
    )


def _check_templates(options: Options) -> CheckResult:
    snapshot = read_templates(list_template_folders(options.settings))
    if not snapshot.problems:
        found = f"{len(snapshot.templates)} are valid"
        return CheckResult(name="templates", verdict=CheckVerdict.OK, found=found)
    return CheckResult(
        name="templates",
        verdict=CheckVerdict.FAIL,
        found=f"{len(snapshot.problems)} files are not valid",
        advice=snapshot.problems[0],
    )


def _check_ports(options: Options) -> CheckResult:
    state = read_running_state(options)
    if state is not None:
        return CheckResult(
            name="ports", verdict=CheckVerdict.OK, found=f"held by this stack ({state.phase})"
        )
    return _check_call(
        "ports",
        lambda: require_free(options.ports, skip=options.unused_ports),
        found=f"all free (gateway: {options.ports.door})",
    )


def _check_call(name: str, work: Callable[[], object], found: str = "") -> CheckResult:
    """Call ``work``, and return a failed check with the message if ``work`` raises `StackError`."""
    try:
        result = work()
    except StackError as error:
        problem, _, advice = error.message.partition(": ")
        return CheckResult(name=name, verdict=CheckVerdict.FAIL, found=problem, advice=advice)
    return CheckResult(name=name, verdict=CheckVerdict.OK, found=found or str(result))
