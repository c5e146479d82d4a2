"""Starting and stopping the supervisor from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from moyin.errors import StackError
from moyin.stack.apps import load_serve_config, problems
from moyin.stack.layout import explain_os_errors
from moyin.stack.lock import holder
from moyin.stack.options import Options
from moyin.stack.ports import require_free
from moyin.stack.state import Phase, StackState, read
from moyin.system.logfile import tail
from moyin.system.processes import end_all, find

__all__ = ["down", "running", "up"]

_POLL_SECONDS = 0.1
_START_SECONDS = 400.0
_STOP_SECONDS = 60.0


def running(options: Options) -> StackState | None:
    """The state of the stack that runs over this data folder; None when none does."""
    pid = holder(options.layout.lock)
    state = read(options.layout.state) if pid is not None else None
    # The supervisor takes the lock a moment before it writes its first state.
    return state if state is not None and state.pid == pid else None


def up(options: Options, told: Callable[[StackState], None]) -> StackState:
    """Start a supervisor, or join the one that is starting, and wait until the stack is ready.

    Args:
        told: gets the state again and again while it starts.

    Raises:
        StackError: it can't start; nothing of it runs then.
    """
    load_serve_config(options.serve_config, options.ports)
    options.layout.prepare()
    pid = holder(options.layout.lock)
    if pid is not None:
        return _follow(options, pid, told, lambda: holder(options.layout.lock) == pid)
    if not any(find(options.stack_id)):
        # Told here as well, at once: the supervisor's start takes a second.
        try:
            require_free(options.ports, skip=options.unused_ports)
        except StackError:
            options.layout.tidy()
            raise
    process = _spawn(options)
    return _follow(options, process.pid, told, lambda: process.poll() is None)


def _spawn(options: Options) -> subprocess.Popen[bytes]:
    log = options.layout.log("supervisor")
    with explain_os_errors(log), log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "moyin.stack.daemon"],
            env=dict(options.given),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _follow(
    options: Options, pid: int, told: Callable[[StackState], None], alive: Callable[[], bool]
) -> StackState:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        living = alive()  # asked first: the last state of one that ended is the one that counts
        state = read(options.layout.state)
        if state is not None and state.pid == pid:
            told(state)
            if state.phase == Phase.READY:
                return state
        if not living:
            raise StackError(_why(options, pid))
        time.sleep(_POLL_SECONDS)
    down(options)
    raise StackError(f"not ready after {_START_SECONDS:.0f} s: see `moyin logs supervisor`")


def down(options: Options) -> bool:
    """Stop the stack and wait until nothing of it is left; False when nothing ran.

    Raises:
        StackError: the supervisor does not end.
    """
    pid = holder(options.layout.lock)
    if pid is None:
        left = end_all(options.stack_id)
        options.layout.tidy()
        return left > 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while holder(options.layout.lock) == pid:
        if time.monotonic() > deadline:
            raise StackError(
                f"the supervisor (pid {pid}) does not end: see `moyin logs supervisor`"
            )
        time.sleep(_POLL_SECONDS)
    end_all(options.stack_id)
    return True


def _why(options: Options, pid: int) -> str:
    state = read(options.layout.state)
    if state is not None and state.pid == pid and state.error:
        # An app says no more than its last words of what is wrong in the file.
        return "; ".join([state.error, *problems(options.serve_config)])
    lines = tail(options.layout.log("supervisor"), 1)
    return lines[0] if lines else "the supervisor ended without a word"
