"""Runs ComfyUI's ``main.py`` on an inherited socket, and ends when its parent ends.

A script for ComfyUI's own interpreter; `ProcessFolder` copies it to a folder that this can read::

    python launcher.py '{"socket": 7, "alive": 8}' /path/to/main.py [arguments of main.py …]

Members of the JSON:

* ``socket``: descriptor of the listening socket on which ComfyUI serves. ComfyUI opens no port that
  another user of the machine, or another ComfyUI, could reach.
* ``alive``: descriptor of a pipe whose other end the parent holds.
* ``parent``: the parent's process id; missing if bubblewrap ends this process with its parent.
* ``user``, ``groups``: ids of the user and groups to change to; given only to a process of root.
* ``file_bytes``: size of the largest file that may be written.
* ``threads``: limit of the user's threads and processes; missing if the user has other processes.

The kernel's parent-death signal follows the *thread* that forked this process, so `ComfyProcess`
forks from a thread that lives as long as it does.
"""

from __future__ import annotations

import ctypes
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

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_CAPABILITIES = 0x20080522


def main() -> None:
    """Prepare this process, then run ``main.py`` in it."""
    options = json.loads(sys.argv[1])
    if "user" in options:
        become(options["user"], options["groups"])
        # Start again: at its start, Python has run code of the environment's packages as root.
        rest = {name: value for name, value in options.items() if name not in ("user", "groups")}
        os.execv(sys.executable, [sys.executable, __file__, json.dumps(rest), *sys.argv[2:]])
    if "parent" in options:
        die_with(options["parent"])
    require_alive(options["alive"])
    limit_resources(options["file_bytes"], options.get("threads"))
    # A seventh of the start's processor time would go into collecting garbage among imported modules.
    gc.disable()
    serve_on(options["socket"])
    os.chdir(os.environ["TMPDIR"])
    script = sys.argv[2]
    sys.argv = sys.argv[2:]
    # As if main.py had been started directly: ComfyUI imports modules from its folder, and must
    # not find those beside this file.
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def become(user: int, groups: list[int]) -> None:
    """Change to another user for good, without capabilities."""
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # The change of users leaves the inheritable capabilities.
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
    if os.getresuid() != (user, user, user) or "CapEff:\t0000000000000000" not in _status():
        raise OSError(f"could not change to user {user} without capabilities")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    # SIGKILL, because a hanging CUDA call would ignore other signals and hold the GPU.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have ended before the line above.
    if os.getppid() != parent:
        os._exit(1)


def require_alive(pipe: int) -> None:
    """Exit if the parent ended before its death signal was set up."""
    poll = select.poll()
    poll.register(pipe, select.POLLHUP)
    if poll.poll(0):
        os._exit(1)
    os.close(pipe)


def limit_resources(file_bytes: int, threads: int | None) -> None:
    """Limit the size of files and the number of threads; forbid core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower_limit(resource.RLIMIT_FSIZE, file_bytes)
    if threads is not None:
        lower_limit(resource.RLIMIT_NPROC, threads)


def lower_limit(kind: int, value: int) -> None:
    """Set a limit, unless a lower one is set."""
    _, present = resource.getrlimit(kind)
    if present == resource.RLIM_INFINITY or present > value:
        resource.setrlimit(kind, (value, value))


def serve_on(descriptor: int) -> None:
    """Make the first server of this process, which is ComfyUI's, listen on this socket."""
    from aiohttp import web

    listening = socket.socket(fileno=descriptor)
    original_site = web.TCPSite

    def site(runner: Any, *_address: Any, **_options: Any) -> Any:
        # Servers that nodes start later get the address that they ask for.
        web.TCPSite = original_site  # type: ignore[misc]
        # A million objects of imported libraries stay alive. ComfyUI collects garbage after prompts and
        # would stop for half a second to visit them.
        gc.freeze()
        gc.enable()
        return web.SockSite(runner, listening)

    web.TCPSite = site  # type: ignore[assignment, misc]


def _status() -> str:
    return Path("/proc/self/status").read_text()


if __name__ == "__main__":
    main()
