"""Tests in a real sandbox that processes which a prompt leaves behind are ended."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from moyin.errors import StackError
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.process import ComfyProcess, Spawner
from moyin.render.comfyui.sandbox import choose_user_id

# A ComfyUI that starts a helper, and on each SIGUSR1 a daemon and a child that it does not reap.
_SCRIPT = """
import os, signal, subprocess, sys, time
subprocess.Popen(["sleep", "1000"])
def prompt(*_):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "2000"])
        os._exit(0)
    subprocess.Popen(["sleep", "3000"])
    os.write(1, b"left\\n")
signal.signal(signal.SIGUSR1, prompt)
# In one piece, since a signal may come before the end of the line.
os.write(1, b"up\\n")
while True:
    time.sleep(1)
"""


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[ComfyProcess]:
    options = ComfyOptions(
        home=tmp_path / "home",
        python=Path(sys.executable),
        folder=tmp_path / "run",
        models=tmp_path / "models",
        cpu=True,
    )
    options.home.mkdir()
    (options.home / "main.py").write_text(_SCRIPT)
    folder, spawner = ProcessFolder(options), Spawner()
    folder.prepare(choose_user_id(options))
    try:
        process = await ComfyProcess.start(options, folder, spawner)
    except StackError as error:
        pytest.skip(error.message)
    yield process
    await process.stop()
    spawner.close()


def find_sleepers(process: ComfyProcess) -> set[str]:
    """Return the arguments of the running `sleep` processes in the sandbox."""
    assert process._sandbox_processes is not None
    processes = psutil.Process(process._sandbox_processes.init_pid).children(recursive=True)
    return {p.cmdline()[1] for p in processes if p.name() == "sleep" and p.status() != "zombie"}


async def wait_for_output(process: ComfyProcess, word: str, count: int) -> None:
    while process.read_last_log_lines().split().count(word) < count:
        assert not process.exited.done(), process.read_last_log_lines()
        await asyncio.sleep(0.02)


async def test_processes_of_a_prompt_are_killed_and_earlier_ones_stay(
    process: ComfyProcess,
) -> None:
    await wait_for_output(process, "up", 1)
    process.exempt_present_processes()
    for count in (1, 2):
        psutil.Process(process.pid).send_signal(signal.SIGUSR1)
        await wait_for_output(process, "left", count)
        assert "3000" in find_sleepers(process)
        process.kill_new_processes()
        assert find_sleepers(process) == {"1000"}
    # The dead ones are not reaped yet, which must not count as a new stray.
    process.kill_new_processes()
    assert not process.exited.done()


async def test_sandbox_ends_with_comfyui(process: ComfyProcess) -> None:
    await wait_for_output(process, "up", 1)
    assert process._sandbox_processes is not None
    sandboxed_processes = psutil.Process(process._sandbox_processes.init_pid).children(
        recursive=True
    )
    assert process.pid in {child.pid for child in sandboxed_processes}
    psutil.Process(process.pid).kill()
    await process.exited
    assert process.was_killed
    await process.stop()
    _, alive_processes = psutil.wait_procs(sandboxed_processes, timeout=5)
    assert not alive_processes
