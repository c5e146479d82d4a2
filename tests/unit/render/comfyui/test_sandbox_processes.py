"""Tests in a real sandbox that processes which a prompt leaves behind are killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from moyin.errors import StackError, WorkerLost
from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.process import ComfyProcess, Spawner
from moyin.render.comfyui.sandbox import choose_user_id
from tests.survivors import FORMS, LOOK_AROUND, build_survivor

MAX_PROCESSES = 200
# A stand-in for ComfyUI that starts a helper and runs the code of prompts. The helper starts a
# process when it gets a signal.
_SCRIPT = """
import json, os, signal, subprocess, sys, time, traceback
from pathlib import Path
from types import SimpleNamespace
HELPER = '''
import os, signal, subprocess, time
signal.signal(signal.SIGUSR1, lambda *_: subprocess.Popen(["sleep", "1000"]))
print("up", flush=True)
while True:
    time.sleep(1)
'''
helper = subprocess.Popen([sys.executable, "-c", HELPER])
base = Path(os.environ["TMPDIR"]).parent
folder_paths = SimpleNamespace(get_input_directory=lambda: str(base / "input"),
                               get_output_directory=lambda: str(base / "output"))
kept = {"helpers": [helper.pid]}
while True:
    time.sleep(0.002)
    if (base / "input" / "moyin" / "code.py").exists() and not (base / "scratch" / "found").exists():
        scope = {"folder_paths": folder_paths, "kept": kept, "helper": helper.pid, "found": None}
        try:
            exec((base / "input" / "moyin" / "code.py").read_text(), scope)
        except BaseException:
            scope["found"] = traceback.format_exc()
        (base / "scratch" / "new").write_text(json.dumps(scope["found"]))
        (base / "scratch" / "new").rename(base / "scratch" / "found")
"""


@asynccontextmanager
async def start_sandbox(folder: Path) -> AsyncIterator[tuple[ComfyProcess, ProcessFolder]]:
    options = ComfyOptions(
        home=folder / "home",
        python=Path(sys.executable),
        folder=folder / "run",
        models=folder / "models",
        cpu=True,
        processes=MAX_PROCESSES,
    )
    options.home.mkdir()
    (options.home / "main.py").write_text(_SCRIPT)
    process_folder, spawner = ProcessFolder(options), Spawner()
    process_folder.prepare(choose_user_id(options))
    try:
        process = await ComfyProcess.start(options, process_folder, spawner)
    except StackError as error:
        pytest.skip(error.message)
    try:
        while "up" not in process.read_last_log_lines().split():
            assert not process.exited.done(), process.read_last_log_lines()
            await asyncio.sleep(0.02)
        await asyncio.to_thread(process.exempt_present_processes)
        yield process, process_folder
    finally:
        await process.stop()
        spawner.close()


async def run_code(folder: ProcessFolder, process: ComfyProcess, code: str) -> Any:
    """Run ``code`` in the stand-in for ComfyUI, and return what it stores in ``found``."""
    found_path, code_path = folder.scratch / "found", folder.inputs / "code.py"
    new_path = folder.inputs.parent / "code.py"
    new_path.write_text(code)
    new_path.chmod(0o644)
    new_path.rename(code_path)
    while not found_path.exists():
        assert not process.exited.done(), process.read_last_log_lines()
        await asyncio.sleep(0.002)
    code_path.unlink()
    found = json.loads(found_path.read_text())
    found_path.unlink()
    return found


@pytest.mark.parametrize("form", FORMS)
async def test_no_process_of_a_prompt_outlives_its_kill(tmp_path: Path, form: str) -> None:
    async with start_sandbox(tmp_path) as (process, folder):
        for _ in range(2):
            assert await run_code(folder, process, build_survivor(form)) is True
            assert await run_code(folder, process, LOOK_AROUND), "some are left before the kill"
            await asyncio.to_thread(process.kill_new_processes)
            for path in (folder.base / "output").iterdir():
                path.unlink()
            (folder.inputs / "next.png").write_text("the next tenant's input")
            (folder.inputs / "next.png").chmod(0o644)
            assert await run_code(folder, process, LOOK_AROUND) == []
            (folder.inputs / "next.png").unlink()


async def test_exempt_processes_stay_and_their_new_ones_are_killed(tmp_path: Path) -> None:
    code = """
