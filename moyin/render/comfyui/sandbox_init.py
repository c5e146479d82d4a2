"""Runs as the first process of a sandbox: starts ComfyUI, and kills what prompts leave behind.

This file is a script for ComfyUI's own interpreter. `ProcessFolder` copies it to a folder that the
interpreter can read; ``-I -S`` keep Python from running code of installed packages::

    python -I -S sandbox_init.py '{"control": 7, …}' command [arguments of the command …]

Members of the JSON object:

* ``control``: descriptor of a socket of packets, each of which is a request from the parent:
  ``exempt`` or ``kill``. This process ends, and its sandbox with it, when the parent's end is closed.
* ``socket``: descriptor that the command inherits, besides those of its standard streams.
* ``user``, ``groups``: ids of the user and groups to change to; present only if this user is root.
* ``processes``: largest number of processes in the sandbox.
* ``seccomp``: number of the system call `seccomp`.
* ``fork_filter``: seccomp filter in hexadecimal that asks this process for each new process.

**Why nothing outruns a kill.** The kernel asks this process before a process of the sandbox creates
another one (a seccomp filter with user notification; threads are excluded). While this process kills,
it answers none, so that the number of processes can only fall. The calls that were permitted before
are the exception: such a caller may create one more process, which cannot create any. A listing that
shows neither caller nor process can miss both only if the caller ends during it; then the next one
shows the process. So two empty listings in a row prove that no process is left. Signals that stop
processes would prove less: a timer, the death of a parent or an orphaned process group continue them.

Processes of the sandbox cannot reach this process, although they have the same user: the kernel drops
the signals that they send to the first process of their namespace, and hides the memory and the
descriptors of a process that is not dumpable. If this process fails or ends, the sandbox ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_DUMPABLE = 4
_CAPABILITIES = 0x20080522
# Constants and structures of <linux/seccomp.h>.
_SET_MODE_FILTER, _NEW_LISTENER, _CONTINUE = 1, 8, 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION_BYTES = 80
_RESPONSE = "=QqiI"
# Processes with much memory take long to end, above all where many end at once.
_KILL_SECONDS = 15.0
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.0005, 0.05
_MAX_REQUEST_BYTES = 64
_MAX_ZOMBIES = 1000
# Places of members in /proc/<pid>/stat, counted from the state, which follows the process's name.
_STATE, _THREADS, _START_TIME = 0, 17, 19


def main() -> None:
    options = json.loads(sys.argv[1])
    control, listening = options["control"], options["socket"]
    close_descriptors_except({0, 1, 2, control, listening})
    if "user" in options:
        change_user(options["user"], options["groups"])
    protect_from_sandbox()
    main_pid, gate = start_command(sys.argv[2:], options, {0, 1, 2, listening})
    os.close(listening)
    SandboxInit(
        control=control, gate=gate, main_pid=main_pid, max_processes=options["processes"]
    ).run()


class SandboxInit:
    """Permits new processes, kills processes on request, and reaps those that have ended.

    Args:
        control: descriptor of the socket of requests.
        gate: descriptor on which the kernel asks for permission to create processes.
        main_pid: id of ComfyUI, with which the sandbox ends.
        max_processes: largest number of processes in the sandbox.
    """

    def __init__(self, *, control: int, gate: int, main_pid: int, max_processes: int) -> None:
        self._control = socket.socket(fileno=control)
        self._gate = gate
        self._main_pid = main_pid
        self._max_processes = max_processes
        # The id and the start time of exempt processes, because an id is used again.
        self._exempt: set[tuple[int, int]] = set()
        # At least the number of processes; counting them for each new one would be slow.
        self._upper_count = max_processes
        self._refused_count = 0

    def run(self) -> NoReturn:
        poll = select.poll()
        main = os.pidfd_open(self._main_pid)
        for descriptor in (self._control.fileno(), self._gate, main):
            poll.register(descriptor, select.POLLIN)
        while True:
            # Without POLLIN, the gate only reports that the processes behind it have ended.
            ready = {descriptor for descriptor, event in poll.poll() if event != select.POLLHUP}
            self._reap()
            if self._control.fileno() in ready:
                self._answer_request()
            elif self._gate in ready:
                self._answer_fork()

    def _answer_request(self) -> None:
        request = self._control.recv(_MAX_REQUEST_BYTES)
        if not request:
            os._exit(1)  # the parent has ended
        answer: dict[str, Any] = {}
        if request == b"exempt":
            self._exempt = {(pid, start) for pid, start, _ in list_processes()}
        else:
            answer = {"remaining": self._kill_new_processes(), "refused": self._refused_count}
            self._refused_count = 0
        self._control.send(json.dumps(answer).encode())

    def _kill_new_processes(self) -> list[int]:
        """Kill the processes that are not exempt; return the ids of those that do not end.

        Zombies have ended, but many of them would slow down each listing, so they are returned, too.
        """
        deadline, pause = time.monotonic() + _KILL_SECONDS, _FIRST_PAUSE_SECONDS
        empty_listings = 0
        while empty_listings < 2:
            processes = list_processes()
            new_pids = [
                pid
                for pid, start, is_alive in processes
                if is_alive and (pid, start) not in self._exempt
            ]
            if not new_pids:
                empty_listings += 1
                continue
            if time.monotonic() > deadline:
                return new_pids
            empty_listings = 0
            for pid in new_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            self._reap()
        zombies = [pid for pid, _, is_alive in processes if not is_alive]
        return zombies if len(zombies) > _MAX_ZOMBIES else []

    def _answer_fork(self) -> None:
        notification = bytearray(_NOTIFICATION_BYTES)
        try:
            fcntl.ioctl(self._gate, _RECEIVE, notification)
        except FileNotFoundError:
            return  # the caller was killed or interrupted
        (notification_id,) = struct.unpack_from("=Q", notification)
        if self._may_fork():
            response = struct.pack(_RESPONSE, notification_id, 0, 0, _CONTINUE)
        else:
            self._refused_count += 1
            response = struct.pack(_RESPONSE, notification_id, 0, -errno.EAGAIN, 0)
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(self._gate, _SEND, response)

    def _may_fork(self) -> bool:
        if self._upper_count >= self._max_processes:
            # One for this process. Prompts may leave zombies, which their parent does not reap.
            self._upper_count = 1 + sum(is_alive for _, _, is_alive in list_processes())
        if self._upper_count >= self._max_processes:
            return False
        self._upper_count += 1
        return True

    def _reap(self) -> None:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid == self._main_pid:
                # Like a shell, exit with 128 plus the number of the signal.
                exit_code = os.waitstatus_to_exitcode(status)
                os._exit(exit_code if exit_code >= 0 else 128 - exit_code)


def list_pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdigit()]


def list_processes() -> list[tuple[int, int, bool]]:
    """Return the id and the start time of each other process, and whether it is alive.

    A process is alive until each of its threads has ended, even if it looks like a zombie because
    its first thread has ended.
    """
    processes = []
    for pid in list_pids():
        if pid == os.getpid():
            continue
        try:
            descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        except FileNotFoundError:
            continue  # it has ended meanwhile
        try:
            content = os.read(descriptor, 4096)
        except ProcessLookupError:
            continue
        finally:
            os.close(descriptor)
        members = content.rpartition(b") ")[2].split()
        is_alive = members[_STATE] not in (b"Z", b"X") or int(members[_THREADS]) > 1
        processes.append((pid, int(members[_START_TIME]), is_alive))
    return processes


def close_descriptors_except(kept: set[int]) -> None:
    with os.scandir("/proc/self/fd") as entries:
        descriptors = {int(entry.name) for entry in entries}
    for descriptor in descriptors - kept:
        # The descriptor of the listing itself is closed already.
        with contextlib.suppress(OSError):
            os.close(descriptor)


def change_user(user_id: int, group_ids: list[int]) -> None:
    """Change the user and the groups of this process irrevocably, and drop all capabilities."""
    os.setgroups(group_ids)
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)
    # A change of the user id keeps the inheritable capabilities, so they are dropped here.
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset failed to drop the capabilities")
    has_no_capabilities = "CapEff:\t0000000000000000" in Path("/proc/self/status").read_text()
    if os.getresuid() != (user_id, user_id, user_id) or not has_no_capabilities:
        raise OSError(f"could not switch to user id {user_id} and drop all capabilities")


def protect_from_sandbox() -> None:
    """Hide this process's memory and descriptors, and let the kernel drop the sandbox's signals."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")
    # The kernel drops only signals without a handler, and Python has installed one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_command(
    command: list[str], options: dict[str, Any], inherited: set[int]
) -> tuple[int, int]:
    """Start a command whose processes must ask before they create others.

    Returns:
        The process id, and the descriptor on which the kernel asks.
    """
    own_end, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        try:
            gate = install_fork_filter(options["seccomp"], bytes.fromhex(options["fork_filter"]))
            socket.send_fds(child_end, [b"."], [gate])
            close_descriptors_except(inherited)
            os.set_inheritable(options["socket"], True)
            os.execv(command[0], command)
        except BaseException as error:
            os.write(2, f"the sandbox can't start {command[0]}: {error}\n".encode())
        finally:
            os._exit(127)
    child_end.close()
    _, descriptors, _, _ = socket.recv_fds(own_end, 1, 1)
    own_end.close()
    if not descriptors:
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) or 1)
    return pid, descriptors[0]


def install_fork_filter(call_number: int, program: bytes) -> int:
    """Install a seccomp filter in this process, and return the descriptor of its notifications."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    descriptor: int = libc.syscall(
        ctypes.c_long(call_number),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_long(_NEW_LISTENER),
        ctypes.byref(Program(len(program) // 8, program)),
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(
            number, f"the kernel refuses the filter of new processes: {os.strerror(number)}"
        )
    return descriptor


if __name__ == "__main__":
    main()
