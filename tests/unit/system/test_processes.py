from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moyin.system.logfile import LogFile, read_last_lines
from moyin.system.processes import (
    SERVICE_VARIABLE,
    STACK_VARIABLE,
    Backoff,
    ChildProcess,
    end_processes,
    find_missing_children,
    find_processes,
    freeze_startup_objects,
)
from tests.waiting import eventually

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(60)",
)


def _make_environ(folder: Path, service: str = "one") -> dict[str, str]:
    return {**os.environ, STACK_VARIABLE: str(folder), SERVICE_VARIABLE: service}


async def test_output_of_a_child_is_logged(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    child = await ChildProcess.start(("sh", "-c", "echo out; echo err >&2"), os.environ, log)
    assert await child.wait() == 0
    await eventually(lambda: len(read_last_lines(tmp_path / "log", 9)) == 2)
    await child.stop(1)
    log.close()
    assert sorted(read_last_lines(tmp_path / "log", 9)) == ["err", "out"]


async def test_child_gets_its_timer_slack(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    command = ("cat", "/proc/self/timerslack_ns")
    child = await ChildProcess.start(command, os.environ, log, timer_slack_ns=2_000_000)
    await eventually(lambda: read_last_lines(tmp_path / "log", 1) == ["2000000"])
    assert await child.wait() == 0
    await child.stop(1)
    log.close()


async def test_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    child = await ChildProcess.start(STUBBORN, os.environ, log)
    await eventually(lambda: read_last_lines(tmp_path / "log", 1) == ["ready"])
    await child.stop(0.2)
    log.close()
    assert await child.wait() == -signal.SIGKILL


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from moyin.system.logfile import LogFile\n"
        "from moyin.system.processes import ChildProcess\n"
        "async def main():\n"
        f"    log = LogFile(Path({str(tmp_path / 'log')!r}))\n"
        "    child = await ChildProcess.start(('sleep', '60'), os.environ, log)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    dead_processes, _ = psutil.wait_procs([child], timeout=5)
    assert dead_processes == [child]


@pytest.mark.parametrize("service", [None, "one"])
def test_end_processes_ends_only_its_own_stack(tmp_path: Path, service: str | None) -> None:
    own_process = subprocess.Popen(SLEEP, env=_make_environ(tmp_path / "own"))
    other_process = subprocess.Popen(SLEEP, env=_make_environ(tmp_path / "other"))
    second_process = subprocess.Popen(SLEEP, env=_make_environ(tmp_path / "own", "two"))
    try:
        _wait_for_processes(tmp_path / "own", 2)
        ended_count = end_processes(str(tmp_path / "own"), service)
        # psutil has taken the exit status; only the end counts.
        assert own_process.poll() is not None
        assert other_process.poll() is None
        assert ended_count == (2 if service is None else 1)
        assert (second_process.poll() is None) == (service is not None)
    finally:
        for process in (own_process, other_process, second_process):
            process.kill()
            process.wait()


def test_end_processes_kills_those_that_ignore_sigterm(tmp_path: Path) -> None:
    with subprocess.Popen(STUBBORN, env=_make_environ(tmp_path), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert end_processes(str(tmp_path), patience=0.2) == 1
        assert child.poll() is not None


def test_end_processes_spares_the_calling_process(tmp_path: Path) -> None:
    script = f"from moyin.system.processes import end_processes\nprint(end_processes({str(tmp_path)!r}, patience=0.2))\n"
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=_make_environ(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "0\n"


def test_ended_child_is_missing_before_it_is_waited_for() -> None:
    child = subprocess.Popen(("sleep", "60"))
    name = "sleep"
    try:
        assert find_missing_children(os.getpid(), (name, "raylet")) == ["raylet"]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert find_missing_children(os.getpid(), (name, "raylet")) == [name, "raylet"]
    finally:
        child.kill()
        child.wait()
    # The end of the parent itself is reported to the process that waits for it.
    assert find_missing_children(child.pid, (name,)) == []


def _wait_for_processes(folder: Path, count: int) -> None:
    """Wait until ``count`` processes show their own environment, which they do only after exec."""
    deadline = time.monotonic() + 5
    while len(list(find_processes(str(folder)))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_backoff_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first=1, longest=5, stable=60)
    assert [backoff.compute_delay(0.1) for _ in range(5)] == [1, 2, 4, 5, 5]


def test_stable_run_resets_the_backoff_delay() -> None:
    backoff = Backoff(first=1, longest=5, stable=60)
    for _ in range(4):
        backoff.compute_delay(0.1)
    assert backoff.compute_delay(60) == 1
    assert backoff.compute_delay(1) == 2


def test_backoff_does_not_overflow_after_many_failures() -> None:
    backoff = Backoff(first=1, longest=5)
    assert [backoff.compute_delay(0) for _ in range(5_000)][-1] == 5


def test_startup_objects_are_not_collected_and_others_less_often() -> None:
    thresholds = gc.get_threshold()
    try:
        freeze_startup_objects()
        assert gc.get_freeze_count() > 1_000
        assert gc.get_threshold()[0] > thresholds[0]
        assert gc.get_threshold()[1:] == thresholds[1:]
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
