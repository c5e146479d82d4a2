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

__all__ = ["Check", "Verdict", "run_checks"]

_GIB = 1024**3


class Verdict(StrEnum):
    """The verdict of a check; with ``fail`` the stack will not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The result of a check.

    Attributes:
        name: name of the check, such as ``memory``.
        found: what the check has found.
        advice: what to do if the verdict is not ``ok``.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def run_checks(options: Options) -> Iterator[Check]:
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


def _check_python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check(
        name="python",
        verdict=Verdict.OK if supported else Verdict.WARN,
        found=found,
        advice="" if supported else "tested on 3.11 to 3.13",
    )


def _check_processors() -> Check:
    count = os.cpu_count() or 1
    few = count < 2
    return Check(
        name="processors",
        verdict=Verdict.WARN if few else Verdict.OK,
        found=str(count),
        advice="Moyin starts in half the time with two or more" if few else "",
    )


def _check_memory() -> Check:
    memory = psutil.virtual_memory()
    # The stack without ComfyUI takes about 2 GiB; each ComfyUI takes half a GiB and its models.
    low = memory.available < 4 * _GIB
    return Check(
        name="memory",
        verdict=Verdict.WARN if low else Verdict.OK,
        found=f"{memory.available / _GIB:.1f} GiB of {memory.total / _GIB:.1f} GiB available",
        advice="less than 4 GiB: stop other programs, or render elsewhere" if low else "",
    )


def _check_folder(options: Options) -> Check:
    return _check_call(
        "data folder", options.layout.prepare, found=f"{options.layout.data} is writable"
    )


def _check_disk(options: Options) -> Check:
    folder = options.layout.data
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    low = free < 5 * _GIB
    return Check(
        name="disk",
        verdict=Verdict.WARN if low else Verdict.OK,
        found=f"{free / _GIB:.0f} GiB free",
        advice="free some space: ComfyUI takes 2 GiB, pictures and models more" if low else "",
    )


def _check_gpu(options: Options) -> Check:
    if options.gpus:
        return Check(name="gpu", verdict=Verdict.OK, found=f"{options.gpus} by nvidia-smi")
    return Check(
        name="gpu",
        verdict=Verdict.WARN,
        found="none",
        advice="Ray gets one logical GPU and ComfyUI runs on the CPU, slowly",
    )


def _check_programs(options: Options) -> Iterator[Check]:
    yield _check_call("haproxy", ray.find_haproxy)
    if options.runs_valkey:
        yield _check_call("valkey", lambda: valkey.service(options).command[0])
    if options.runs_temporal:
        yield _check_call("temporal", lambda: temporal.service(options).command[0])


def _check_comfyui(options: Options) -> Check:
    try:
        installation = find_comfyui(options.settings)
    except StackError as error:
        return Check(name="comfyui", verdict=Verdict.WARN, found="none", advice=error.message)
    return Check(name="comfyui", verdict=Verdict.OK, found=str(installation.home))


def _check_isolation(options: Options) -> Check:
    """Check that this machine can isolate renders as the app configuration requires."""
    pools = apps.find_isolated_pools(options.serve_config)
    try:
        program = require_confinement()
    except StackError as error:
        return Check(
            name="isolation",
            # Isolation is only needed if the configuration has a pool with `isolation: strict`.
            verdict=Verdict.FAIL if pools else Verdict.WARN,
            found=f"pools {', '.join(pools)} will not start" if pools else "no pool needs it",
            advice=error.message,
        )
    return Check(name="isolation", verdict=Verdict.OK, found=f"strict, with {program}")


def _check_serve_config(options: Options) -> Check:
    problems = apps.find_problems(options.serve_config)
    if not problems:
        return Check(name="apps", verdict=Verdict.OK, found=f"{options.serve_config} is valid")
    return Check(
        name="apps",
        verdict=Verdict.FAIL,
        found=f"{options.serve_config} is not valid",
        advice=problems[0],
    )


def _check_templates(options: Options) -> Check:
    snapshot = read_templates(list_template_folders(options.settings))
    if not snapshot.problems:
        found = f"{len(snapshot.templates)} are valid"
        return Check(name="templates", verdict=Verdict.OK, found=found)
    return Check(
        name="templates",
        verdict=Verdict.FAIL,
        found=f"{len(snapshot.problems)} files are not valid",
        advice=snapshot.problems[0],
    )


def _check_ports(options: Options) -> Check:
    state = read_running_state(options)
    if state is not None:
        return Check(name="ports", verdict=Verdict.OK, found=f"held by this stack ({state.phase})")
    return _check_call(
        "ports",
        lambda: require_free(options.ports, skip=options.unused_ports),
        found=f"all free (gateway: {options.ports.door})",
    )


def _check_call(name: str, work: Callable[[], object], found: str = "") -> Check:
    """Call ``work``, and return a failed check with the message if ``work`` raises `StackError`."""
    try:
        result = work()
    except StackError as error:
        problem, _, advice = error.message.partition(": ")
        return Check(name=name, verdict=Verdict.FAIL, found=problem, advice=advice)
    return Check(name=name, verdict=Verdict.OK, found=found or str(result))
