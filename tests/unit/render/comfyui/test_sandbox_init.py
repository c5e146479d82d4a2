"""Tests the script that runs as the first process of a sandbox, outside of a sandbox.

How it kills and permits processes is tested in real sandboxes, in ``test_sandbox_processes.py``.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from moyin.render.comfyui import sandbox_init
from moyin.render.comfyui.sandbox_init import SandboxInit, list_processes

_EXEMPT, _REUSED = (5, 100), (5, 200)


@pytest.fixture
def init() -> Iterator[SandboxInit]:
    own_end, parent_end = socket.socketpair()
    sandbox = SandboxInit(control=own_end.detach(), gate=-1, main_pid=2, max_processes=9)
    with parent_end, sandbox._control:
        yield sandbox


def test_process_with_the_id_of_an_exempt_one_is_killed(
    init: SandboxInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel assigns process ids again, so an exempt process is known by its start, too."""
    processes = {_EXEMPT: True}
    killed_pids = []

    def kill(pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        killed_pids.append(pid)
        processes.clear()

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(init, "_reap", lambda: None)
    monkeypatch.setattr(
        sandbox_init,
        "list_processes",
        lambda: [(pid, start, is_alive) for (pid, start), is_alive in processes.items()],
    )
    init._exempt = {_EXEMPT}
    assert (init._kill_new_processes(), killed_pids) == ([], [])
    processes.clear()
    processes[_REUSED] = True
    assert (init._kill_new_processes(), killed_pids) == ([], [5])


def test_processes_that_do_not_end_are_reported(
    init: SandboxInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: None)
    monkeypatch.setattr(init, "_reap", lambda: None)
    monkeypatch.setattr(sandbox_init, "_KILL_SECONDS", 0.01)
    monkeypatch.setattr(sandbox_init, "list_processes", lambda: [(7, 1, True), (8, 1, False)])
    assert init._kill_new_processes() == [7]


def test_process_that_one_listing_misses_is_killed(
    init: SandboxInit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing misses a process whose creator ends while the listing is made."""
    listings = [[], [(7, 1, True)], [], []]
    killed_pids = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed_pids.append(pid))
    monkeypatch.setattr(init, "_reap", lambda: None)
    monkeypatch.setattr(sandbox_init, "list_processes", lambda: listings.pop(0))
    assert init._kill_new_processes() == []
    assert (killed_pids, listings) == ([7], [])


def test_too_many_zombies_are_reported(init: SandboxInit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_init, "_MAX_ZOMBIES", 2)
    zombies = [(7, 1, False), (8, 1, False)]
    monkeypatch.setattr(sandbox_init, "list_processes", lambda: zombies)
    assert init._kill_new_processes() == []
    zombies.append((9, 1, False))
    assert init._kill_new_processes() == [7, 8, 9]


def test_zombie_is_not_alive() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    [is_alive] = [is_alive for listed, _, is_alive in list_processes() if listed == pid]
    os.waitpid(pid, 0)
    assert not is_alive
    assert [alive for listed, _, alive in list_processes() if listed == os.getppid()] == [True]
