"""`Watchdog` ends a test run that makes no progress.

pytest-timeout ends single tests that take too long. The watchdog covers two other cases: a main
thread that no signal reaches, and pytest-xdist waiting forever because a worker died while the
other workers had no work left. pytest's ``faulthandler_timeout`` prints the stack before.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

# Longer than ``faulthandler_timeout`` in pyproject.toml.
_PATIENCE_SECONDS = 960.0


class Watchdog:
    """Ends the run if no result arrives for 16 minutes.

    A pytest plugin, to be registered in the process that receives the results of all workers.
    """

    def __init__(self) -> None:
        self._heard = time.monotonic()
        self._failures: list[str] = []

    def pytest_sessionstart(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._heard = time.monotonic()
        if report.failed:
            self._failures.append(f"{report.nodeid} ({report.when})\n{report.longreprtext}")

    def _watch(self) -> None:
        while time.monotonic() - self._heard < _PATIENCE_SECONDS:
            time.sleep(5)
        sys.stdout.flush()
        message = f"no test has ended for {_PATIENCE_SECONDS:.0f} s: the run is aborted; the printed stack shows what hangs"
        print("", *self._failures, message, sep="\n", file=sys.__stderr__, flush=True)
        os._exit(3)
