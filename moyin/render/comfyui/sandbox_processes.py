"""Finds the processes of a sandbox, and kills those that a prompt started and did not end."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from moyin.errors import WorkerLost

_KILL_TIMEOUT_SECONDS = 2.0
_PAUSE_SECONDS = 0.01


class SandboxProcesses:
    """The processes in the PID namespace of a sandbox.

    Args:
        init_pid: process id of the sandbox's first process, in the namespace of the host.
    """

    def __init__(self, init_pid: int) -> None:
        self.init_pid = init_pid
        self._main: int | None = None
        # The checked processes by their ids inside the sandbox, and the exempt ones by their ids
        # outside.
        self._known_inner_ids: frozenset[int] = frozenset()
        self._exempt_ids: frozenset[int] = frozenset()

    @property
    def main_pid(self) -> int | None:
        """ComfyUI's process id in the namespace of the host, or None if ComfyUI is not running."""
        if self._main is None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.init_pid).children()
                self._main = children[0].pid if children else None
        return self._main

    def exempt_present_processes(self) -> None:
        """Exempt all present processes from `kill_new_processes`, such as those of node packages."""
        with contextlib.suppress(psutil.Error):
            self._exempt_ids = frozenset(process.pid for process in self._list_processes())
        self._known_inner_ids = self._list_inner_ids()

    def kill_new_processes(self) -> None:
        """Kill the processes that are not exempt, or raise `WorkerLost` if one survives."""
        deadline = time.monotonic() + _KILL_TIMEOUT_SECONDS
        while self._list_inner_ids() - self._known_inner_ids:
            new_processes = [
                p for p in self._list_processes() if p.pid not in self._exempt_ids and _is_alive(p)
            ]
            if not new_processes:
                # The remaining processes are zombies, which ComfyUI has not reaped yet.
                self._known_inner_ids = self._list_inner_ids()
                return
            if time.monotonic() > deadline:
                pids = ", ".join(str(process.pid) for process in new_processes)
                raise WorkerLost(
                    f"processes that a prompt has started can't be killed, so ComfyUI is replaced: {pids}"
                )
            for process in new_processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(_PAUSE_SECONDS)

    def _list_processes(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.init_pid).children(recursive=True)
        except psutil.Error:
            return []

    def _list_inner_ids(self) -> frozenset[int]:
        """Return the process ids in the sandbox's /proc, which excludes the host's processes."""
        try:
            names = [path.name for path in Path(f"/proc/{self.main_pid}/root/proc").iterdir()]
        except OSError:
            return frozenset()  # ComfyUI has ended, and the sandbox with it
        return frozenset(int(name) for name in names if name.isdigit())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
