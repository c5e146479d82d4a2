"""The processes in a sandbox: which of them is ComfyUI, and which a prompt has left behind."""

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
    """What lives in the process namespace whose first process has the id ``init`` out here."""

    def __init__(self, init: int) -> None:
        self.init = init
        self._main: int | None = None
        # Their ids in there.
        self._known: frozenset[int] = frozenset()
        self._settled: frozenset[int] = frozenset()

    @property
    def main(self) -> int | None:
        """ComfyUI's process id out here; None: it is not there yet, or no more."""
        if self._main is None:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(self.init).children()
                self._main = children[0].pid if children else None
        return self._main

    def settle(self) -> None:
        """Whatever is there now may stay, such as what node packages have started; blocks."""
        with contextlib.suppress(psutil.Error):
            self._settled = frozenset(found.pid for found in self._all())
        self._known = self._listed()

    def end_strays(self) -> None:
        """Kill what was not there at first; blocks, but for a moment only when there is something.

        Raises:
            WorkerLost: something does not end.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._listed() - self._known:
            strays = [p for p in self._all() if p.pid not in self._settled and _lives(p)]
            if not strays:
                # Only the dead, which ComfyUI has not asked for yet.
                self._known = self._listed()
                return
            if time.monotonic() > deadline:
                raise WorkerLost("processes that a prompt has left in ComfyUI do not end")
            for stray in strays:
                with contextlib.suppress(psutil.Error):
                    stray.kill()
            time.sleep(_PAUSE_SECONDS)

    def _all(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.init).children(recursive=True)
        except psutil.Error:
            return []

    def _listed(self) -> frozenset[int]:
        """Ids as the sandbox's own /proc has them: a look at one folder, whatever else runs here."""
        try:
            names = [path.name for path in Path(f"/proc/{self.main}/root/proc").iterdir()]
        except OSError:
            # It has ended, and all else with it.
            return frozenset()
        return frozenset(int(name) for name in names if name.isdigit())


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
