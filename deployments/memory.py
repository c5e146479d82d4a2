"""What a replica holds in memory: a bound on it."""

from __future__ import annotations

import functools
import logging
import os
import threading

import psutil

__all__ = ["guard_memory"]

_log = logging.getLogger(__name__)
_INTERVAL_SECONDS = 0.5
_EXIT_STATUS = 70
_MIB = 2**20


@functools.cache
def guard_memory(limit_mib: int) -> None:
    """End this process once it holds more than ``limit_mib`` MiB; Serve starts another.

    So a leak ends the leaking app and no other: when the machine runs full, whom Ray or the kernel
    kills is chance. Called again, as Serve does for its second server, it goes on as it is.

    Args:
        limit_mib: resident memory; 0: no bound.
    """
    if limit_mib:
        threading.Thread(target=_watch, args=(limit_mib,), name="memory", daemon=True).start()


def _watch(limit_mib: int) -> None:
    process, pause = psutil.Process(), threading.Event()
    while not pause.wait(_INTERVAL_SECONDS):
        held = process.memory_info().rss
        if held > limit_mib * _MIB:
            _log.critical("%d MiB held, %d allowed: this replica ends", held // _MIB, limit_mib)
            # A handler, or the interpreter's own tidying up, might need memory and time.
            os._exit(_EXIT_STATUS)
