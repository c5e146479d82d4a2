"""Starts, stops and inspects the running stack for the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

from moyin.errors import StackError
from moyin.stack.apps import find_config_problems, load_serve_config
from moyin.stack.layout import explain_os_errors
from moyin.stack.options import Options
from moyin.stack.patience import Patience
from moyin.stack.ports import require_free_ports
from moyin.stack.state import Phase, StackState, find_lock_holder, read_state
from moyin.system.logfile import read_last_lines
from moyin.system.processes import SERVICE_VARIABLE, end_processes, find_processes

_POLL_SECONDS = 0.1
_START_SECONDS = 400.0
_STOP_SECONDS = 60.0


def read_running_state(options: Options) -> StackState | None:
    """Return the state of the stack that runs in this data folder, or None if none is running."""
    pid = find_lock_holder(options.layout.lock)
    state = read_state(options.layout.state) if pid is not None else None
    # The file may be that of an earlier supervisor until the present one writes its first state.
    return state if state is not None and state.pid == pid else None


def start_stack(options: Options, on_state: Callable[[StackState], None]) -> StackState:
    """Start a supervisor unless one is running; return the stack's state when it is ready.

    The function ``on_state`` is called with the present state every 0.1 seconds. If the stack can't
    start, its processes are ended and `StackError` is raised.
    """
    load_serve_config(options.serve_config, options.ports)
    options.layout.prepare()
    pid = find_lock_holder(options.layout.lock)
    if pid is not None:
        return _wait_until_ready(
            options, pid, on_state, lambda: find_lock_holder(options.layout.lock) == pid
        )
    if not any(find_processes(options.stack_id)):
        # The supervisor checks the ports too, but takes a second to start.
        try:
            require_free_ports(options.ports, ignored_ports=options.unused_ports)
        except StackError:
            options.layout.remove_runtime_files()
            raise
    process = _spawn_supervisor(options)
    return _wait_until_ready(options, process.pid, on_state, lambda: process.poll() is None)


def _spawn_supervisor(options: Options) -> subprocess.Popen[bytes]:
    log_path = options.layout.get_log_path("supervisor")
    with explain_os_errors(log_path), log_path.open("wb") as log_file:
        return subprocess.Popen(
            [sys.executable, "-m", "moyin.stack.supervisor"],
            env=dict(options.source_environ),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )


def _wait_until_ready(
    options: Options, pid: int, on_state: Callable[[StackState], None], is_alive: Callable[[], bool]
) -> StackState:
    patience, progress = Patience(_START_SECONDS), ""
    while patience.observe(progress):
        # Checked before the state is read, so that the last state of an ended supervisor is read.
        was_alive = is_alive()
        state = read_state(options.layout.state)
        if state is not None and state.pid == pid:
            on_state(state)
            progress = _describe_progress(state)
            if state.phase == Phase.READY:
                return state
        if not was_alive:
            raise StackError(_find_failure_reason(options, pid))
        time.sleep(_POLL_SECONDS)
    stop_stack(options)
    raise StackError(
        f"the stack made no progress for {_START_SECONDS:.0f} s and was stopped "
        f"({progress or 'the supervisor wrote no state'}): see `moyin logs supervisor`"
    )


def _describe_progress(state: StackState) -> str:
    """Return the status of each part, and what it waits for."""
    return "; ".join(
        f"{name} {part.status}{part.detail and f': {part.detail}'}"
        for name, part in state.parts.items()
    )


def stop_stack(options: Options) -> bool:
    """Stop the stack, and return True if it was running.

    Raises:
        StackError: the supervisor did not end in time.
    """
    pid = find_lock_holder(options.layout.lock)
    if pid is None:
        ended_count = end_processes(options.stack_id)
        options.layout.remove_runtime_files()
        return ended_count > 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while find_lock_holder(options.layout.lock) == pid:
        if time.monotonic() > deadline:
            raise StackError(
                f"the supervisor (pid {pid}) did not end within {_STOP_SECONDS:.0f} s: "
                "see `moyin logs supervisor`"
            )
        time.sleep(_POLL_SECONDS)
    end_processes(options.stack_id)
    return True


def _find_failure_reason(options: Options, pid: int) -> str:
    state = read_state(options.layout.state)
    if state is not None and state.pid == pid and state.error:
        # An app's error has only one line, but the validation reports every wrong field.
        return "; ".join([state.error, *find_config_problems(options.serve_config)])
    lines = read_last_lines(options.layout.get_log_path("supervisor"), 1)
    return (
        lines[0]
        if lines
        else "the supervisor ended at its start without an error message; try `moyin up --foreground`"
    )


def measure_memory(options: Options) -> dict[str, int]:
    """Return the memory of each part in bytes, with its portion of shared memory (PSS)."""
    bytes_by_part: dict[str, int] = {}
    state = read_running_state(options)
    if state is not None:
        bytes_by_part["supervisor"] = _measure_process(psutil.Process(state.pid))
    for process in find_processes(options.stack_id):
        try:
            part = _find_part(process)
            bytes_by_part[part] = bytes_by_part.get(part, 0) + _measure_process(process)
        except psutil.NoSuchProcess:
            continue
    return bytes_by_part


def _find_part(process: psutil.Process) -> str:
    command_line = " ".join(process.cmdline())
    if command_line.startswith("ray::ServeReplica"):
        return "apps"
    if "Llama" in command_line or "llama" in command_line:
        return "llama.cpp"
    if "--base-directory" in command_line or "ComfyUI" in command_line:
        return "comfyui"
    return process.environ().get(SERVICE_VARIABLE, "ray")


def _measure_process(process: psutil.Process) -> int:
    try:
        memory_bytes: int = process.memory_full_info().pss
    except (psutil.AccessDenied, AttributeError):
        memory_bytes = process.memory_info().rss
    return memory_bytes
