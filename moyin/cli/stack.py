"""Implements the commands that run the stack, such as ``moyin up``, ``down`` and ``status``."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from moyin.cli.screen import (
    AsJsonLines,
    AsLocalJson,
    errors,
    out,
    print_json,
    print_json_line,
    print_outcome,
    print_pairs,
    print_table,
)
from moyin.cli.stack_view import StartProgress, print_checks, print_ready, print_state
from moyin.domain.serialization import to_plain
from moyin.errors import StackError
from moyin.stack import apps, launch, ray
from moyin.stack.doctor.checkup import mend_problems, run_checks
from moyin.stack.doctor.result import CheckVerdict
from moyin.stack.entrance import check_entrance
from moyin.stack.launch import measure_memory
from moyin.stack.options import Options
from moyin.stack.ports import Ports
from moyin.stack.state import Phase
from moyin.stack.supervisor import run_supervisor
from moyin.system.logfile import read_last_lines

PortBaseOption = Annotated[
    int | None,
    typer.Option(
        "--port-base", help="First port: the gateway gets this port, other services the next ones."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="App configuration to deploy (default: serve_config.yaml)."),
]
_LOG_POLL_SECONDS = 0.3


def register_commands(app: typer.Typer) -> None:
    for command in (up, down, deploy, status, doctor, logs, ray_env):
        app.command()(command)
    # The previous name of `ray-env`, which the next version removes.
    app.command("switches", hidden=True)(ray_env)


def up(
    port_base: PortBaseOption = None,
    config: ConfigOption = None,
    foreground: Annotated[
        bool,
        typer.Option("--foreground", help="Stay in the foreground, for systemd and containers."),
    ] = False,
    as_json: AsLocalJson = False,
) -> None:
    """Start all services and wait until they are ready; do nothing if they are already running.

    With --json the state is printed as by `moyin status --json`, without the API key.
    """
    if foreground and as_json:
        raise typer.BadParameter("--json cannot be combined with --foreground, which prints a log")
    options = Options.read(port_base=port_base, serve_config=config)
    if foreground:
        run_supervisor(options)
        return
    state = launch.read_running_state(options)
    if state is not None and state.phase in (Phase.READY, Phase.DEGRADED):
        notice = f"Moyin is up already: {state.addresses['gateway']} (see `moyin status`)"
        print_outcome(to_plain(state), notice, as_json=as_json)
        return
    with StartProgress() as progress:
        state = launch.start_stack(options, progress.update)
    if as_json:
        print_json(to_plain(state))
    else:
        print_ready(options, state)


def down(as_json: AsLocalJson = False) -> None:
    """Stop all services and wait until every process has ended."""
    options = Options.read()
    started_at = time.monotonic()
    with errors.status("stopping …") if errors.is_terminal else nullcontext():
        was_running = launch.stop_stack(options)
    seconds = time.monotonic() - started_at
    print_outcome(
        {"phase": Phase.STOPPED, "was_running": was_running, "seconds": round(seconds, 1)},
        f"Moyin is down after {seconds:.1f} s" if was_running else "Moyin was not running",
        as_json=as_json,
    )


def deploy(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="App configuration to deploy (default: the one deployed last)."
        ),
    ] = None,
    as_json: AsLocalJson = False,
) -> None:
    """Deploy the app configuration; hot-reloadable settings apply without downtime."""
    running_options = Options.read()
    state = launch.read_running_state(running_options)
    if state is None:
        raise StackError("Moyin is not running: `moyin up` starts it and deploys the apps")
    ports = Ports(**state.ports)
    if config is None and "MOYIN_SERVE_CONFIG" not in os.environ:
        config = apps.read_last_deployed_path(running_options)
    options = Options.read({**os.environ, **ports.to_environ()}, serve_config=config)
    with errors.status("deploying …") if errors.is_terminal else nullcontext() as spinner:
        apps.load_serve_config(options.serve_config, ports)
        if problems := apps.find_config_problems(options.serve_config):
            raise StackError(f"{options.serve_config} is not valid: {'; '.join(problems)}")

        def on_progress(text: str) -> None:
            if spinner is not None:
                spinner.update(f"deploying … {text}")
            else:
                errors.print(text, markup=False)

        asyncio.run(apps.deploy_apps(options, on_progress))
    print_outcome(
        {"deployed": str(options.serve_config)},
        f"{options.serve_config.name} is deployed",
        as_json=as_json,
    )


def status(
    memory: Annotated[
        bool, typer.Option("--memory", help="Show the memory of each service too.")
    ] = False,
    as_json: AsLocalJson = False,
) -> None:
    """Show the state of all services; exit 1 unless they are ready."""
    options = Options.read()
    state = launch.read_running_state(options)
    if state is None:
        out.print('{"phase": "stopped"}' if as_json else "Moyin is not running")
        raise typer.Exit(1)
    state = check_entrance(options, state)
    if as_json:
        plain_state = to_plain(state)
        if memory:
            plain_state["memory"] = measure_memory(options)
        print_json(plain_state)
    else:
        print_state(options, state)
        if memory:
            _print_memory(options)
    if state.phase != Phase.READY:
        raise typer.Exit(1)


def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended without loss, then check again.")
    ] = False,
    as_json: AsLocalJson = False,
) -> None:
    """Check this machine for problems; exit 1 if any are found.

    Piped output has tab-separated verdict, check, finding and advice.
    """
    options = Options.read()

    def on_step(text: str) -> None:
        errors.print(text, markup=False, style="dim")

    checks = list(mend_problems(options, on_step) if fix else run_checks(options))
    if as_json:
        print_json([to_plain(check) for check in checks])
    elif out.is_terminal:
        print_checks(checks)
    else:
        print_table((), [(c.verdict, c.name, c.found, c.advice) for c in checks])
    if any(check.verdict == CheckVerdict.FAIL for check in checks):
        raise typer.Exit(1)


def logs(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="supervisor, valkey, temporal, ray, or an app.")
    ],
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="Number of lines.")] = 100,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Keep printing new lines.")
    ] = False,
    as_json: AsJsonLines = False,
) -> None:
    """Print the last lines of a log.

    With --json, a line that is a JSON object, as in the logs of apps, is printed as it is. Any
    other line becomes the member `message` of an object.
    """
    layout = Options.read().layout
    path = layout.get_log_path(name)
    if not path.is_file():
        paths = layout.list_app_logs(name)
        if not paths:
            known_names = {
                *(p.stem for p in layout.logs.glob("*.log")),
                *layout.list_apps_with_logs(),
            }
            raise StackError(
                f"there is no log {name!r}; available: {', '.join(sorted(known_names)) or 'none yet'}"
            )
        path = paths[-1]
    print_line = _print_as_object if as_json else partial(print, flush=True)
    for line in read_last_lines(path, lines):
        print_line(line)
    if follow:
        for line in _follow_log(path):
            print_line(line)


def ray_env(as_json: AsLocalJson = False) -> None:
    """Print the environment variables that a Ray node needs, for `eval` before `ray start`."""
    variables = ray.build_ray_environ()
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def _print_memory(options: Options) -> None:
    memory_by_service = measure_memory(options)
    out.print("[dim]memory[/]")
    rows = [
        *sorted(memory_by_service.items(), key=lambda item: -item[1]),
        ("total", sum(memory_by_service.values())),
    ]
    print_pairs(((name, f"{size / 2**20:6.0f} MiB") for name, size in rows), indent=4)


def _print_as_object(line: str) -> None:
    """Print a log line as JSON: as it is if it is an object, or else as an object's ``message``."""
    try:
        parsed_line = json.loads(line)
    except (ValueError, RecursionError):
        parsed_line = None
    print_json_line(parsed_line if isinstance(parsed_line, dict) else {"message": line})


def _follow_log(path: Path) -> Iterator[str]:
    """Yield the lines that are added to a log from now on."""
    with path.open(errors="replace") as file:
        file.seek(0, os.SEEK_END)
        unfinished_line = ""
        while True:
            *lines, unfinished_line = (unfinished_line + file.read()).split("\n")
            yield from lines
            time.sleep(_LOG_POLL_SECONDS)
