"""``moyin doctor``: what this machine lacks, and what to do about it."""

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
from moyin.render.comfyui.install import locate
from moyin.render.templates.catalog import read_folders, template_folders
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.launch import running
from moyin.stack.options import Options
from moyin.stack.ports import require_free

__all__ = ["Check", "Verdict", "examine"]

_GIB = 1024**3


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the report. ``advice`` says what to do unless all is well."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(options: Options) -> Iterator[Check]:
    """Look at one thing after the other; makes the data folder, changes nothing else."""
    yield _python()
    yield _processors()
    yield _memory()
    yield _folder(options)
    yield _disk(options)
    yield _graphics(options)
    yield _comfyui(options)
    yield _confinement(options)
    yield from _programs(options)
    yield _serve_config(options)
    yield _templates(options)
    yield _ports(options)


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check(
        name="python",
        verdict=Verdict.OK if supported else Verdict.WARN,
        found=found,
        advice="" if supported else "tested on 3.11 to 3.13",
    )


def _processors() -> Check:
    count = os.cpu_count() or 1
    few = count < 2
    return Check(
        name="processors",
        verdict=Verdict.WARN if few else Verdict.OK,
        found=str(count),
        advice="two or more start in half the time" if few else "",
    )


def _memory() -> Check:
    memory = psutil.virtual_memory()
    # The stack without ComfyUI takes about 2 GiB, each ComfyUI half a GiB and its models.
    low = memory.available < 4 * _GIB
    return Check(
        name="memory",
        verdict=Verdict.WARN if low else Verdict.OK,
        found=f"{memory.available / _GIB:.1f} GiB of {memory.total / _GIB:.1f} GiB available",
        advice="less than 4 GiB: end something, or render elsewhere" if low else "",
    )


def _folder(options: Options) -> Check:
    return _attempt(
        "data folder", options.layout.prepare, found=f"{options.layout.data} can be written"
    )


def _disk(options: Options) -> Check:
    place = options.layout.data
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    low = free < 5 * _GIB
    return Check(
        name="disk",
        verdict=Verdict.WARN if low else Verdict.OK,
        found=f"{free / _GIB:.0f} GiB free",
        advice="ComfyUI's environment takes 2 GiB, pictures and models more" if low else "",
    )


def _graphics(options: Options) -> Check:
    if options.gpus:
        return Check(name="gpu", verdict=Verdict.OK, found=f"{options.gpus} by nvidia-smi")
    return Check(
        name="gpu",
        verdict=Verdict.WARN,
        found="none",
        advice="Ray gets one logical GPU and ComfyUI runs on the CPU, slowly",
    )


def _programs(options: Options) -> Iterator[Check]:
    yield _attempt("haproxy", ray.haproxy)
    if options.own_valkey:
        yield _attempt("valkey", lambda: valkey.service(options).command[0])
    if options.own_temporal:
        yield _attempt("temporal", lambda: temporal.service(options).command[0])


def _comfyui(options: Options) -> Check:
    try:
        found = locate(options.settings)
    except StackError as error:
        return Check(name="comfyui", verdict=Verdict.WARN, found="none", advice=error.message)
    return Check(name="comfyui", verdict=Verdict.OK, found=str(found.home))


def _confinement(options: Options) -> Check:
    """Whether this machine can isolate renders as the apps' file asks for."""
    pools = apps.strict_pools(options.serve_config)
    try:
        program = require_confinement()
    except StackError as error:
        return Check(
            name="isolation",
            # Nothing here renders by it, and perhaps another machine does.
            verdict=Verdict.FAIL if pools else Verdict.WARN,
            found=f"pools {', '.join(pools)} will not start" if pools else "no pool asks for it",
            advice=error.message,
        )
    return Check(name="isolation", verdict=Verdict.OK, found=f"strict, by {program}")


def _serve_config(options: Options) -> Check:
    found = apps.problems(options.serve_config)
    if not found:
        return Check(name="apps", verdict=Verdict.OK, found=f"{options.serve_config} is valid")
    return Check(
        name="apps",
        verdict=Verdict.FAIL,
        found=f"{options.serve_config} is not valid",
        advice=found[0],
    )


def _templates(options: Options) -> Check:
    shelf = read_folders(template_folders(options.settings))
    if not shelf.problems:
        found = f"{len(shelf.templates)} are right"
        return Check(name="templates", verdict=Verdict.OK, found=found)
    return Check(
        name="templates",
        verdict=Verdict.FAIL,
        found=f"{len(shelf.problems)} files are wrong",
        advice=shelf.problems[0],
    )


def _ports(options: Options) -> Check:
    state = running(options)
    if state is not None:
        return Check(name="ports", verdict=Verdict.OK, found=f"held by this stack ({state.phase})")
    return _attempt(
        "ports",
        lambda: require_free(options.ports, skip=options.unused_ports),
        found=f"all free (the door: {options.ports.door})",
    )


def _attempt(name: str, work: Callable[[], object], found: str = "") -> Check:
    """A check that fails with the message of the `StackError` that ``work`` raises."""
    try:
        result = work()
    except StackError as error:
        what, _, advice = error.message.partition(": ")
        return Check(name=name, verdict=Verdict.FAIL, found=what, advice=advice)
    return Check(name=name, verdict=Verdict.OK, found=found or str(result))
