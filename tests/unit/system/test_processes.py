from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from moyin.system.logfile import LogFile, tail
from moyin.system.processes import SERVICE_VARIABLE, STACK_VARIABLE, Child, find, missing, sweep

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
DEAF = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('deaf', flush=True); time.sleep(60)",
)


def _environ(folder: Path, service: str = "one") -> dict[str, str]:
    return {**os.environ, STACK_VARIABLE: str(folder), SERVICE_VARIABLE: service}


async def test_what_a_child_prints_is_logged(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    child = await Child.start(("sh", "-c", "echo out; echo err >&2"), os.environ, log)
    assert await child.wait() == 0
    await _until(lambda: len(tail(tmp_path / "log", 9)) == 2)
    await child.stop(1)
    log.close()
    assert sorted(tail(tmp_path / "log", 9)) == ["err", "out"]


async def test_a_child_may_be_called_late(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    command = ("cat", "/proc/self/timerslack_ns")
    child = await Child.start(command, os.environ, log, timer_slack_ns=2_000_000)
    await _until(lambda: tail(tmp_path / "log", 1) == ["2000000"])
    assert await child.wait() == 0
    await child.stop(1)
    log.close()


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    child = await Child.start(DEAF, os.environ, log)
    await _until(lambda: tail(tmp_path / "log", 1) == ["deaf"])
    await child.stop(0.2)
    log.close()
    assert await child.wait() == -signal.SIGKILL


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from moyin.system.logfile import LogFile\n"
        "from moyin.system.processes import Child\n"
        "async def main():\n"
        f"    log = LogFile(Path({str(tmp_path / 'log')!r}))\n"
        "    child = await Child.start(('sleep', '60'), os.environ, log)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone == [child]


@pytest.mark.parametrize("service", [None, "one"])
def test_sweep_ends_its_own_stack_only(tmp_path: Path, service: str | None) -> None:
    ours = subprocess.Popen(SLEEP, env=_environ(tmp_path / "ours"))
    other = subprocess.Popen(SLEEP, env=_environ(tmp_path / "other"))
    second = subprocess.Popen(SLEEP, env=_environ(tmp_path / "ours", "two"))
    try:
        _wait_for(tmp_path / "ours", 2)
        swept = sweep(str(tmp_path / "ours"), service)
        # psutil took the exit status; that it is gone is what counts.
        assert ours.poll() is not None
        assert other.poll() is None
        assert swept == (2 if service is None else 1)
        assert (second.poll() is None) == (service is not None)
    finally:
        for process in (ours, other, second):
            process.kill()
            process.wait()


def test_sweep_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    with subprocess.Popen(DEAF, env=_environ(tmp_path), stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == b"deaf\n"
        assert sweep(str(tmp_path), patience=0.2) == 1
        assert deaf.poll() is not None


def test_sweep_spares_the_process_that_sweeps(tmp_path: Path) -> None:
    script = (
        f"from moyin.system.processes import sweep\nprint(sweep({str(tmp_path)!r}, patience=0.2))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=_environ(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"


def test_a_child_that_has_ended_is_missing_also_before_it_is_waited_for() -> None:
    child = subprocess.Popen(("sleep", "60"))
    name = "sleep"
    try:
        assert missing(os.getpid(), (name, "raylet")) == ["raylet"]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert missing(os.getpid(), (name, "raylet")) == [name, "raylet"]
    finally:
        child.kill()
        child.wait()
    # Of a process that is gone, whoever waits for it hears.
    assert missing(child.pid, (name,)) == []


def _wait_for(folder: Path, count: int) -> None:
    """A process shows its own environment only once it has replaced its parent's image."""
    deadline = time.monotonic() + 5
    while len(list(find(str(folder)))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def _until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)
