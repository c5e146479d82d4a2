"""Tests how the memory and disk space of a sandbox are measured, with a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moyin.errors import ResourceLimitExceeded
from moyin.render.comfyui.options import ComfyOptions
from moyin.render.comfyui.resource_usage import ResourceLimits, ResourceUsage
from moyin.system.memory import MemoryReader

MIB = 1024**2


@contextmanager
def run_process(code: str) -> Iterator[int]:
    """Run ``code`` in a process that waits afterwards, and yield the process id."""
    script = f"import os\n{code}\nprint('ready', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


def new_usage(
    tmp_path: Path, pids: list[int], *, memory: int = 1024, disk: int = 16, files: int = 100
) -> ResourceUsage:
    """Return the usage of some processes of this machine, with limits in MiB."""
    proc, written = tmp_path / "proc", tmp_path / "written"
    for folder in (proc, written):
        folder.mkdir(exist_ok=True)
    for pid in pids:
        (proc / str(pid)).symlink_to(f"/proc/{pid}")
    limits = ResourceLimits(memory_bytes=memory * MIB, disk_bytes=disk * MIB, files=files)
    usage = ResourceUsage(os.getpid(), [written], limits)
    usage._proc = proc
    return usage


def find_exceeded_bound(usage: ResourceUsage) -> str | None:
    try:
        usage.check()
    except ResourceLimitExceeded as error:
        return str(error.details["bound"])
    return None


@pytest.mark.parametrize(
    "code",
    [
        "block = bytearray(96 << 20)",
        "file = os.memfd_create('m', 0)\nos.write(file, bytes(96 << 20))",
        "import mmap\nblock = mmap.mmap(-1, 96 << 20)\nblock.write(bytes(96 << 20))",
    ],
)
def test_memory_of_all_kinds_counts(tmp_path: Path, code: str) -> None:
    with run_process(code) as pid:
        assert find_exceeded_bound(new_usage(tmp_path, [pid], memory=90)) == "memory_gib"
    with run_process("") as pid:
        assert find_exceeded_bound(new_usage(tmp_path, [pid], memory=90)) is None


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    code = "block = bytearray(96 << 20)\npid = os.fork()\nif not pid: os.read(0, 1); os._exit(0)"
    with run_process(code) as pid:
        [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids = [pid, int(child)]
        assert find_exceeded_bound(new_usage(tmp_path, pids, memory=150)) is None
        assert find_exceeded_bound(new_usage(tmp_path, [], memory=90)) == "memory_gib"


def test_disk_space_of_files_counts_even_if_they_are_hidden(tmp_path: Path) -> None:
    usage = new_usage(tmp_path, [])
    folder = tmp_path / "written" / "folder"
    folder.mkdir()
    (folder / "sparse").touch()
    os.truncate(folder / "sparse", 1 << 40)
    (folder / "link").symlink_to("/")
    assert find_exceeded_bound(usage) is None
    (folder / "file").write_bytes(os.urandom(17 * MIB))
    folder.chmod(0)
    assert find_exceeded_bound(usage) == "disk_gib"
    folder.chmod(0o700)
    (folder / "file").unlink()
    assert find_exceeded_bound(usage) is None


def test_removed_files_that_are_open_count(tmp_path: Path) -> None:
    (tmp_path / "written").mkdir()
    path = tmp_path / "written" / "file"
    code = f"file = open({str(path)!r}, 'wb')\nfile.write(os.urandom(17 << 20))\nfile.flush()\nos.unlink(file.name)"
    with run_process(code) as pid:
        assert not path.exists()
        assert find_exceeded_bound(new_usage(tmp_path, [pid])) == "disk_gib"


def test_number_and_depth_of_files_are_bounded(tmp_path: Path) -> None:
    usage = new_usage(tmp_path, [])
    for number in range(100):
        (tmp_path / "written" / str(number)).touch()
    assert find_exceeded_bound(usage) is None
    (tmp_path / "written" / "one more").touch()
    assert find_exceeded_bound(usage) == "files"
    (tmp_path / "written").rename(tmp_path / "many")
    (tmp_path / "written" / "/".join("d" * 70)).mkdir(parents=True)
    assert find_exceeded_bound(usage) == "depth"


def test_ended_sandbox_uses_nothing(tmp_path: Path) -> None:
    usage = new_usage(tmp_path, [], memory=1)
    usage._proc = tmp_path / "missing"
    assert find_exceeded_bound(usage) is None


def test_default_of_memory_is_most_of_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryReader, "read_total", lambda _: 1000)
    options = ComfyOptions(home=tmp_path, python=tmp_path, folder=tmp_path, models=tmp_path)
    assert ResourceLimits.from_options(options).memory_bytes == 900
