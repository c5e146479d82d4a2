"""`SandboxProcesses`: finds ComfyUI in a sandbox, and ends processes that prompts left behind."""

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
    """The processes of a sandbox's process namespace.

    Args:
        init: id of the sandbox's first process, as seen outside.
    """

    def __init__(self, init: int) -> None:
        self.init = init
        self._main: int | None = None
        # Ids inside the sandbox that need no look, and ids outside of processes that may stay.
        self._known: frozenset[int] = frozenset()
        self._settled: frozenset[int] = frozenset()

    @property
    def main(self) -> int | None:
        """ComfyUI's process id as seen outside; None: it has not started, or has ended."""
        if self._main is None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.init).children()
                self._main = children[0].pid if children else None
        return self._main

    def settle(self) -> None:
        """Let all present processes stay, such as those of node packages; blocks."""
        with contextlib.suppress(psutil.Error):
            self._settled = frozenset(process.pid for process in self._all())
        self._known = self._inner_ids()

    def end_strays(self) -> None:
        """Kill the processes that were started after `settle`; blocks until they have ended.

        Raises:
            WorkerLost: one does not end.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._inner_ids() - self._known:
            strays = [p for p in self._all() if p.pid not in self._settled and _is_alive(p)]
            if not strays:
                # The new ones are dead, and ComfyUI has not reaped them yet.
                self._known = self._inner_ids()
                return
            if time.monotonic() > deadline:
                raise WorkerLost("processes that a prompt started in ComfyUI do not end")
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
        """Return the ids in the sandbox's own /proc: fast, however many processes run outside."""
        try:
            names = [path.name for path in Path(f"/proc/{self.main}/root/proc").iterdir()]
        except OSError:
            # ComfyUI has ended, and the sandbox with it.
            return frozenset()
        return frozenset(int(name) for name in names if name.isdigit())


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
