from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from moyin.render.comfyui.folder import ProcessFolder
from moyin.render.comfyui.options import ComfyOptions, Isolation
from moyin.render.comfyui.process import ComfyProcess, Spawner, build_command
from moyin.render.comfyui.sandbox import choose_user_id
from tests.waiting import eventually


def make_options(folder: Path, **changes: object) -> ComfyOptions:
    settings = {
        "home": folder / "home",
        "python": Path(sys.executable),
        "folder": folder / "run",
        "models": folder / "models",
    }
    return ComfyOptions(**(settings | changes))  # type: ignore[arg-type]


async def start_process(
    folder: Path, script: str, isolation: Isolation = Isolation.FILES
) -> tuple[ComfyProcess, Spawner]:
    comfy_options = make_options(folder, isolation=isolation)
    comfy_options.home.mkdir()
    (comfy_options.home / "main.py").write_text(script)
    process_folder = ProcessFolder(comfy_options)
    process_folder.prepare(choose_user_id(comfy_options))
    spawner = Spawner()
    return await ComfyProcess.start(comfy_options, process_folder, spawner), spawner


async def _read_first_line(process: ComfyProcess) -> str:
    await eventually(process.read_last_log_lines)
    return process.read_last_log_lines()


def test_command_line_separates_processes(tmp_path: Path) -> None:
    comfy_options = make_options(
        tmp_path, cpu=True, flags=("--fast",), custom_nodes=(tmp_path / "nodes" / "extra",)
    )
    folder = ProcessFolder(comfy_options)
    command = build_command(comfy_options, folder, {"socket": 7})
    assert command[1:4] == [
        str(folder.launcher), '{"socket": 7}', str(tmp_path / "home" / "main.py"),
    ]  # fmt: skip
    command_line = " ".join(command)
    for arguments in (
        f"--base-directory {tmp_path / 'run' / 'base'}",
        "--database-url sqlite:///:memory:",
        "--cpu",
        "--fast",
        "--disable-all-custom-nodes --whitelist-custom-nodes moyin_bridge extra",
    ):
        assert arguments in command_line
    assert "--cpu" not in build_command(make_options(tmp_path), folder, {})


async def test_last_log_lines_and_exit_status_are_available(tmp_path: Path) -> None:
    process, spawner = await start_process(
        tmp_path, "import os, sys\nprint('share', os.environ['MOYIN_GPU_SHARE'])\nsys.exit(3)"
    )
    assert await process.exited == 3
    assert process.read_last_log_lines() == "share 1.0"
    await process.stop()
    spawner.close()


async def test_main_imports_only_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    script = "import sys\nprint(sys.path[0], sys.argv[0], __name__)\nimport folder_options"
    process, spawner = await start_process(tmp_path, script)
    assert await process.exited == 1
    home = tmp_path / "home"
    assert f"{home} {home / 'main.py'} __main__" in process.read_last_log_lines()
    await process.stop()
    spawner.close()


@pytest.mark.parametrize("ignores_signals", [True, False])
async def test_stop_ends_the_whole_process_group(tmp_path: Path, ignores_signals: bool) -> None:
    script = f"""
import signal, subprocess, sys, time
if {ignores_signals}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
    process, spawner = await start_process(tmp_path, script)
    grandchild = psutil.Process(int(await _read_first_line(process)))
    await process.stop(patience=0.5)
    assert await process.exited == (-9 if ignores_signals else -15)
    # Only init reaps it.
    psutil.wait_procs([grandchild], timeout=2)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    spawner.close()


@pytest.mark.parametrize("parent", [{"parent": 1}, {}])
async def test_launcher_without_its_parent_does_not_start(
    tmp_path: Path, parent: dict[str, int]
) -> None:
    script = tmp_path / "main.py"
    script.write_text("print('started')")
    from moyin.render.comfyui import launcher

    alive_pipe, parent_end = os.pipe()
    os.close(parent_end)
    process = await asyncio.create_subprocess_exec(
        sys.executable, launcher.__file__, json.dumps({**parent, "alive": alive_pipe}), str(script),
        stdout=asyncio.subprocess.PIPE, pass_fds=(alive_pipe,),
    )  # fmt: skip
    os.close(alive_pipe)
    output, _ = await process.communicate()
    assert (process.returncode, output) == (1, b"")


async def test_garbage_collection_starts_with_the_server_and_skips_imported_objects(
    tmp_path: Path,
) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import asyncio, gc\n"
        "from aiohttp import web\n"
        "async def main():\n"
        "    runner = web.AppRunner(web.Application())\n"
        "    await runner.setup()\n"
        "    print(gc.isenabled())\n"
        "    web.TCPSite(runner, '127.0.0.1', 1)\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))\n"
        "asyncio.run(main())\n"
    )
    from moyin.render.comfyui import launcher

    alive_pipe, parent_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as listening_socket:
        launch_options = {
            "socket": listening_socket.fileno(),
            "alive": alive_pipe,
            "file_bytes": 1 << 20,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, launcher.__file__, json.dumps(launch_options), str(script),
            stdout=asyncio.subprocess.PIPE, pass_fds=(alive_pipe, listening_socket.fileno()),
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )  # fmt: skip
        output, _ = await process.communicate()
    os.close(alive_pipe)
    os.close(parent_end)
    assert output.decode().splitlines() == ["False", "True True"]


async def test_how_a_killed_process_ended_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, spawner = await start_process(
        tmp_path, "import time; print('up', flush=True); time.sleep(60)"
    )
    await _read_first_line(process)
    assert not process.was_killed
    os.kill(process.pid, signal.SIGKILL)
    await process.exited
    assert process.was_killed
    assert process.describe_end() == "its process ended with status -9"
    monkeypatch.setattr("moyin.render.comfyui.process.count_kernel_kills", lambda: 1_000_000)
    assert process.was_killed, "no prompt is to blame for a full memory"
    assert "the kernel has ended processes for memory" in process.describe_end()
    await process.stop()
    spawner.close()


async def test_process_ended_for_others_is_described(tmp_path: Path) -> None:
    process, spawner = await start_process(tmp_path, "import time; time.sleep(60)")
    process.kill()
    await process.exited
    assert process.was_killed
    assert "the memory of its node was used up" in process.describe_end()
    process.kill()  # has no effect on an ended process
    await process.stop()
    spawner.close()


async def test_crashed_process_was_not_killed(tmp_path: Path) -> None:
    process, spawner = await start_process(tmp_path, "import os; os.abort()")
    await process.exited
    assert not process.was_killed
    await process.stop()
    spawner.close()