import os, signal, time
os.kill(helper, signal.SIGUSR1)
def find():
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                state, parent = open("/proc/%s/stat" % name).read().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # the helper has just reaped it
            # The process of an earlier prompt is a zombie that its parent has not reaped, or is reaping.
            if parent == str(helper) and state not in "ZX":
                return True
while not find():
    time.sleep(0.01)
found = True
"""
    async with start_sandbox(tmp_path) as (process, folder):
        for _ in range(2):
            assert await run_code(folder, process, code) is True
            await asyncio.to_thread(process.kill_new_processes)
            assert await run_code(folder, process, LOOK_AROUND) == []
            helper = await run_code(folder, process, "import os; found = os.kill(helper, 0)")
            assert helper is None, "it is alive"


async def test_sandbox_has_a_largest_number_of_processes(tmp_path: Path) -> None:
    code = """
import os, time
pids = []
try:
    while True:
        pids.append(os.fork())
        if not pids[-1]:
            time.sleep(60)
except OSError as error:
    found = [error.strerror, len(pids)]
"""
    async with start_sandbox(tmp_path) as (process, folder):
        message, count = await run_code(folder, process, code)
        assert (message, count) == ("Resource temporarily unavailable", MAX_PROCESSES - 3)
        assert await asyncio.to_thread(process.kill_new_processes) == 1
        assert await asyncio.to_thread(process.kill_new_processes) == 0
        assert await run_code(folder, process, LOOK_AROUND) == []


async def test_ended_processes_do_not_count(tmp_path: Path) -> None:
    """Otherwise a prompt's zombies would keep later prompts from starting processes."""
    code = """
import os
for _ in range(150):
    if os.fork() == 0:
        os._exit(0)
found = True
"""
    async with start_sandbox(tmp_path) as (process, folder):
        for _ in range(2):
            assert await run_code(folder, process, code) is True
            assert await asyncio.to_thread(process.kill_new_processes) == 0


async def test_first_process_of_a_sandbox_is_out_of_reach(tmp_path: Path) -> None:
    code = """
import os, signal
found = []
for number in range(1, 65):
    os.kill(1, number) if number not in (32, 33) else None
for name in ("mem", "environ", "maps", "fd", "root", "cwd"):
    try:
        os.listdir("/proc/1/" + name) if name in ("fd", "root", "cwd") else open("/proc/1/" + name).read(1)
        found.append(name)
    except PermissionError:
        pass
for name, flags in (("mem", os.O_RDWR), ("oom_score_adj", os.O_RDWR)):
    try:
        os.open("/proc/1/" + name, flags)
        found.append(name)
    except PermissionError:
        pass
"""
    async with start_sandbox(tmp_path) as (process, folder):
        assert await run_code(folder, process, code) == []
        await asyncio.to_thread(process.kill_new_processes)
        assert not process.exited.done()


async def test_comfyui_inherits_only_its_streams_and_its_socket(tmp_path: Path) -> None:
    code = """
import os
found = []
for name in os.listdir("/proc/self/fd"):
    try:
        found.append([int(name), os.readlink("/proc/self/fd/" + name).partition(":")[0]])
    except OSError:
        pass
"""
    async with start_sandbox(tmp_path) as (process, folder):
        descriptors = await run_code(folder, process, code)
        kinds = sorted(kind for number, kind in descriptors if number > 2)
        assert kinds == ["socket"], "and the listening one at that"
        assert {kind for number, kind in descriptors if number <= 2} == {"/dev/null", "pipe"}


async def test_kill_that_cannot_finish_reports_what_remains(tmp_path: Path) -> None:
    async with start_sandbox(tmp_path) as (process, _):
        sandbox_processes = process._sandbox_processes
        assert sandbox_processes is not None
        psutil.Process(sandbox_processes.init_pid).send_signal(signal.SIGSTOP)
        sandbox_processes._control.settimeout(0.2)
        with pytest.raises(WorkerLost, match="does not answer"):
            await asyncio.to_thread(process.kill_new_processes)
        # Not even a late answer is accepted.
        psutil.Process(sandbox_processes.init_pid).send_signal(signal.SIGCONT)
        with pytest.raises(WorkerLost):
            await asyncio.to_thread(process.kill_new_processes)


async def test_sandbox_ends_with_comfyui(tmp_path: Path) -> None:
    async with start_sandbox(tmp_path) as (process, _):
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


async def test_sandbox_ends_with_its_parent(tmp_path: Path) -> None:
    async with start_sandbox(tmp_path) as (process, _):
        process._channels.control.shutdown(2)
        await asyncio.wait_for(process.exited, 10)
