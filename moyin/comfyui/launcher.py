"""Runs ComfyUI's ``main.py`` on a socket that it was given, and never longer than its parent lives.

A script for ComfyUI's own interpreter; `ProcessFolder` copies it to where that may read it::

    python launcher.py '{"socket": 7, "alive": 8}' /path/to/main.py [arguments of main.py …]

Members of the JSON:

* ``socket``: descriptor of the listening socket on which ComfyUI serves. No port exists that another
  user of the machine, or another ComfyUI, could reach.
* ``alive``: descriptor of a pipe whose other end the parent holds.
* ``parent``: its process id; missing where bubblewrap sees to it that we end with it.
* ``user``, ``groups``: who to become; where they are there, we have the right to.
* ``file_bytes``: of the largest file that may be written.
* ``threads``: that the user may have, processes included; missing where the user has others as well.

The parent's death is that of the *thread* which forked us, so `ComfyProcess` forks from a thread
that lives as long as it does.
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
    given = json.loads(sys.argv[1])
    if "user" in given:
        become(given["user"], given["groups"])
        # Python has read what the environment's packages put into its start by now, as if it were
        # somebody else: begin again as who we are.
        rest = {name: value for name, value in given.items() if name not in ("user", "groups")}
        os.execv(sys.executable, [sys.executable, __file__, json.dumps(rest), *sys.argv[2:]])
    if "parent" in given:
        die_with(given["parent"])
    require_alive(given["alive"])
    limit(given["file_bytes"], given.get("threads"))
    # Until it serves: the search for garbage among what is imported and stays is a seventh of the
    # processor time of a start.
    gc.disable()
    serve_on(given["socket"])
    os.chdir(os.environ["TMPDIR"])
    script = sys.argv[2]
    sys.argv = sys.argv[2:]
    # As if it had been started directly: ComfyUI imports its modules from beside main.py, and
    # must not find this file's neighbours.
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def become(user: int, groups: list[int]) -> None:
    """Become another user for good, with no capability left."""
    os.setgroups(groups)
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # What the change of users leaves are those that programs may inherit.
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")
    if os.getresuid() != (user, user, user) or "CapEff:\t0000000000000000" not in _status():
        raise OSError("still somebody else, or with capabilities")


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone."""
    # KILL: a wedged CUDA call would sit out anything gentler and hold the card.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # The parent may have gone before the line above.
    if os.getppid() != parent:
        os._exit(1)


def require_alive(pipe: int) -> None:
    """Exit when the parent went before the kernel was told to end us with it."""
    poll = select.poll()
    poll.register(pipe, select.POLLHUP)
    if poll.poll(0):
        os._exit(1)
    os.close(pipe)


def limit(file_bytes: int, threads: int | None) -> None:
    """Bound what a node can do to the machine; leave no memory of a crash on the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower(resource.RLIMIT_FSIZE, file_bytes)
    if threads is not None:
        lower(resource.RLIMIT_NPROC, threads)


def lower(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    if most == resource.RLIM_INFINITY or most > value:
        resource.setrlimit(kind, (value, value))


def serve_on(descriptor: int) -> None:
    """Have the first server of this process, which is ComfyUI's, listen on this socket."""
    from aiohttp import web

    listening = socket.socket(fileno=descriptor)
    on_port = web.TCPSite

    def site(runner: Any, *_address: Any, **_more: Any) -> Any:
        # Others, which nodes may start, get what they ask for.
        web.TCPSite = on_port  # type: ignore[misc]
        # A million objects of imported libraries stay: ComfyUI, which looks for garbage after
        # prompts, would stand still for half a second each time to go through them.
        gc.freeze()
        gc.enable()
        return web.SockSite(runner, listening)

    web.TCPSite = site  # type: ignore[assignment, misc]


def _status() -> str:
    return Path("/proc/self/status").read_text()


if __name__ == "__main__":
    main()
