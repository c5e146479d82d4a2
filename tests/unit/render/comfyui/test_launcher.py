"""Tests that the script that starts ComfyUI ends when its parent ends, whatever it is doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from moyin.render.comfyui import launcher

_BUSY = """
import sys
sys.path.insert(0, sys.argv[1])
import launcher
launcher.die_with_pipe(int(sys.argv[2]))
print("ready", flush=True)
while True:
    pass
"""


def _start_busy_process(pipe: int) -> subprocess.Popen[bytes]:
    folder = str(Path(launcher.__file__).parent)
    command = [sys.executable, "-c", _BUSY, folder, str(pipe)]
    return subprocess.Popen(command, pass_fds=[pipe], stdout=subprocess.PIPE)


def test_a_busy_process_is_killed_when_the_pipe_is_closed() -> None:
    child_end, parent_end = os.pipe()
    with _start_busy_process(child_end) as process:
        os.close(child_end)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert process.poll() is None
        os.close(parent_end)
        assert process.wait(60) == -signal.SIGKILL


def test_a_process_ends_if_its_pipe_was_already_closed() -> None:
    child_end, parent_end = os.pipe()
    os.close(parent_end)
    with _start_busy_process(child_end) as process:
        os.close(child_end)
        assert process.wait(60) == 1
