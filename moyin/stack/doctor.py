"""Checks this machine for problems that would prevent or slow the stack (``moyin doctor``)."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

from moyin.errors import StackError
from moyin.render.comfyui.bubblewrap import require_confinement
from moyin.render.comfyui.install import find_comfyui
from moyin.render.templates.catalog import list_template_folders, read_templates
from moyin.stack import apps, ray, temporal, valkey
from moyin.stack.launch import read_running_state
from moyin.stack.options import Options, find_executable
from moyin.stack.ports import require_free

_GIB = 1024**3
# The versions of Ray that pyproject.toml allows.
_RAY_SERIES = "2.60"
_MAX_CLOCK_SECONDS = 60
_DATABASE_SECONDS = 10
T = TypeVar("T")


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
        found: a description of what was found, for the user.
        advice: the remedy if the verdict is not ``ok``.
    """

    name: str
    verdict: CheckVerdict
    found: str
    advice: str = ""


def run_checks(options: Options) -> Iterator[CheckResult]:
    """Run all checks and yield the results. The only side effect is a new data folder."""
    yield _check_python()
    yield _check_ray()
    yield _check_clock(options)
    yield _check_processors()
    yield _check_memory()
    yield _check_folder(options)
    yield _check_disk(options)
    yield _check_gpu(options)
    yield _check_comfyui(options)
    yield _check_isolation(options)
    yield from _check_programs(options)
    yield _check_serve_config(options)
    yield _check_model_keys(options)
    yield _check_model_files(options)
    yield _check_templates(options)
    yield _check_database(options)
    yield _check_ports(options)


def _warn_if(is_bad: bool, name: str, found: str, advice: str) -> CheckResult:
    verdict = CheckVerdict.WARN if is_bad else CheckVerdict.OK
    return CheckResult(name=name, verdict=verdict, found=found, advice=advice if is_bad else "")


def _check_python() -> CheckResult:
    found = ".".join(map(str, sys.version_info[:3]))
    is_untested = not (3, 11) <= sys.version_info[:2] <= (3, 13)
    return _warn_if(is_untested, "python", found, "use Python 3.11 to 3.13, which are tested")


def _check_ray() -> CheckResult:
    """Check that Ray has the tested version, and that `ray` belongs to this environment."""
    version = metadata.version("ray")
    if not version.startswith(f"{_RAY_SERIES}."):
        return CheckResult(
            name="ray",
            verdict=CheckVerdict.FAIL,
            found=f"{version}, but Moyin needs {_RAY_SERIES}",
            advice="install requirements.lock (`make demo`); all nodes need the same version",
        )
    program = Path(find_executable("ray"))
    is_foreign = program.parent != Path(sys.executable).parent
    advice = "install Moyin and Ray in one environment: that program may be another version"
    return _warn_if(is_foreign, "ray", f"{version}, {program}", advice)


def _check_clock(options: Options) -> CheckResult:
    """Check that the clock was not set back: no file of the last run may be from the future."""
    layout = options.layout
    files = [layout.state, layout.temporal_db, *layout.logs.glob("*.log")]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    behind = newest - time.time()
    if behind <= _MAX_CLOCK_SECONDS:
        found = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return CheckResult(name="clock", verdict=CheckVerdict.OK, found=found)
    return CheckResult(
        name="clock",
        verdict=CheckVerdict.FAIL,
        found=f"{behind:,.0f} s behind the files of the last run",
        advice="set the clock (`timedatectl set-ntp true`): tokens, links and timers depend on it",
    )


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


def _check_model_keys(options: Options) -> CheckResult:
    """Check that the variables with the keys of configured back ends are set."""
    missing = [
        f"{backend['name']} ({variable})"
        for backend in apps.find_text_backends(options.serve_config)
        if (variable := _find_key_variable(backend, options)) is not None
    ]
    found = f"missing for {', '.join(missing)}" if missing else "all are set"
    advice = "set the variable before `moyin up`, or remove the back end; it is not called without"
    return _warn_if(bool(missing), "model keys", found, advice)


def _find_key_variable(backend: Mapping[str, Any], options: Options) -> str | None:
    """Return the variable that must have a back end's key, or None if it is set or not needed."""
    variable = backend.get("api_key_env")
    if variable is None and backend.get("type") == "anthropic":
        variable = "ANTHROPIC_API_KEY"
        if options.settings.anthropic_api_key:
            return None
    return None if variable is None or os.environ.get(str(variable)) else str(variable)


def _check_model_files(options: Options) -> CheckResult:
    """Check that the model files of embedded llama.cpp servers exist on this machine."""
    paths = [
        Path(str(server["gguf"]))
        for backend in apps.find_text_backends(options.serve_config)
        if isinstance(server := backend.get("server"), dict) and server.get("gguf")
    ]
    missing = [str(path) for path in paths if not path.is_file()]
    if not missing:
        return CheckResult(name="model files", verdict=CheckVerdict.OK, found="none is missing")
    return CheckResult(
        name="model files",
        verdict=CheckVerdict.FAIL,
        found=f"{', '.join(missing)} is missing",
        advice="put the file there, on every node, or correct `gguf` in the app configuration",
    )


def _check_database(options: Options) -> CheckResult:
    """Check that the database can be read, and that its schema belongs to this version."""
    # Imported here, because the SQL libraries take as long to import as most commands to run.
    from sqlalchemy.exc import SQLAlchemyError

    from moyin.store.sql import get_newest_revision, read_revision

    def fail(found: str, advice: str) -> CheckResult:
        return CheckResult(name="database", verdict=CheckVerdict.FAIL, found=found, advice=advice)

    try:
        revision = asyncio.run(_read_in_time(read_revision(options.settings.sql_url)))
    except (OSError, SQLAlchemyError, StackError) as error:
        return fail(
            f"cannot be read ({type(error).__name__})",
            "start the server that MOYIN_DATABASE_URL names, or correct its address and password"
            if options.settings.database_url
            else "restore a backup of moyin.db in the data folder, or move it away to begin anew",
        )
    newest = get_newest_revision()
    if revision is not None and revision > newest:
        return fail(
            f"revision {revision} is newer than this Moyin ({newest})",
            "update Moyin, or restore a backup of the database",
        )
    if revision != newest and options.settings.database_url:
        return fail(f"revision {revision or 'none'} of {newest}", "run `moyin migrate`")
    found = f"revision {newest}" if revision == newest else "`moyin up` migrates it"
    return CheckResult(name="database", verdict=CheckVerdict.OK, found=found)


async def _read_in_time(reading: Awaitable[T]) -> T:
    async with asyncio.timeout(_DATABASE_SECONDS):
        return await reading


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
    """Call ``work`` and return the result of the check: failed if ``work`` raises `StackError`."""
    try:
        result = work()
    except StackError as error:
        problem, _, advice = error.message.partition(": ")
        return CheckResult(name=name, verdict=CheckVerdict.FAIL, found=problem, advice=advice)
    return CheckResult(name=name, verdict=CheckVerdict.OK, found=found or str(result))
