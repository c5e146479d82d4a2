"""Runs ComfyUI's ``main.py`` on an inherited socket, and ends when the parent process ends.

This file is a script for ComfyUI's own interpreter. `ProcessFolder` copies the script to a folder
that the interpreter can read::

    python launcher.py '{"socket": 7, "alive": 8}' /path/to/main.py [arguments of main.py …]

Members of the JSON object:

* ``socket``: descriptor of the listening Unix socket on which ComfyUI serves. ComfyUI opens no
  port, because other users of the machine could connect to it.
* ``alive``: descriptor of a socket or pipe whose other end is open in the parent; absent in a sandbox,
  which ends with the parent.
* ``parent``: the parent's process id; absent in a sandbox.
* ``file_bytes``: size of the largest file that the process may write.
* ``threads``: largest number of threads and processes of the user; absent if the user also runs
  other programs.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    options = json.loads(sys.argv[1])
    if "parent" in options:
        die_with_parent(options["parent"])
    if "alive" in options:
        die_with_pipe(options["alive"])
    limit_resources(options["file_bytes"], options.get("threads"))
    # Garbage collections during the imports would take a seventh of the start's processor time.
    gc.disable()
    listen_on(options["socket"])
    os.chdir(os.environ["TMPDIR"])
    script = sys.argv[2]
    sys.argv = sys.argv[2:]
    # ComfyUI must import modules from the folder of main.py, not from the folder of this file.
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def die_with_parent(parent_pid: int) -> None:
    """Make the kernel kill this process when its parent ends."""
    # SIGKILL, because a hanging CUDA call would ignore other signals and occupy the GPU.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have ended before the line above.
    if os.getppid() != parent_pid:
        os._exit(1)


def die_with_pipe(pipe: int) -> None:
    """Make the kernel kill this process when the other end of the pipe is closed.

    The parent-death signal is not enough: it misses a parent that has ended before it is set up.
    """
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    # SIGKILL works even if a hanging CUDA call blocks Python.
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(pipe, select.POLLHUP)
    # The other end may have been closed before the signal was set up.
    if poll.poll(0):
        os._exit(1)
    os.set_inheritable(pipe, False)


def limit_resources(max_file_bytes: int, max_threads: int | None) -> None:
    """Limit the size of files and the number of threads, and disable core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower_limit(resource.RLIMIT_FSIZE, max_file_bytes)
    if max_threads is not None:
        lower_limit(resource.RLIMIT_NPROC, max_threads)


def lower_limit(resource_kind: int, max_value: int) -> None:
    """Set a resource limit, such as ``RLIMIT_FSIZE``, to ``max_value`` unless it is lower already."""
    _, present_limit = resource.getrlimit(resource_kind)
    if present_limit == resource.RLIM_INFINITY or present_limit > max_value:
        resource.setrlimit(resource_kind, (max_value, max_value))


def listen_on(descriptor: int) -> None:
    """Make the first server that this process starts, ComfyUI's, use the inherited socket."""
    from aiohttp import web

    listening_socket = socket.socket(fileno=descriptor)
    original_site = web.TCPSite

    def create_site(runner: Any, *_address: Any, **_options: Any) -> Any:
        # Only the first server is redirected: servers that nodes start later get their own
        # addresses.
        web.TCPSite = original_site  # type: ignore[misc]
        # Imported libraries have a million objects. ComfyUI's garbage collections after prompts
        # would take half a second to visit these.
        gc.freeze()
        gc.enable()
        return web.SockSite(runner, listening_socket)

    web.TCPSite = create_site  # type: ignore[assignment, misc]


if __name__ == "__main__":
    main()
