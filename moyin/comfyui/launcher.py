"""Runs ComfyUI's ``main.py`` so that it never outlives the process that started it.

A script for ComfyUI's own interpreter; it uses nothing but the standard library::

    python launcher.py PARENT_PID /path/to/main.py [arguments of main.py …]

The parent's death is that of the *thread* which forked us, so `ComfyProcess` forks from a thread
that lives as long as it does.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone."""
    # KILL: a wedged CUDA call would sit out anything gentler and hold the card.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have gone before the line above.
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    die_with(int(sys.argv[1]))
    script = sys.argv[2]
    sys.argv = sys.argv[2:]
    # As if it had been started directly: ComfyUI imports its modules from beside main.py, and
    # must not find this file's neighbours.
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
