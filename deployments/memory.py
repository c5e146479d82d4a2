"""Limits the memory of a replica."""

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
    """End this process once it uses more than ``limit_mib`` MiB; Serve starts another.

    A leak then ends the leaking replica and no other process. Without the limit, Ray or the kernel
    would kill an arbitrary process when the machine runs out of memory. Further calls have no effect.

    Args:
        limit_mib: limit of resident memory; 0 for none.
    """
    if limit_mib:
        threading.Thread(target=_watch, args=(limit_mib,), name="memory", daemon=True).start()


def _watch(limit_mib: int) -> None:
    process, pause = psutil.Process(), threading.Event()
    while not pause.wait(_INTERVAL_SECONDS):
        held = process.memory_info().rss
        if held > limit_mib * _MIB:
            _log.critical(
                "this replica uses %d MiB of memory, the limit is %d: ending it",
                held // _MIB,
                limit_mib,
            )
            # Exit handlers and the interpreter's clean-up might need more memory.
            os._exit(_EXIT_STATUS)
