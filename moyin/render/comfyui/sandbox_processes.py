"""Finds the processes of a sandbox, and kills those that prompts did not end."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil

from moyin.errors import WorkerLost

__all__ = ["SandboxProcesses"]

_PATIENCE_SECONDS = 2.0
_PAUSE_SECONDS = 0.01


class SandboxProcesses:
    """The processes in the PID namespace of a sandbox.

    Args:
        init: process id of the sandbox's first process, in the namespace of the host.
    """

    def __init__(self, init: int) -> None:
        self.init = init
        self._main: int | None = None
        # The ids inside the sandbox that were checked, and the ids outside of exempt processes.
        self._known: frozenset[int] = frozenset()
        self._settled: frozenset[int] = frozenset()

    @property
    def main(self) -> int | None:
        """ComfyUI's process id in the namespace of the host, or None if ComfyUI is not running."""
        if self._main is None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.init).children()
                self._main = children[0].pid if children else None
        return self._main

    def settle(self) -> None:
        """Exempt all present processes, such as those of node packages, from `end_strays`."""
        with contextlib.suppress(psutil.Error):
            self._settled = frozenset(process.pid for process in self._all())
        self._known = self._inner_ids()

    def end_strays(self) -> None:
        """Kill the processes that were started after `settle`, and wait for their exit (blocking).

        Raises:
            WorkerLost: A process does not end in time.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._inner_ids() - self._known:
            strays = [p for p in self._all() if p.pid not in self._settled and _is_alive(p)]
            if not strays:
                # The new processes are zombies that ComfyUI has not reaped yet.
                self._known = self._inner_ids()
                return
            if time.monotonic() > deadline:
                pids = ", ".join(str(stray.pid) for stray in strays)
                raise WorkerLost(f"processes that a prompt has started can't be killed: {pids}")
            for stray in strays:
                with contextlib.suppress(psutil.Error):
                    stray.kill()
            time.sleep(_PAUSE_SECONDS)

    def _all(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.init).children(recursive=True)
        except psutil.Error:
            return []

    def _inner_ids(self) -> frozenset[int]:
        """Return the process ids in the sandbox's /proc, which excludes the host's processes."""
        try:
            names = [path.name for path in Path(f"/proc/{self.main}/root/proc").iterdir()]
        except OSError:
            return frozenset()  # ComfyUI has ended, and the sandbox with it
        return frozenset(int(name) for name in names if name.isdigit())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
