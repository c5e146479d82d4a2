"""Asks the first process of a sandbox to kill the processes that a prompt started and did not end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import psutil

from moyin.errors import WorkerLost

# Longer than ``sandbox_init.py`` tries to kill processes, so that its answer says which remain.
_ANSWER_SECONDS = 20.0
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_NAMED_PIDS = 10
# ComfyUI is the first process that the sandbox's first process starts.
_MAIN_INNER_PID = "2"


class SandboxProcesses:
    """The processes in the PID namespace of a sandbox.

    Args:
        init_pid: process id of the sandbox's first process, which runs ``sandbox_init.py``, in the
            namespace of the host.
        control: socket of requests to that process; its owner closes it.

    Attributes:
        init_descriptor: descriptor that is readable when all processes of the sandbox have ended.
    """

    def __init__(self, init_pid: int, control: socket.socket) -> None:
        self.init_pid = init_pid
        self._control = control
        self._control.settimeout(_ANSWER_SECONDS)
        self._main: int | None = None
        self._lock = threading.Lock()
        # Other than the id, the descriptor never refers to another process.
        self.init_descriptor = os.pidfd_open(init_pid)

    @property
    def main_pid(self) -> int | None:
        """ComfyUI's process id in the namespace of the host, or None if ComfyUI is not running."""
        if self._main is None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.init_pid).children()
                pids = [child.pid for child in children]
                self._main = next((pid for pid in pids if _is_main(pid)), None)
        return self._main

    def exempt_present_processes(self) -> None:
        """Exempt all present processes from `kill_new_processes`, such as those of node packages.

        Blocks. Raises `WorkerLost` if the sandbox does not answer.
        """
        self._request("exempt")

    def kill_new_processes(self) -> int:
        """Kill the processes that are not exempt; blocks.

        Returns how many new processes the sandbox has refused since the last call, because it had
        its largest number of processes. Raises `WorkerLost` if a process may be left; then the
        whole sandbox must be ended.
        """
        answer = self._request("kill")
        if answer["remaining"]:
            pids = ", ".join(map(str, answer["remaining"][:_MAX_NAMED_PIDS]))
            raise WorkerLost(
                f"processes that a prompt has started do not end, so ComfyUI is replaced: {pids}"
            )
        return int(answer["refused"])

    def kill_all(self) -> None:
        """Kill the sandbox's first process, with which the kernel ends all others."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init_descriptor, signal.SIGKILL)

    def close(self) -> None:
        os.close(self.init_descriptor)

    def _request(self, request: str) -> dict[str, Any]:
        try:
            with self._lock:
                self._control.send(request.encode())
                answer = self._control.recv(_MAX_ANSWER_BYTES)
        except OSError as error:
            # A late answer must not be taken for that of a later request.
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
            raise WorkerLost(
                f"the sandbox does not answer, so ComfyUI is replaced: {error}"
            ) from error
        if not answer:
            raise WorkerLost("the sandbox has ended, so ComfyUI is replaced")
        message: dict[str, Any] = json.loads(answer)
        return message


def _is_main(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return line.split()[-1] == _MAIN_INNER_PID
    return False
